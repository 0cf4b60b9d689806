from __future__ import annotations

import torch

from lightning_gradguard.clip.maxclip import MaxClip
from tests.clip.bench import Run, layout_of


def test_a_wild_element_is_cut_and_its_neighbours_are_kept() -> None:
    run = Run(MaxClip(), layout_of([(4,), (2,)]))
    usual = [torch.tensor([1.0, -0.5, 0.2, 0.1]), torch.tensor([0.01, 0.02])]
    for _ in range(20):
        run.step(usual)
    wild = [torch.tensor([1.0, -50.0, 0.2, 0.1]), usual[1]]
    _, left = run.step(wild)
    assert -1.1 < float(left[0][1]) < -1.0
    assert torch.equal(left[0][[0, 2, 3]], usual[0][[0, 2, 3]])
    assert torch.equal(left[1], usual[1])


def test_a_tensor_that_is_wild_as_a_whole_comes_down_to_about_its_usual_norm() -> None:
    run, generator = Run(MaxClip(), layout_of([(50, 50)])), torch.Generator().manual_seed(0)
    usual = [torch.randn(50, 50, generator=generator) for _ in range(20)]
    for grad in usual:
        run.step([grad])
    _, (left,) = run.step([usual[0] * 1000.0])
    assert float(left.norm()) < 1.2 * float(usual[0].norm())  # clamped, it would be 3 times as large
    cosine = torch.nn.functional.cosine_similarity(left.flatten(), usual[0].flatten(), dim=0)
    assert float(cosine) > 0.95  # and 0.8


def test_an_element_a_little_beyond_the_bound_ends_below_one_at_it() -> None:
    run = Run(MaxClip(0.5), layout_of([(3,)]))
    for _ in range(10):
        run.step([torch.tensor([2.0, 1.0, 1.0])])
    _, (left,) = run.step([torch.tensor([8.0, 4.0, 2.0])])
    assert left.tolist() == [3.0, 1.5, 2.0]  # the bound is the mean of 2 and of 4, twice the one before


def test_a_spike_raises_the_papers_bound_at_once() -> None:
    wild, left = [torch.tensor([8.0, 1.0])], {}
    for original in (False, True):
        run = Run(MaxClip(0.5, original=original), layout_of([(2,)]))
        for _ in range(10):
            run.step([torch.tensor([2.0, 1.0])])
        left[original] = float(run.step(wild)[1][0][0])
    assert left[False] == 3.0
    assert left[True] > 4.9  # the mean of 2 and 8


def test_a_tensor_that_has_seen_no_gradient_is_left_alone() -> None:
    run = Run(MaxClip(), layout_of([(2,), (2,)]))
    for _ in range(5):
        run.step([torch.ones(2), None])
    _, left = run.step([torch.ones(2), torch.tensor([70.0, 3.0])])
    assert left[1].tolist() == [70.0, 3.0]
