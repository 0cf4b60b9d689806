"""Published rule sets, re-implemented from their thresholds, each told all that its own tool would see.

Sources: Amazon SageMaker Debugger's documentation of its built-in rules (defaults of 2023); AutoTrainer, Zhang et al.,
ICSE 2021; DeepDiagnosis, Wardat et al., ICSE 2022. What the sources leave open is read in favour of few false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .setup import Setup
from .tasks import accuracy_of, batches
from .training import Watcher


@dataclass
class Snapshot:
    """What the tools look at, at one step."""

    step: int
    loss: float
    accuracy: float | None
    finite: bool
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    activations: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # kind, input, output


class Recorder(Watcher):
    """Takes the snapshots of one run."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.snapshots: list[Snapshot] = []
        self._handles: list[RemovableHandle] = []
        self._activations: list[tuple[str, Tensor, Tensor]] = []
        self._examples = next(batches(setup, torch.Generator().manual_seed(7)))

    def before_forward(self, net: nn.Module) -> None:
        self._activations = []
        for module in net.modules():
            if isinstance(module, nn.ReLU | nn.Tanh | nn.Sigmoid | nn.GELU | nn.SiLU | nn.LeakyReLU):
                self._handles.append(module.register_forward_hook(self._look))

    def _look(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._activations.append((type(module).__name__, args[0].detach().float(), output.detach().float()))

    def after_backward(self, net: nn.Module, step: int, loss: float, x: Tensor, y: Tensor) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        gradients = {
            n: g.float()
            for n, p in net.named_parameters()
            if (g := _dense(p.grad)) is not None and not n.endswith("bias")
        }
        weights = {n: p.detach().clone() for n, p in net.named_parameters() if not n.endswith("bias")}
        finite = math.isfinite(loss) and all(bool(t.isfinite().all()) for t in (*gradients.values(), *weights.values()))
        accuracy = accuracy_of(self.setup, net, *self._examples)
        self.snapshots.append(Snapshot(step, loss, accuracy, finite, gradients, weights, self._activations))


def _dense(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else (grad.to_dense() if grad.is_sparse else grad).detach().clone()


@dataclass(frozen=True)
class PublishedRule:
    """A name, when it speaks up over the snapshots so far, and the faults it may be said to name."""

    name: str
    fires: Callable[[list[Snapshot]], bool]
    names: frozenset[str]


TOO_SMALL = {"initial scale too small", "sigmoid in a deep net", "missing normalization", "zero initialization"}
TOO_LARGE = {"initial scale too large", "missing normalization", "input not normalized", "exploding recurrence"}
FADING = frozenset(TOO_SMALL | {"vanishing recurrence", "fp16 underflow", "dead units by bias", "saturated activation"})
BLOWING = frozenset(TOO_LARGE | {"learning rate too high", "wrong sign of the loss"})
SLOW = frozenset({"learning rate too low", "clipping ceiling too low"})
STUCK = frozenset({"frozen by mistake", "detached branch"}) | SLOW


def _mean_abs(snapshot: Snapshot) -> list[float]:
    return [float(g.abs().mean()) for g in snapshot.gradients.values()]


def vanishing(seen: list[Snapshot]) -> bool:
    """Mean absolute gradient of some tensor below 1e-7 (SageMaker, DeepDiagnosis)."""
    return any(m < 1e-7 for m in _mean_abs(seen[-1]))


def exploding(seen: list[Snapshot]) -> bool:
    """NaN or infinity in any tensor."""
    return not seen[-1].finite


def dead_relu(seen: list[Snapshot]) -> bool:
    """A layer in which more than 50 % of the ReLUs are active in less than 1 % of the samples (SageMaker)."""
    for kind, _, output in seen[-1].activations:
        if kind == "ReLU":
            active = (output.flatten(1) > 0).float().mean(0)
            if float((active < 0.01).float().mean()) > 0.5:
                return True
    return False


def saturated(seen: list[Snapshot]) -> bool:
    """More than 50 % of a layer's units with less than 1 % of inputs inside the useful range (SageMaker)."""
    bounds = {"Tanh": (-9.4999, 9.4999), "Sigmoid": (-23.0, 16.99999)}
    for kind, before, _ in seen[-1].activations:
        if kind in bounds:
            low, high = bounds[kind]
            inside = ((before > low) & (before < high)).float().flatten(1).mean(0)
            if float((inside < 0.01).float().mean()) > 0.5:
                return True
    return False


def update_ratio(seen: list[Snapshot], low: float, high: float) -> int:
    """-1, 0 or 1: the weight change between two looks over the weights is below, inside or above."""
    if len(seen) < 2 or not (seen[-1].finite and seen[-2].finite):
        return 0
    ratios = [
        float((now - seen[-2].weights[name]).norm() / (seen[-2].weights[name].norm() + 1e-9))
        for name, now in seen[-1].weights.items()
    ]
    return 1 if max(ratios) > high else -1 if min(ratios) < low else 0


def unchanged(seen: list[Snapshot]) -> bool:
    """Some tensor the same over three looks in a row."""
    if len(seen) < 3:
        return False
    a, b, c = (s.weights for s in seen[-3:])
    return any(torch.allclose(a[n], b[n]) and torch.allclose(b[n], c[n]) for n in a)


def all_zero(seen: list[Snapshot]) -> bool:
    return any(not bool(g.any()) for g in seen[-1].gradients.values())


def poor_initialization(seen: list[Snapshot]) -> bool:
    """In the first ten steps: variances of layers' weights differ tenfold, or gradients span less than 0.001."""
    if seen[-1].step > 10 or not seen[-1].finite:
        return False
    variances = [float(w.var()) for w in seen[-1].weights.values() if w.dim() > 1]
    every = torch.cat([g.flatten() for g in seen[-1].gradients.values()])
    span = float(torch.quantile(every, 0.95) - torch.quantile(every, 0.05))
    return max(variances) > 10 * min(variances) or span < 1e-3


def loss_not_decreasing(seen: list[Snapshot]) -> bool:
    """Less than 0.1 % fall over ten steps (two looks)."""
    return len(seen) > 2 and seen[-1].loss > seen[-3].loss - 1e-3 * abs(seen[-3].loss)


SAGEMAKER = [
    PublishedRule("VanishingGradient", vanishing, FADING),
    PublishedRule("ExplodingTensor", exploding, BLOWING),
    PublishedRule("DeadRelu", dead_relu, frozenset({"dead units by bias", "zero initialization"})),
    PublishedRule("SaturatedActivation", saturated, frozenset({"saturated activation"})),
    PublishedRule(
        "WeightUpdateRatio",
        lambda s: update_ratio(s, 1e-8, 10.0) != 0,
        frozenset({"learning rate too high"}) | STUCK,
    ),
    PublishedRule("AllZero", all_zero, FADING | {"dead units by bias"}),
    PublishedRule("UnchangedTensor", unchanged, STUCK | FADING),
]
SAGEMAKER_ALL = [
    *SAGEMAKER,
    PublishedRule("PoorWeightInitialization", poor_initialization, frozenset(TOO_SMALL | TOO_LARGE | FADING)),
    PublishedRule("LossNotDecreasing", loss_not_decreasing, SLOW | BLOWING),
]


def _not_converging(seen: list[Snapshot]) -> bool:
    """AutoTrainer's gate: accuracy below 0.6; where there is none, a loss that fell by less than 40 %."""
    if not seen[-1].finite:
        return True
    if seen[-1].accuracy is not None:
        return max(s.accuracy or 0.0 for s in seen) < 0.6
    return seen[-1].loss > seen[0].loss - 0.4 * abs(seen[0].loss)


def _kernels(snapshot: Snapshot) -> list[float]:
    return [float(g.norm()) for g in snapshot.gradients.values() if g.dim() > 1]


def _at_the_end(fires: Callable[[list[Snapshot]], bool]) -> Callable[[list[Snapshot]], bool]:
    """AutoTrainer judges a run once it has been seen for a while, and only one that does not converge."""
    return lambda seen: (len(seen) >= 24 or not seen[-1].finite) and _not_converging(seen) and fires(seen)


def _vanishing_ends(seen: list[Snapshot]) -> bool:
    norms = _kernels(seen[-1])
    return len(norms) > 1 and norms[0] < 1e-4 and norms[0] < 1e-3 * norms[-1]


def _exploding_ends(seen: list[Snapshot]) -> bool:
    norms = _kernels(seen[-1])
    return not seen[-1].finite or (len(norms) > 1 and norms[0] > 70 * norms[-1])


def _dying(seen: list[Snapshot]) -> bool:
    every = torch.cat([g.flatten() for g in seen[-1].gradients.values()] or [torch.ones(1)])
    return float((every == 0).float().mean()) >= 0.7


def _oscillating(seen: list[Snapshot]) -> bool:
    accuracies = [s.accuracy for s in seen if s.accuracy is not None]
    swings = [max(accuracies[i : i + 3]) - min(accuracies[i : i + 3]) >= 0.03 for i in range(len(accuracies) - 2)]
    return bool(swings) and sum(swings) >= 0.2 * len(swings)


def _slow(seen: list[Snapshot]) -> bool:
    accuracies = [s.accuracy for s in seen if s.accuracy is not None]
    return bool(accuracies) and max(accuracies) - accuracies[0] < 0.01


AUTOTRAINER = [
    PublishedRule("vanish", _at_the_end(_vanishing_ends), FADING),
    PublishedRule("explode", _at_the_end(_exploding_ends), BLOWING),
    PublishedRule("dying ReLU", _at_the_end(_dying), frozenset({"dead units by bias", "zero initialization"})),
    PublishedRule("slow convergence", _at_the_end(_slow), SLOW | STUCK),
    PublishedRule("oscillation", _at_the_end(_oscillating), frozenset({"learning rate too high"})),
]


def _dead_share(seen: list[Snapshot]) -> bool:
    return any(float((o <= 0).float().mean()) >= 0.7 for k, _, o in seen[-1].activations if k == "ReLU")


def _saturated_inputs(seen: list[Snapshot]) -> bool:
    return any(
        float((i.abs() > 5).float().mean()) > 0.5 for k, i, _ in seen[-1].activations if k in ("Tanh", "Sigmoid")
    )


def _accuracy_stands(seen: list[Snapshot]) -> bool:
    """After a third of the run, accuracy is not above where it began; the loss where there is none."""
    if len(seen) < 10:
        return False
    if seen[-1].accuracy is not None:
        return max(s.accuracy or 0.0 for s in seen[3:]) <= (seen[0].accuracy or 0.0)
    return min(s.loss for s in seen[3:]) >= seen[0].loss


DEEPDIAGNOSIS = [
    PublishedRule("numerical error", exploding, BLOWING),
    PublishedRule("unchanged weights", unchanged, STUCK | FADING),
    PublishedRule("vanishing gradient", vanishing, FADING),
    PublishedRule("dead node", _dead_share, frozenset({"dead units by bias", "zero initialization"})),
    PublishedRule("saturated activation", _saturated_inputs, frozenset({"saturated activation"})),
    PublishedRule("accuracy not increasing", _accuracy_stands, SLOW | frozenset({"learning rate too high"})),
]

RULE_SETS = {
    "SageMaker Debugger, tensor rules": SAGEMAKER,
    "SageMaker Debugger, all": SAGEMAKER_ALL,
    "AutoTrainer": AUTOTRAINER,
    "DeepDiagnosis": DEEPDIAGNOSIS,
}


def judge(snapshots: list[Snapshot]) -> dict[str, str | None]:
    """For each rule set the rule that fired first, or ``None``."""
    verdicts: dict[str, str | None] = dict.fromkeys(RULE_SETS)
    for end in range(1, len(snapshots) + 1):
        for title, rules in RULE_SETS.items():
            if verdicts[title] is None:
                verdicts[title] = next((rule.name for rule in rules if rule.fires(snapshots[:end])), None)
    return verdicts
