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


def test_the_papers_rescaling_puts_an_element_above_the_bound_below_one_at_it() -> None:
    ours, paper = Run(MaxClip(0.5), layout_of([(3,)])), Run(MaxClip(0.5, original=True), layout_of([(3,)]))
    for run in (ours, paper):
        for _ in range(10):
            run.step([torch.tensor([2.0, 1.0, 1.0])])
    wild = [torch.tensor([8.0, 5.5, 2.0])]
    (cut,), (rescaled,) = ours.step(wild)[1], paper.step(wild)[1]
    assert cut.tolist() == [3.0, 3.0, 2.0]  # the mean of 2 and of 4, twice the bound
    assert float(rescaled[0]) > float(rescaled[1]) > float(rescaled[2])
    assert float(rescaled[0]) > 4.9  # the mean of 2 and 8: a spike raises the paper's bound at once


def test_a_tensor_that_has_seen_no_gradient_is_left_alone() -> None:
    run = Run(MaxClip(), layout_of([(2,), (2,)]))
    for _ in range(5):
        run.step([torch.ones(2), None])
    _, left = run.step([torch.ones(2), torch.tensor([70.0, 3.0])])
    assert left[1].tolist() == [70.0, 3.0]
