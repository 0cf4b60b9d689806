from __future__ import annotations

import pytest
import torch

from lightning_gradguard.clip.adagc import AdaGC
from tests.clip.bench import SHAPES, Run


def ones(*levels: float) -> list[torch.Tensor]:
    """A gradient for each tensor with this norm."""
    return [
        torch.full(shape, level / torch.Size(shape).numel() ** 0.5) for level, shape in zip(levels, SHAPES, strict=True)
    ]


def test_a_spike_in_one_tensor_leaves_the_others_alone() -> None:
    run = Run(AdaGC(warmup=5))
    for _ in range(10):
        run.step(ones(0.1, 0.2, 0.3))
    _, left = run.step(ones(0.1, 50.0, 0.3))
    assert [round(float(grad.norm()), 3) for grad in left] == [0.1, 0.21, 0.3]


@pytest.mark.parametrize("original", [False, True], ids=["ours", "paper"])
def test_a_tensor_whose_gradient_was_zero_in_the_warm_up_trains_afterwards(original: bool) -> None:
    run = Run(AdaGC(warmup=5, original=original))
    for _ in range(3):
        run.step(ones(0.1, 0.0, 0.3))
    for _ in range(10):
        _, left = run.step(ones(0.1, 0.2, 0.3))
    assert float(left[1].norm()) == pytest.approx(0.2)


def test_a_tensor_whose_gradient_is_often_zero_is_not_clipped_to_nothing() -> None:
    run = Run(AdaGC(warmup=5))
    for step in range(200):
        _, left = run.step(ones(0.1, 0.0 if step % 4 else 0.2, 0.3))
    _, left = run.step(ones(0.1, 0.2, 0.3))
    assert float(left[1].norm()) == pytest.approx(0.2)


def test_a_gradient_that_first_arrives_after_the_warm_up_is_kept() -> None:
    run = Run(AdaGC(warmup=5))
    for _ in range(10):
        first, _, last = ones(0.1, 0.0, 0.3)
        run.step([first, None, last])
    _, left = run.step(ones(0.1, 0.2, 0.3))
    assert float(left[1].norm()) == pytest.approx(0.2)


def test_the_warm_up_clips_the_total_norm() -> None:
    run = Run(AdaGC(warmup=5))
    assert run.norm_after(10.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("original", "left_of_it"), [(False, 0.0105), (True, 0.5)], ids=["ours", "paper"])
def test_an_explosion_below_the_ceiling_of_the_warm_up(original: bool, left_of_it: float) -> None:
    run = Run(AdaGC(original=original))
    for _ in range(3):
        run.step(ones(0.01, 0.01, 0.01))
    _, left = run.step(ones(0.5, 0.01, 0.01))
    assert float(left[0].norm()) == pytest.approx(left_of_it, rel=1e-4)


@pytest.mark.parametrize(("original", "kept"), [(False, True), (True, False)], ids=["ours", "paper"])
def test_one_small_step_in_the_warm_up_does_not_hold_down_the_steps_after_it(original: bool, kept: bool) -> None:
    run = Run(AdaGC(warmup=50, original=original))
    for step in range(50):
        run.step(ones(0.1, 0.2, 0.01 if step == 10 else 0.3))
    _, left = run.step(ones(0.1, 0.2, 0.3))
    assert (float(left[2].norm()) == pytest.approx(0.3)) == kept


def test_the_papers_average_takes_thousands_of_steps_to_follow_a_rise() -> None:
    ours, paper = Run(AdaGC(warmup=5)), Run(AdaGC(warmup=5, original=True))
    for run in (ours, paper):
        for level in [0.1] * 20 + [1.0] * 300:
            _, left = run.step(ones(level, level, level))
    assert float(left[0].norm()) < 0.2
    assert float(ours.step(ones(1.0, 1.0, 1.0))[1][0].norm()) == pytest.approx(1.0)
