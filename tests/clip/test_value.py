from __future__ import annotations

import torch

from lightning_gradguard.clip.apply import after, cosine, is_clipped
from lightning_gradguard.clip.value import ValueClip
from tests.clip.bench import Run, layout_of


def test_it_turns_the_gradient_and_the_cosine_says_by_how_much() -> None:
    run = Run(ValueClip(0.5), layout_of([(2,)]))
    measurement = run.measure([torch.tensor([3.0, 0.4])])
    clip = run.policy.decide(measurement, run.state)
    degrees = torch.rad2deg(torch.acos(cosine(measurement, after(measurement, clip))))
    assert abs(float(degrees) - 31.1) < 0.1  # atan(0.4 / 0.5) - atan(0.4 / 3)


def test_complex_elements_are_cut_by_magnitude() -> None:
    run = Run(ValueClip(1.0), layout_of([(3,)], torch.complex64))
    _, (left,) = run.step([torch.tensor([3 + 4j, 0.3 + 0.4j, 0j])])
    assert torch.allclose(left, torch.tensor([0.6 + 0.8j, 0.3 + 0.4j, 0j]))


def test_sparse_gradients_are_clamped_where_they_are() -> None:
    run = Run(ValueClip(1.0), layout_of([(4, 2)]))
    rows = torch.tensor([[3.0, 0.5], [-2.0, 0.0]])
    run.layout.params[0].grad = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), rows, (4, 2), check_invariants=True)
    grad = run.layout.params[0].grad
    measurement = run.measure([grad])
    clip = run.policy.decide(measurement, run.state)
    assert is_clipped(measurement, clip)
    _, (left,) = run.step([grad])
    assert left.is_sparse
    assert left.to_dense().tolist() == [[1.0, 0.5], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
