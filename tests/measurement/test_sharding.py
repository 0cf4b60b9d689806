import inspect

import pytest
import torch
from torch import nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.sharded import Sharded
from lightning_gradguard.measurement.sharding import Sharding, Whole, is_distributed, local, num_processes


def layout():
    net = nn.Linear(3, 2)
    net.weight.grad = torch.ones(2, 3)
    return Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_without_processes_everything_is_whole_and_stays_what_it_was():
    own = layout()
    assert isinstance(own.sharding, Whole) and own.sharding.whole
    assert isinstance(own.subset([1]).sharding, Whole)
    numbers = torch.tensor([1.0, 2.0])
    for answer in (own.sharding.sum(numbers), own.sharding.norms(numbers, 3.0), own.sharding.largest(numbers)):
        assert answer is numbers
    assert own.sharding.any(numbers > 1.0).tolist() == [False, True]


def test_what_a_whole_layout_holds_is_its_own():
    own = layout()
    grads = own.sharding.gradients(own.params)
    assert grads[0] is own.params[0].grad and grads[1] is None
    assert own.sharding.present(own.params, grads) == (True, False)
    assert own.sharding.has_gradients(own.params) and not own.sharding.has_gradients(own.params[1:])
    assert all(value is parameter for value, parameter in zip(own.values(), own.params, strict=True))
    assert own.shapes == ((2, 3), (2,))


@pytest.mark.parametrize("kind", [Whole, Sharded])
def test_both_kinds_answer_every_question_and_no_other_one_is_asked(kind):
    questions = {name for name, value in vars(Sharding).items() if getattr(value, "__isabstractmethod__", False)}
    assert questions <= set(vars(kind))
    for name in questions - {"whole"}:
        asked, answered = (inspect.signature(getattr(cls, name)).parameters for cls in (Sharding, kind))
        assert list(asked) == list(answered)


def test_alone_a_process_asks_nobody():
    assert num_processes() == 1


def test_what_is_local_of_a_plain_tensor_is_the_tensor_without_its_history():
    parameter = nn.Parameter(torch.ones(2))
    assert not is_distributed(parameter)
    assert not local(parameter).requires_grad
    assert local(parameter).data_ptr() == parameter.data_ptr()
