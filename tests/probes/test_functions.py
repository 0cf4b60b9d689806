"""Activations, attention and losses that are applied as functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from lightning_gradguard.probes.activations import Probe
from lightning_gradguard.probes.functions import FunctionWatch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attend, self.head = (
            nn.Linear(8, 16),
            nn.MultiheadAttention(16, 2, batch_first=True),
            nn.Linear(16, 5),
        )
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(F.relu_(self.first(x)))
        x = torch.tanh(x + self.attend(x, x, x)[0])
        x = x.unsqueeze(1)  # one head
        x = F.scaled_dot_product_attention(x, 50 * x, x).squeeze(1)
        return self.head(x).mean(1)


def watched(net, x, loss):
    probe = Probe(net)
    probe.start(0)
    value = loss(net(x))
    probe.stop()
    return value, {stats.module: stats for stats in probe.take()}, probe.functions.take()


def test_functions_are_seen_beside_modules_wherever_they_are_applied():
    _, seen, _ = watched(Net(), torch.randn(4, 6, 8), lambda out: out.sum())
    kinds = {name: stats.kind for name, stats in seen.items()}
    assert kinds["relu()"] == "ReLU"
    assert kinds["act"] == "ReLU", "in an activation module it is that module's"
    assert kinds["tanh()"] == "Tanh"
    assert kinds["attend.softmax()"] == "Softmax"
    assert kinds["attention()"] == "Attention"
    assert len(seen) == 8
    assert seen["relu()"].dead == 0.0
    assert seen["attend.softmax()"].entropy == pytest.approx(1.0, abs=0.05)
    assert seen["attention()"].max_logit > 1.0


def test_the_same_score_for_all_is_no_probability_and_scores_from_a_sigmoid_are():
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])
    given = []
    for scores in (torch.full((4,), 0.3), torch.tensor([0.1, 0.9, 0.6, 0.2]), torch.tensor([-2.0, 3.0, 0.1, 0.5])):
        seen = FunctionWatch(lambda *_: None)
        seen.start()
        F.binary_cross_entropy_with_logits(scores, y)
        seen.stop()
        given += [loss.probabilities for loss in seen.take()]
    assert given == [False, True, False]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_operators_that_take_functions_run_while_it_looks():
    x = torch.randn(1, 1, 8, 4)

    def forward():
        shared = torch.cond(x.sum() > 0, torch.tanh, torch.sin, (x,))
        return flex_attention(shared, x, x)

    probe = Probe(nn.Linear(1, 1))
    expected = forward()
    probe.start(0)
    result = forward()
    probe.stop()
    assert torch.equal(result, expected)
    assert not probe.functions.part.gone


def test_looking_changes_no_bit_of_outputs_gradients_and_random_numbers():
    results = []
    for look in (False, True):
        torch.manual_seed(3)
        net, x, y = Net(), torch.randn(4, 6, 8), torch.tensor([0, 1, 2, 3])
        probe = Probe(net)
        if look:
            probe.start(0)
        loss = F.cross_entropy(F.dropout(net(x), 0.5), y)
        probe.stop()
        loss.backward()
        results.append((loss.detach(), [p.grad for p in net.parameters()], torch.rand(3)))
    (loss, grads, drawn), (loss2, grads2, drawn2) = results
    assert torch.equal(loss, loss2)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads2, strict=True))
    assert torch.equal(drawn, drawn2)


@pytest.mark.parametrize(
    ("loss", "kind", "twice"),
    [
        (lambda out: F.cross_entropy(out, torch.tensor([0, 1, 1, 3])), "cross-entropy", False),
        (lambda out: F.cross_entropy(out.softmax(1), torch.tensor([0, 1, 1, 3])), "cross-entropy", True),
        (lambda out: F.cross_entropy(out.softmax(0), torch.tensor([0, 1, 1, 3])), "cross-entropy", True),
        (lambda out: F.binary_cross_entropy_with_logits(out, torch.ones(4, 5)), "binary-cross-entropy", False),
        (lambda out: F.binary_cross_entropy_with_logits(out.sigmoid(), torch.ones(4, 5)), "binary-cross-entropy", True),
        (lambda out: F.mse_loss(out, torch.arange(20.0).reshape(4, 5)), "squared-error", False),
    ],
    ids=["logits", "softmax", "softmax along the batch", "binary logits", "sigmoid", "squares"],
)
def test_a_loss_says_what_it_was_given(loss, kind, twice):
    torch.manual_seed(0)
    value, _, (stats,) = watched(Net(), torch.randn(4, 6, 8) * 5, loss)
    assert stats.kind == kind
    assert stats.probabilities is twice
    assert stats.value == pytest.approx(float(value.detach()))


def test_the_baseline_is_what_the_best_constant_costs():
    target = torch.tensor([0, 1, 1, 1])
    _, _, (classes,) = watched(Net(), torch.randn(4, 6, 8), lambda out: F.cross_entropy(out, target))
    assert classes.baseline == pytest.approx(0.5623, abs=1e-3), "-(ln(1/4) + 3 ln(3/4)) / 4"
    numbers = torch.randn(4, 5)
    _, _, (squares,) = watched(Net(), torch.randn(4, 6, 8), lambda out: F.mse_loss(out, numbers))
    assert squares.baseline == pytest.approx(float(numbers.var(0).mean()))


@pytest.mark.parametrize("loss", [F.binary_cross_entropy_with_logits, F.mse_loss, F.cross_entropy])
def test_a_sum_over_the_batch_is_compared_with_that_of_the_best_constant(loss):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 6, 8)
    targets = torch.tensor([0, 1, 1, 3]) if loss is F.cross_entropy else torch.rand(4, 5)
    (mean,) = watched(net, x, lambda out: loss(out, targets))[2]
    (total,) = watched(net, x, lambda out: loss(out, targets, reduction="sum"))[2]
    assert total.value > 3 * mean.value
    assert total.value / total.baseline == pytest.approx(mean.value / mean.baseline)


def test_the_range_of_targets_is_kept_and_the_size_of_what_is_predicted():
    targets = torch.linspace(-3, 5, 20).reshape(4, 5)
    _, _, (stats,) = watched(Net(), torch.randn(4, 6, 8), lambda out: F.mse_loss(0 * out + 2, targets))
    assert (stats.target_low, stats.target_high, stats.given_rms) == (-3.0, 5.0, 2.0)


def test_a_mode_that_is_not_on_top_is_left_on_the_stack_and_looks_no_more():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Other(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    probe = Probe(Net())
    other = Other()
    probe.start(0)
    other.__enter__()
    probe.stop()
    assert not probe.functions.on
    other.__exit__(None, None, None)
    probe.functions.__exit__(None, None, None)


def test_a_compiled_function_runs_as_before():
    probe = Probe(Net())
    compiled = torch.compile(lambda z: torch.relu(z) * 2, backend="eager")
    probe.start(0)
    out = compiled(torch.tensor([-1.0, 2.0]))
    probe.stop()
    assert out.tolist() == [0.0, 4.0]


@pytest.mark.parametrize(
    "error",
    [
        lambda out, y: ((out - y) ** 2).mean(),
        lambda out, y: (y - out).square().mean(),
        lambda out, y: (lambda d: (d * d).mean())(out - y),
    ],
    ids=["power", "square", "product"],
)
def test_a_squared_error_that_is_written_by_hand_is_seen_as_one(error):
    net, x, y = nn.Linear(8, 2), torch.randn(16, 8), torch.randn(16, 2)
    value, _, (by_hand,) = watched(net, x, lambda out: error(out, y))
    _, _, (given,) = watched(net, x, lambda out: F.mse_loss(out, y))
    assert by_hand.value == pytest.approx(value.item())
    assert by_hand == given


def test_a_squared_error_that_is_summed_by_hand_is_compared_with_that_of_the_best_constant():
    net, x, y = nn.Linear(8, 2), torch.randn(16, 8), torch.randn(16, 2)
    (mean,) = watched(net, x, lambda out: F.mse_loss(out, y))[2]
    for times, loss in (
        (2, lambda out: ((out - y) ** 2).sum(1).mean()),
        (32, lambda out: ((out - y) ** 2).sum()),
    ):
        (summed,) = watched(net, x, loss)[2]
        assert summed.value == pytest.approx(times * mean.value)
        assert summed.baseline == pytest.approx(times * mean.baseline)


def test_nll_loss_tells_raw_outputs_from_log_probabilities():
    target = torch.tensor([0, 1, 1, 3])
    for given, raw in (
        (lambda out: out.log_softmax(1), False),
        (lambda out: out.softmax(1).log(), False),
        (lambda out: out, True),
        (lambda out: out.softmax(1), True),
        (lambda out: out.log_softmax(0), True),
    ):
        _, _, (stats,) = watched(Net(), torch.randn(4, 6, 8), lambda out, given=given: F.nll_loss(given(out), target))
        assert stats.raw is raw


def test_differences_that_are_no_error_are_not_taken_for_one():
    y = torch.randn(16, 2)
    for loss in (
        lambda out: (out - out.mean(0, keepdim=True)).square().mean(),
        lambda out: (out - 2 * out).square().mean(),
        lambda out: ((out - y) ** 3).mean(),
    ):
        assert watched(nn.Linear(8, 2), torch.randn(16, 8), loss)[2] is None


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_kl_div_tells_log_probabilities_from_what_is_none(reduction):
    taught = torch.randn(4, 5).softmax(1)
    for given, wrong in (
        (lambda out: out.log_softmax(1), (False, False)),
        (lambda out: out, (True, False)),
        (lambda out: out.softmax(1), (True, True)),
    ):
        for target in (taught, taught.log()):
            logs = target is not taught

            def loss(out, given=given, target=target, logs=logs):
                return F.kl_div(given(out), target, reduction=reduction, log_target=logs).sum()

            _, _, (stats,) = watched(nn.Linear(8, 5), torch.randn(4, 8) * 3, loss)
            assert (stats.raw, stats.probabilities) == wrong
            assert stats.kind == "kl-divergence" + ", log_target" * logs
            assert (stats.target_low, stats.target_high) == (target.min().item(), target.max().item())


def test_an_entropy_and_a_product_that_are_of_two_targets_are_no_divergence():
    one, other = torch.rand(4, 5), torch.rand(4, 5)
    assert (
        watched(nn.Linear(8, 5), torch.randn(4, 8), lambda out: (torch.xlogy(one, one) - other * out).sum())[2] is None
    )
    assert watched(nn.Linear(8, 5), torch.randn(4, 8), lambda out: (one.exp() * (other - out)).sum())[2] is None


@pytest.mark.parametrize("target", [torch.zeros(4, dtype=torch.long), torch.ones(4, 1)], ids=["classes", "shares"])
def test_cross_entropy_over_one_output_is_seen_as_such(target):
    _, _, (stats,) = watched(nn.Linear(8, 1), torch.randn(4, 8), lambda out: F.cross_entropy(out, target))
    assert (stats.kind, stats.alone, stats.value) == ("cross-entropy", True, None)


CLASSES = torch.tensor([0, 1, 1, 3])
ONE_HOT = F.one_hot(CLASSES, 5).float()


@pytest.mark.parametrize(
    "loss",
    [
        lambda out: -out.log_softmax(1).gather(1, CLASSES[:, None]).squeeze(1).mean(),
        lambda out: -out.log_softmax(1)[torch.arange(4), CLASSES].mean(),
        lambda out: -(out.log_softmax(1) * ONE_HOT).sum(1).mean(),
        lambda out: (-ONE_HOT * out.log_softmax(1)).sum() / 4,
        lambda out: F.cross_entropy(out, ONE_HOT),
    ],
    ids=["gather", "indices", "product", "sum of all", "shares of classes"],
)
def test_a_cross_entropy_that_is_written_by_hand_is_compared_with_the_best_constant(loss):
    net, x = nn.Linear(8, 5), torch.randn(4, 8)
    value, _, (by_hand,) = watched(net, x, loss)
    _, _, (given,) = watched(net, x, lambda out: F.cross_entropy(out, CLASSES))
    assert by_hand.value == pytest.approx(value.item())
    assert (by_hand.kind, by_hand.value) == (given.kind, pytest.approx(given.value))
    assert by_hand.baseline == pytest.approx(given.baseline)


def test_log_probabilities_that_are_picked_in_unusual_ways_do_not_take_the_looking_away():
    picks = (
        lambda out: out.log_softmax(1)[torch.arange(4), -CLASSES - 1].mean(),
        lambda out: out.log_softmax(1)[ONE_HOT > 0].mean(),
        lambda out: out.log_softmax(1)[torch.arange(4)].mean(),
        lambda out: out.log_softmax(1)[:, 0].mean(),
        lambda out: (out.log_softmax(1) * 2).sum(),
        lambda out: out.log_softmax(0).gather(0, torch.zeros(1, 5, dtype=torch.long)).sum(),
        lambda out: (out.log_softmax(1) * (ONE_HOT - 0.5)).sum(1).mean(),
    )
    for pick in picks:
        probe = Probe(nn.Linear(8, 5))
        probe.start(0)
        pick(probe.module(torch.randn(4, 8)))
        probe.stop()
        assert not probe.functions.part.gone


def test_log_probabilities_that_are_weighed_on_their_way_are_no_cross_entropy():
    advantage = torch.randn(4)
    for loss in (
        lambda out: -(out.log_softmax(1).gather(1, CLASSES[:, None]).squeeze(1) * advantage).mean(),
        lambda out: -(out.log_softmax(1) * out.softmax(1)).sum(1).mean(),
    ):
        assert watched(nn.Linear(8, 5), torch.randn(4, 8), loss)[2] is None


@pytest.mark.parametrize(
    ("loss", "constant"),
    [
        (F.l1_loss, lambda far: far),
        (lambda out, y: (y - out).abs().mean(), lambda far: far),
        (F.smooth_l1_loss, lambda far: torch.where(far < 1, far**2 / 2, far - 0.5)),
        (lambda out, y: F.smooth_l1_loss(out, y, beta=0.5), lambda far: torch.where(far < 0.5, far**2, far - 0.25)),
        (lambda out, y: F.huber_loss(out, y, delta=2.0), lambda far: torch.where(far < 2, far**2 / 2, 2 * far - 2)),
    ],
    ids=["l1_loss", "by hand", "smooth_l1_loss", "with beta", "huber_loss"],
)
def test_an_absolute_error_is_compared_with_that_of_the_median(loss, constant):
    net, x, y = nn.Linear(8, 2), torch.randn(15, 8), 2 * torch.randn(15, 2)
    value, _, (stats,) = watched(net, x, lambda out: loss(out, y))
    far = (y - y.median(0).values).abs()
    assert (stats.kind, stats.value) == ("absolute-error", pytest.approx(value.item()))
    assert stats.baseline == pytest.approx(constant(far).mean().item())
