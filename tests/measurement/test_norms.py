import pytest
import torch

from lightning_gradguard.measurement.norms import Norms
from tests.measurement.test_measurement import GRADS, exact, sparse


def dense(*sizes):
    return [torch.randn(size) for size in sizes]


def assert_right(found, tensors):
    expected = [0.0 if tensor is None else exact(tensor) for tensor in tensors]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_second_call_measures_by_the_plan_of_the_first():
    norms = Norms()
    for _ in range(3):
        tensors = [*dense(3, 3, 3, 3, 5000, 20_000), None, *(make() for make in GRADS.values())]
        assert_right(norms(tensors), tensors)


CHANGES = {
    "one comes": lambda: [*dense(3, 3, 3, 3, 5000, 20_000), torch.ones(4)],
    "one goes": lambda: [None, *dense(3, 3, 3, 5000, 20_000)],
    "all go": lambda: [None] * 6,
    "a stacked one changes shape": lambda: dense(3, 4, 3, 3, 5000, 20_000),
    "a stacked one becomes sparse": lambda: [sparse(), *dense(3, 3, 3, 5000, 20_000)],
    "stacked ones become sparse": lambda: [*[sparse() for _ in range(4)], *dense(5000, 20_000)],
    "a single one becomes sparse": lambda: [*dense(3, 3, 3, 3), sparse(), torch.ones(20_000)],
    "a large one becomes sparse": lambda: [*dense(3, 3, 3, 3, 5000), sparse()],
    "a large one becomes small": lambda: dense(3, 3, 3, 3, 5000, 3),
    "a large one becomes uneven": lambda: dense(3, 3, 3, 3, 5000, 20_001),
    "a large one is not contiguous": lambda: [*dense(3, 3, 3, 3, 5000), torch.randn(2, 20_000)[:, ::2]],
    "a stacked one becomes float64": lambda: [torch.ones(3).double(), *dense(3, 3, 3, 5000, 20_000)],
    "all become float64": lambda: [tensor.double() for tensor in dense(3, 3, 3, 3, 5000, 20_000)],
    "all become half": lambda: [tensor.half() for tensor in dense(3, 3, 3, 3, 5000, 20_000)],
    "a stacked one becomes complex": lambda: [torch.randn(3, dtype=torch.complex64), *dense(3, 3, 3, 5000, 20_000)],
    "all become complex": lambda: [tensor * 1j for tensor in dense(3, 3, 3, 3, 5000, 20_000)],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_no_longer_fits_the_plan_is_planned_anew(change):
    norms = Norms()
    norms(dense(3, 3, 3, 3, 5000, 20_000))
    for _ in range(2):
        tensors = change()
        assert_right(norms(tensors), tensors)


def test_float64_stays_float64():
    tensors = [torch.full((3,), 1e200, dtype=torch.float64), torch.ones(2)]
    assert Norms()(tensors).dtype == torch.float64
    assert_right(Norms()(tensors[1:]), tensors[1:])


def test_many_scalars_are_measured():
    tensors = [torch.tensor(float(i)) for i in range(-3, 3)]
    assert Norms()(tensors).tolist() == Norms().largest(tensors).tolist() == [3.0, 2.0, 1.0, 0.0, 1.0, 2.0]
