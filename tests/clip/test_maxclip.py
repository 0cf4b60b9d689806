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
    grads = [torch.tensor([2.0, 0.5]), torch.tensor([4.0, 2.5])]
    ours, paper = Run(MaxClip(decay=0.5), layout_of([(2,)])), Run(MaxClip(0.5, original=True), layout_of([(2,)]))
    for run in (ours, paper):
        run.step([grads[0]])
    (cut,), (rescaled,) = ours.step([grads[1]])[1], paper.step([grads[1]])[1]
    bound = (0.5 * 0.5 * 2.0 + 0.5 * 4.0) / 0.75
    assert torch.allclose(cut, torch.tensor([bound, 2.5]))
    assert torch.allclose(rescaled, torch.tensor([bound, 2.5]))  # 2.5 lies below the bound
    (cut,), (rescaled,) = ours.step([torch.tensor([8.0, 7.0])])[1], paper.step([torch.tensor([8.0, 7.0])])[1]
    assert cut[0] == cut[1]
    assert rescaled[1] < rescaled[0]


def test_a_tensor_that_has_seen_no_gradient_is_left_alone() -> None:
    run = Run(MaxClip(), layout_of([(2,), (2,)]))
    for _ in range(5):
        run.step([torch.ones(2), None])
    _, left = run.step([torch.ones(2), torch.tensor([70.0, 3.0])])
    assert left[1].tolist() == [70.0, 3.0]
