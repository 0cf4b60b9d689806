"""Where a non-finite value began: the right module, the right operator, and nothing changed."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_gradguard.incident.locate import localise, place_from_gradients


class Op(nn.Module):
    """A layer that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / torch.zeros_like(grad)


def stack(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), middle, nn.Linear(8, 3))


def step(module, batch):
    x, y = batch
    return F.cross_entropy(module(x), y)


def make_batch():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1])


FORWARD = {
    "log of a negative number": (lambda x: (x - 2).log(), "aten.log.default", "nan"),
    "log of zero": (lambda x: (x * 0).log(), "aten.log.default", "inf"),
    "exp overflows": (lambda x: (x.abs() * 1e5 + 100).exp(), "aten.exp.default", "inf"),
    "division by zero": (lambda x: x / (x * 0), "aten.div.Tensor", "inf"),
    "root of a negative number": (lambda x: (x - 2).sqrt(), "aten.sqrt.default", "nan"),
    "in place": (lambda x: (x - 2).log_(), "aten.log_.default", "nan"),
    "into a slice": (lambda x: torch.zeros_like(x).index_fill(0, torch.tensor([0]), 1e30) ** 2 + x, "aten.pow", "inf"),
    "half precision overflows": (lambda x: (x.abs() * 1e6 + 1e5).half().float(), "aten._to_copy.default", "inf"),
    "arithmetic with an infinite constant": (lambda x: x + float("inf"), "aten.add.Tensor", "inf"),
    "deviation of one element": (lambda x: x + x[:1].std(0), "aten.std.correction", "nan"),
}


@pytest.mark.parametrize(("function", "operator", "kind"), FORWARD.values(), ids=FORWARD)
@pytest.mark.filterwarnings("ignore:std")
def test_the_operator_of_the_forward_pass_is_named(function, operator, kind):
    found = localise(stack(Op(function)), step, make_batch())
    assert found.found
    assert (found.phase, found.module) == ("forward", "2")
    call = found.origin.call
    assert call.operator.startswith(operator)
    assert "in <lambda>" in call.source
    assert bool(call.output.nan) == (kind == "nan")
    assert bool(call.output.inf) == (kind == "inf")
    assert not any(given.nan or given.inf for given in call.inputs)


BACKWARD = {
    "root of zero": (lambda x: (x * 0).sqrt(), "SqrtBackward0"),
    "power of zero": (lambda x: (x * 0).abs().pow(0.5), "PowBackward0"),
    "norm of zero": (lambda x: x + (x * 0).square().sum(1, keepdim=True).sqrt(), "SqrtBackward0"),
    "own function": (BadBackward.apply, "BadBackwardBackward"),
}


@pytest.mark.parametrize(("function", "node"), BACKWARD.values(), ids=BACKWARD)
def test_the_operator_of_the_backward_pass_is_named_with_the_module_it_belongs_to(function, node):
    found = localise(stack(Op(function)), step, make_batch())
    assert (found.phase, found.module) == ("backward", "2")
    assert found.origin.call.node == node
    assert "in <lambda>" in found.origin.call.source or node == "BadBackwardBackward"
    assert found.bad_gradients == ("0.weight", "0.bias")
    assert torch.isfinite(torch.tensor(found.loss))


def test_what_a_hook_on_an_activation_does_belongs_to_the_module_that_made_it():
    def hooked(x):
        y = x * 1.0
        y.register_hook(lambda grad: grad / (grad * 0))
        return y

    found = localise(stack(Op(hooked)), step, make_batch())
    assert (found.phase, found.module) == ("backward", "2")


def test_an_infinity_that_becomes_a_nan_later_is_named_twice():
    found = localise(stack(Op(lambda x: (x.abs() * 1e5 + 100).exp())), step, make_batch())
    assert found.origin.call.operator == "aten.exp.default"
    assert (found.turned_nan.operator, found.turned_nan.module) == ("aten.addmm.default", "3")
    assert "became NaN in aten.addmm.default" in str(found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["batch", "parameter", "buffer"])
def test_what_was_bad_before_the_step_is_named_with_its_first_use(place, value):
    net = stack(nn.BatchNorm1d(8))
    x, y = make_batch()
    if place == "batch":
        x[1, 2] = value
    elif place == "parameter":
        with torch.no_grad():
            net[3].bias[1] = value
    else:
        net.eval()
        net[2].running_mean[0] = value
    found = localise(net, step, (x, y))
    if place == "buffer" and value == -float("inf"):  # as an attention mask has it: the first NaN is named instead
        assert (found.phase, found.origin.call.output.nan > 0) == ("forward", True)
        return
    assert found.phase == place
    assert found.origin.name == {"batch": "batch[0]", "parameter": "3.bias", "buffer": "2.running_mean"}[place]
    assert found.module == {"batch": "0", "parameter": "3", "buffer": "2"}[place]
    assert place in str(found)


def test_a_part_that_cannot_be_looked_into_is_named_where_it_may_be_the_cause():
    rows, y = make_batch()
    rows[2, 1] = float("nan")
    found = localise(
        stack(nn.Identity()), lambda m, b: step(m, (next(b["rows"]), b["y"])), {"rows": iter([rows]), "y": y}
    )
    assert (
        "made before the step, or in batch['rows'] (list_iterator), which could not be looked into" in found.origin.name
    )


def test_the_loss_is_named_as_the_training_step():
    found = localise(stack(nn.Identity()), lambda m, b: (m(b[0]) * 0).log().mean(), make_batch())
    assert (found.phase, found.module) == ("forward", "")
    assert "the training step itself" in str(found)


def test_a_healthy_step_finds_nothing():
    found = localise(stack(nn.BatchNorm1d(8)), step, make_batch())
    assert not found.found
    assert (found.module, found.phase, found.error) == (None, None, None)
    assert "finite" in str(found)


class Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.register_buffer("mask", mask)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x, src_mask=self.mask).mean(1))


def attend(x, mask):
    return torch.softmax(x @ x.transpose(1, 2) + mask, -1) @ x


def test_an_attention_mask_of_minus_infinity_is_not_taken_for_a_fault():
    torch.manual_seed(0)
    net = Masked(torch.full((5, 5), float("-inf")).triu(1))
    batch = (torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0]))
    assert not localise(net, step, batch).found
    found = localise(net, lambda m, b: step(m, b) + (b[0].mean() * 0).log(), batch)
    assert found.origin.call.operator == "aten.log.default"


@pytest.mark.parametrize("how", ["full", "masked_fill", "where", "buffer"])
def test_a_fully_masked_row_is_blamed_on_the_softmax(how):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((5, 5), float("-inf")))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            if how == "full":
                mask = torch.full((5, 5), float("-inf"))
            elif how == "masked_fill":
                mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5, dtype=torch.bool), float("-inf"))
            elif how == "where":
                mask = torch.where(torch.ones(5, 5, dtype=torch.bool), float("-inf"), 0.0)
            else:
                mask = self.mask
            return attend(x * self.scale, mask)

    found = localise(nn.Sequential(Attention()), lambda m, x: m(x).mean(), torch.randn(2, 5, 4))
    assert (found.module, found.origin.call.operator) == ("0", "aten._softmax.default")


def test_an_infinite_constant_that_reaches_the_loss_is_named_after_all():
    found = localise(stack(Op(lambda x: x.fill_(float("inf")))), lambda m, b: m[:3](b[0]).mean(), make_batch())
    assert (found.module, found.origin.call.operator) == ("2", "aten.fill_.Scalar")


def test_a_bad_value_that_is_thrown_away_is_not_blamed():
    def harmless(x):
        (x - 2).log()
        return x

    found = localise(stack(nn.Sequential(Op(harmless), Op(lambda x: (x * 0).log()))), step, make_batch())
    assert found.module == "2.1"


def test_activation_checkpointing_keeps_forward_and_backward_apart():
    class Checkpointed(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), Op(function))

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    found = localise(stack(Checkpointed(lambda x: (x * 0).sqrt())), step, make_batch())
    assert (found.phase, found.module) == ("backward", "2.inner.1")
    found = localise(stack(Checkpointed(lambda x: (x - 2).log())), step, make_batch())
    assert (found.phase, found.module) == ("forward", "2.inner.1")


def test_compiled_modules_run_in_eager_mode_under_their_own_names():
    net = stack(Op(lambda x: (x - 2).log()))
    net[2] = torch.compile(net[2], backend="eager")
    assert localise(net, step, make_batch()).module == "2"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_bad_weight_inside_a_recurrent_layer_is_named(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(4, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    net = Net()
    with torch.no_grad():
        net.rnn.weight_hh_l0[0, 0] = float("nan")
    found = localise(net, step, (torch.randn(3, 7, 4), torch.tensor([0, 1, 2])))
    assert (found.origin.name, found.module) == ("rnn.weight_hh_l0", "rnn")


def test_the_loss_scale_is_what_makes_half_precision_gradients_overflow():
    net = stack(nn.Linear(8, 8))
    context = torch.autocast("cpu", dtype=torch.float16)
    assert not localise(net, step, make_batch(), context=context).found
    found = localise(net, step, make_batch(), loss_scale=2.0**24, context=torch.autocast("cpu", dtype=torch.float16))
    assert found.phase == "backward"
    assert found.origin.call.output.dtype == "float16"


def test_values_near_the_end_of_the_dtype_are_listed_before_the_fault():
    net = stack(Op(lambda x: ((x.half() * 0 + 3e4) * 4).float()))
    found = localise(net, step, make_batch())
    assert found.origin.call.operator == "aten.mul.Tensor"
    near = found.near_limit[-1]
    assert (near.module, near.dtype, near.largest) == ("2", "float16", 30000.0)
    assert near.fraction == pytest.approx(30000 / 65504)
    assert all(extreme.index < found.origin.call.index for extreme in found.near_limit)


def test_the_trail_holds_the_last_results_before_the_fault_oldest_first():
    found = localise(stack(Op(lambda x: (x - 2).log())), step, make_batch())
    trail = found.origin.trail
    assert [extreme.operator for extreme in trail[-2:]] == ["aten.tanh.default", "aten.sub.Tensor"]
    assert [extreme.index for extreme in trail] == sorted(extreme.index for extreme in trail)


def test_a_step_that_raises_says_so_and_still_names_the_place():
    def raising(module, batch):
        out = module(batch[0])
        assert out.isfinite().all(), "not finite"
        return out.mean()

    found = localise(stack(Op(lambda x: (x - 2).log())), raising, make_batch())
    assert found.module == "2"
    assert "AssertionError: not finite" in found.error


class Stateful(nn.Module):
    """Everything a step may change: statistics, dropout, counters, lists, in-place tensors, its batch, its weights."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), Op(lambda x: (x - 9).log()))
        self.head = nn.Linear(8, 3)
        self.calls = 0
        self.seen = []
        self.total = torch.zeros(())
        self.history = [torch.zeros(2)]
        self.logged = []

    def log(self, name, value):
        self.logged.append(name)

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.total += 1
        self.history[0].add_(1)
        self.fresh = random.random()
        x.mul_(2.0)
        with torch.no_grad():
            self.head.bias.add_(1.0)
        self.log("loss", 1.0)
        return self.head(self.net(x))


def test_nothing_in_the_run_is_changed():
    net = Stateful()
    batch = make_batch()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    grads = [parameter.grad for parameter in net.parameters()]
    before = copy.deepcopy({**net.state_dict(), "x": batch[0]})
    torch.manual_seed(7)
    random.seed(7)
    expected = torch.rand(3), random.random()
    torch.manual_seed(7)
    random.seed(7)

    assert localise(net, step, batch).module == "net.3"

    assert (torch.rand(3) == expected[0]).all()
    assert random.random() == expected[1]
    after = {**net.state_dict(), "x": batch[0]}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is grad for parameter, grad in zip(net.parameters(), grads, strict=True))
    assert all((grad == 0.5).all() for grad in grads)
    assert (net.calls, net.seen, float(net.total), net.logged) == (0, [], 0.0, [])
    assert (net.history[0] == 0).all()
    assert not hasattr(net, "fresh")
    assert "log" not in net.__dict__
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_the_state_before_the_step_is_what_the_step_runs_from():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    seen = []

    def peek(module, x):
        seen.append((float(module[1].running_mean[0]), torch.rand(1).item()))
        return module(x).mean()

    torch.manual_seed(3)
    rng = {"torch": torch.get_rng_state(), "random": random.getstate()}
    expected = torch.rand(1).item()
    localise(net, peek, torch.randn(4, 2), rng=rng, buffers={"1.running_mean": torch.full((2,), 5.0)})
    assert seen == [(5.0, expected)]
    assert float(net[1].running_mean[0]) == 0.0


def test_no_hook_that_reduces_gradients_between_processes_fires():
    net = stack(Op(lambda x: (x * 0).sqrt()))
    fired = []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: fired.append(p))
    assert localise(net, step, make_batch()).phase == "backward"
    assert fired == []
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "no layer"),
        (["a", "b", "c", "d"], "the forward pass or the loss"),
        (["a", "b"], "between 'b' and 'c'"),
        (["a"], "between 'a' and 'b'"),
        (["c"], "only 'c'"),
        (["b", "d"], "several branches"),
    ],
)
def test_the_list_of_bad_layers_alone_tells_the_place(bad, words):
    assert words in place_from_gradients(["a", "b", "c", "d"], bad)


@pytest.mark.parametrize("layer", [0, 1])
def test_statistics_that_the_bad_step_itself_has_spoiled_are_not_taken_for_the_cause(layer):
    torch.manual_seed(0)
    net = nn.Sequential(Op(lambda x: (x - 9).log()), nn.BatchNorm1d(4), nn.Linear(4, 3))
    if layer:
        net = nn.Sequential(nn.BatchNorm1d(4), *net)
    clean = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net(make_batch()[0])
    assert not all(buffer.isfinite().all() for buffer in net.buffers())
    found = localise(net, step, make_batch(), buffers=clean)
    assert (found.phase, found.module) == ("forward", str(layer))
    assert len(found.bad_buffers) == 2


@pytest.mark.parametrize("place", ["batch", "parameter", "operator"])
def test_a_finite_value_whose_square_overflows_is_the_first_near_the_limit(place):
    net = stack(Op(lambda x: x * 0 + 1e30) if place == "operator" else nn.Identity())
    x, y = make_batch()
    if place == "batch":
        x[0, 0] = 1e30
    elif place == "parameter":
        with torch.no_grad():
            net[0].weight[0, 0] = 1e30
    found = localise(net, step, (x, y))
    first = found.near_limit[0]
    expected = {"batch": ("", "batch batch[0]"), "parameter": ("0", "parameter 0.weight")}
    assert (first.module, first.operator) == expected.get(place, ("2", "aten.add.Tensor"))
    assert first.largest == pytest.approx(1e30)


def test_a_batch_of_objects_that_refer_to_each_other_has_an_end():
    class Node:
        def __init__(self):
            self.x = torch.full((2, 4), float("nan"))
            self.next = self

    net = nn.Linear(4, 1)
    found = localise(net, lambda m, node: m(node.x).mean(), Node())
    assert found.origin.name.startswith("batch.")
    assert found.origin.name.endswith("x")


def test_eight_bit_floats_are_looked_at_too():
    net = stack(Op(lambda x: x + (x.detach() * 1e6).to(torch.float8_e5m2).float()))
    found = localise(net, step, make_batch())
    assert found.origin.call.output.dtype == "float8_e5m2"
