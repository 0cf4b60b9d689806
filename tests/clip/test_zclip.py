from __future__ import annotations

import math

import pytest

from lightning_gradguard.clip.zclip import ZClip
from tests.clip.bench import Run


def noisy(step: int, level: float = 1.0) -> float:
    return level * (1.0 + 0.05 * math.sin(step * 2.399963))


def share_clipped(run: Run, num_steps: int, level: float) -> float:
    return sum(float(run.at(noisy(step, level))[0].coefficient) < 0.9999 for step in range(num_steps)) / num_steps


@pytest.mark.parametrize("rise", [1.5, 3.0, 10.0])
def test_the_papers_statistics_lock_in_after_a_rise_and_ours_do_not(rise: float) -> None:
    ours, paper = Run(ZClip()), Run(ZClip(original=True))
    for run in (ours, paper):
        share_clipped(run, 200, 1.0)
        share_clipped(run, 200, rise)
    assert share_clipped(paper, 100, rise) == 1.0
    assert share_clipped(ours, 100, rise) == 0.0


def test_a_rise_is_followed_in_few_steps() -> None:
    run = Run(ZClip())
    share_clipped(run, 200, 1.0)
    steps = next(step for step in range(200) if float(run.at(noisy(step, 10.0))[0].coefficient) == 1.0)
    assert steps < 60


def test_the_papers_statistics_take_equal_norms_for_certainty_and_ours_do_not() -> None:
    ours, paper = Run(ZClip()), Run(ZClip(original=True))
    for run in (ours, paper):
        for _ in range(30):
            run.at(1.0)
    assert float(paper.at(1.001)[0].coefficient) < 1.0
    assert float(ours.at(1.3)[0].coefficient) == 1.0


def test_protection_is_on_from_the_second_step() -> None:
    ours, paper = Run(ZClip()), Run(ZClip(original=True))
    assert ours.norm_after(1.0) == pytest.approx(1.0)
    assert ours.norm_after(1000.0) < 1.1
    paper.norm_after(1.0)
    assert paper.norm_after(1000.0) == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("to", "expected"), [("adaptive_scaling", 1.0 + 0.625**2 / 9.0), ("mean", 1.0), ("percentile", 1.625)]
)
def test_where_a_spike_is_cut_to(to: str, expected: float) -> None:
    run = Run(ZClip(to=to))
    for _ in range(50):
        run.at(1.0)
    assert run.norm_after(10.0) == pytest.approx(expected, rel=1e-4)


def test_the_ceiling_holds_from_the_first_step() -> None:
    run = Run(ZClip(max_norm=1.0))
    assert all(run.norm_after(norm) <= 1.0 + 1e-6 for norm in (50.0, 50.0, 2000.0, 0.5, 50.0))


def test_by_value_a_single_wild_element_is_clamped_and_the_rest_kept() -> None:
    run = Run(ZClip(by="value"))
    for _ in range(30):
        _, grads = run.at(1.0)
    usual = float(grads[0][0, 0])
    wild = [grad.clone() for grad in grads]
    wild[0][0, 0] = 100.0
    _, left = run.step(wild)
    assert float(left[0][0, 0]) < 2.0 * usual
    assert float(left[1][0]) == usual


def test_a_warm_up_that_has_no_effect_is_said() -> None:
    with pytest.warns(UserWarning, match="warmup=50 has no effect without original=True"):
        ZClip(warmup=50).check(Run(ZClip()).layout)
    ZClip().check(Run(ZClip()).layout)
    ZClip(warmup=50, original=True).check(Run(ZClip()).layout)


def test_a_zero_gradient_in_the_first_step_does_not_freeze_the_training() -> None:
    run = Run(ZClip())
    run.at(0.0)
    assert run.norm_after(5.0) == pytest.approx(5.0)
