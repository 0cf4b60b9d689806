"""The first remedy of a finding, carried out by itself: as a change of the recipe, whatever the recipe is.

A remedy is known by the words that it begins with, and numbers are read from the finding's evidence. What needs
somebody who reads the code (a ``detach()`` to be found, a loss to be written anew) is not applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.record import Finding

from . import mistakes as m
from .recipe import Batch, Recipe

Cure = Callable[[Recipe, Finding], Recipe | None]


def cured(recipe: Recipe, finding: Finding) -> Recipe | None:
    """The recipe after the first remedy; ``None`` where it cannot be applied by itself."""
    text = finding.remedies[0] if finding.remedies else ""
    cure = next((cure for words, cure in CURES.items() if text.startswith(words)), None)
    return cure(recipe, finding) if cure else None


def _lower(recipe: Recipe, finding: Finding) -> Recipe | None:
    return _times(recipe, finding, lambda by: 1 / by)


def _raise(recipe: Recipe, finding: Finding) -> Recipe | None:
    if _rate(recipe) == 0:
        return None  # zero times a factor is zero: the user must choose
    return _times(recipe, finding, lambda by: by)


def _times(recipe: Recipe, finding: Finding, factor: Callable[[float], float]) -> Recipe | None:
    """The rate by the number in the remedy, of the optimizer that it names; without a number the user must choose."""
    found = re.search(r"by about ([\d.e+]+)×(?:, that of optimizer (\d+))?", finding.remedies[0])
    if found is None:
        return None
    by, which = factor(float(found[1])), None if found[2] is None else int(found[2])
    return m.rate(by, which)(recipe)


def _rate(recipe: Recipe) -> float:
    return m.listed(recipe.optimizer(recipe.model()))[0].param_groups[0]["lr"]


def _unfreeze(recipe: Recipe, finding: Finding) -> Recipe:
    """Only what the finding names."""
    return m.weights(lambda name, p: p.requires_grad_() if _is_named(name, finding) else None)(recipe)


def _minimize(recipe: Recipe, finding: Finding) -> Recipe:
    """``maximize=True`` off where it is on; the sign of the loss turned where it is not."""
    if not m.listed(recipe.optimizer(recipe.model()))[0].param_groups[0].get("maximize"):
        return replace(recipe, loss=lambda net, batch: -recipe.loss(net, batch), metric=recipe.metric or recipe.loss)

    return _groups(recipe, lambda group: group.update(maximize=False))


def _groups(recipe: Recipe, change: Callable[[dict[str, Any]], Any]) -> Recipe:
    """Something done to each parameter group."""

    def build(net: nn.Module) -> list[Optimizer]:
        optimizers = m.listed(recipe.optimizer(net))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                change(group)
        return optimizers

    return replace(recipe, optimizer=build)


def _standardize(recipe: Recipe, finding: Finding) -> Recipe | None:
    """Zero mean and unit variance of every feature of the tensor that is named, or of the first one."""
    return _scaled(recipe, _named(finding, "enters the net"), by_feature=True)


def _named(finding: Finding, what: str) -> int:
    """The place in the batch of a tensor that a message names, as "(2 of the batch)"; else that of the first."""
    found = re.search(r"\((\d+) of the batch\)", finding.message) if what in finding.message else None
    return int(found[1]) if found else 0


def _scaled(recipe: Recipe, place: int, *, by_feature: bool = False) -> Recipe | None:
    """One tensor of the batch at zero mean and unit variance, by what the first training batches hold."""
    generator = torch.Generator().manual_seed(77)
    drawn = [recipe.data(generator, True) for _ in range(20)]
    if not isinstance(drawn[0], tuple | list) or len(drawn[0]) <= place:
        return None
    if not (isinstance(drawn[0][place], Tensor) and drawn[0][place].is_floating_point()):
        return None
    x = torch.cat([batch[place] for batch in drawn])
    of_each = by_feature and x.dim() == 2 and x.shape[1] <= 16  # a table has features, an image has pixels
    mean, std = (x.mean(0), x.std(0)) if of_each else (x.mean(), x.std())

    def scaled(batch: Batch) -> Batch:
        return (*batch[:place], (batch[place] - mean) / (std + 1e-12), *batch[place + 1 :])

    return m.batches(scaled)(recipe)


_OWN = 1 / 3  # of all weights, from which matrices of the user's own are too many for a remedy without a reader


def _initialize(recipe: Recipe, finding: Finding) -> Recipe | None:
    if _share_of_own(recipe.model()) > _OWN:
        return None  # what these matrices are for stands in the code

    def start(net: nn.Module) -> None:
        for part in net.modules():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part.weight.requires_grad:
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=0.3)
            elif isinstance(part, nn.RNNBase):
                part.reset_parameters()

    return m.model(start)(recipe)


def _as_drawn(recipe: Recipe, finding: Finding) -> Recipe | None:
    if _share_of_own(recipe.model()) > _OWN:
        return None

    def start(net: nn.Module) -> None:
        for part in net.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()

    return m.model(start)(recipe)


def _share_of_own(net: nn.Module) -> float:
    """How much of the weights is in matrices that modules of the user's hold themselves."""
    own = [part for part in net.modules() if not type(part).__module__.startswith("torch.nn.modules.")]
    own += [part for part in net.modules() if isinstance(part, nn.ParameterList | nn.ParameterDict)]
    matrices = {id(p): p.numel() for part in own for p in part.parameters(recurse=False) if p.dim() > 1}
    return sum(matrices.values()) / max(1, sum(p.numel() for p in net.parameters()))


def _from_zero(recipe: Recipe, finding: Finding) -> Recipe:
    """Only what the finding names: weights at random, as large as the layer is wide; biases stay at zero."""

    def start(name: str, p: Tensor) -> None:
        if _is_named(name, finding) and not name.endswith("bias"):
            nn.init.normal_(p, std=(p.shape[-1] if p.dim() > 1 else len(p)) ** -0.5)

    return m.weights(start)(recipe)


def _scales_from_zero(recipe: Recipe, finding: Finding) -> Recipe:
    return m.weights(lambda name, p: p.fill_(0.1) if _is_named(name, finding) else None)(recipe)


def _is_named(name: str, finding: Finding) -> bool:
    """Whether a parameter belongs to a layer that is named; those of the net itself have a name without a dot."""
    layers = [layer for layer in finding.layers if layer != "net"]
    own = len(layers) < len(finding.layers) and "." not in name
    return own or f"net.{name}.".startswith(tuple(f"{layer}." for layer in layers))


def _one_from_zero(recipe: Recipe, finding: Finding) -> Recipe:
    """Of each two matrices that can be multiplied the first is drawn at random."""

    def start(net: nn.Module) -> None:
        left = [p for name, p in net.named_parameters() if _is_named(name, finding) and p.dim() == 2]
        while left:
            first = left.pop(0)
            fits = [p for p in left if p.shape[0] == first.shape[1] or p.shape[1] == first.shape[0]]
            left = [p for p in left if p is not next(iter(fits), None)]
            nn.init.normal_(first, std=first.shape[0] ** -0.5)

    return m.model(start)(recipe)


def _smaller_weights(recipe: Recipe, finding: Finding) -> Recipe:
    by = finding.evidence["divide_by"]
    return m.weights(lambda name, p: p.div_(by) if p.dim() > 1 else None)(recipe)


def _smaller_logits(recipe: Recipe, finding: Finding) -> Recipe:
    """What goes into a cross-entropy is divided on its way."""
    by = finding.evidence["divide_by"]

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        plain = nn.functional.cross_entropy
        nn.functional.cross_entropy = lambda x, *args, **more: plain(x / by, *args, **more)
        try:
            return recipe.loss(net, batch)
        finally:
            nn.functional.cross_entropy = plain

    return replace(recipe, loss=loss)  # where the loss is the metric too, what goes into it is divided there as well


def _log_probabilities(recipe: Recipe, finding: Finding) -> Recipe:
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        plain = nn.functional.nll_loss
        nn.functional.nll_loss = lambda x, *args, **more: plain(x.log_softmax(1), *args, **more)
        try:
            return recipe.loss(net, batch)
        finally:
            nn.functional.nll_loss = plain

    return replace(recipe, loss=loss)


def _log_softmax_first(recipe: Recipe, finding: Finding) -> Recipe:
    return _of_divergence(recipe, lambda x, y, **more: (x.log_softmax(1), y, more))


def _logarithms(recipe: Recipe, finding: Finding) -> Recipe:
    return _of_divergence(recipe, lambda x, y, **more: (x.log(), y, more))


def _softmax_of_targets(recipe: Recipe, finding: Finding) -> Recipe:
    """Targets that are probabilities already are taken for such; raw ones go through a softmax."""

    def better(x: Tensor, y: Tensor, **more: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        return x, y if y.min() >= 0 else y.softmax(1), {**more, "log_target": False}

    return _of_divergence(recipe, better)


def _of_divergence(recipe: Recipe, change: Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]) -> Recipe:
    """Something done to what kl_div is given."""

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        plain = nn.functional.kl_div

        def kl_div(*args: Tensor, **more: Any) -> Tensor:
            x, y, more = change(*args, **more)
            return plain(x, y, **more)

        nn.functional.kl_div = kl_div
        try:
            return recipe.loss(net, batch)
        finally:
            nn.functional.kl_div = plain

    return replace(recipe, loss=loss)


def _momentum(recipe: Recipe, finding: Finding) -> Recipe:
    def set_momentum(net: nn.Module) -> None:
        for name, part in net.named_modules():
            if _is_named(f"{name}.weight", finding):
                part.momentum = 0.1  # type: ignore[assignment]

    return m.model(set_momentum)(recipe)


def _registered(recipe: Recipe, finding: Finding) -> Recipe:
    """Plain lists and dicts of the net itself become such that it sees."""

    def register(net: nn.Module) -> None:
        for name, value in list(vars(net).items()):
            if not any(layer.startswith(f"net.{name}") for layer in finding.layers):
                continue
            del vars(net)[name]
            if isinstance(value, Tensor):
                setattr(net, name, nn.Parameter(value.detach()))
            else:
                kind = nn.ModuleDict if isinstance(value, dict) else nn.ModuleList
                setattr(net, name, kind(value))

    return m.model(register)(recipe)


def _larger_loss(recipe: Recipe, finding: Finding) -> Recipe:
    by = finding.evidence["multiply_loss_by"]
    return replace(recipe, loss=lambda net, batch: by * recipe.loss(net, batch), metric=recipe.metric or recipe.loss)


def _orthogonal(recipe: Recipe, finding: Finding) -> Recipe:
    def start(name: str, p: Tensor) -> None:
        if "weight_hh" in name:
            size = p.shape[1]
            for gate in p.split(size):
                nn.init.orthogonal_(gate)

    return m.weights(start)(recipe)


def _zero_bias(recipe: Recipe, finding: Finding) -> Recipe:
    return m.weights(lambda name, p: p.zero_() if name.endswith("bias") else None)(recipe)


def _normalize(recipe: Recipe, finding: Finding) -> Recipe | None:
    """Batch normalization before each activation module of a plain stack."""
    example = recipe.model()
    if not isinstance(example, nn.Sequential):
        return None

    def build() -> nn.Module:
        net = recipe.model()
        assert isinstance(net, nn.Sequential)
        parts: list[nn.Module] = []
        for part in net:
            parts.append(part)
            if isinstance(part, nn.Conv2d):
                parts.append(nn.BatchNorm2d(part.out_channels))
            elif isinstance(part, nn.Linear) and part is not net[-1]:
                parts.append(nn.BatchNorm1d(part.out_features))
        return nn.Sequential(*parts)

    return replace(recipe, model=build)


def _normalize_and_initialize(recipe: Recipe, finding: Finding) -> Recipe | None:
    begun = _initialize(recipe, finding)
    return None if begun is None else _normalize(begun, finding)


def _raise_ceiling(recipe: Recipe, finding: Finding) -> Recipe | None:
    usual = finding.evidence.get("usual_norm")
    return None if usual is None or recipe.clip is None else replace(recipe, clip=10 * usual)


def _clip(recipe: Recipe, finding: Finding) -> Recipe | None:
    return None if recipe.manual else replace(recipe, clip=finding.evidence.get("early", 1.0))


def _less_decay(recipe: Recipe, finding: Finding) -> Recipe:
    """To the number at the end of the remedy."""
    most = float(finding.remedies[0].split()[-1])

    return _groups(recipe, lambda group: group.update(weight_decay=min(group["weight_decay"], most)))


def _less_momentum(recipe: Recipe, finding: Finding) -> Recipe:
    """To the number at the end of the remedy."""
    to = float(finding.remedies[0].split()[-1])

    def change(group: dict[str, Any]) -> None:
        group.update({"betas": (to, *group["betas"][1:])} if "betas" in group else {"momentum": to})

    return _groups(recipe, change)


def _scaled_targets(recipe: Recipe, finding: Finding) -> Recipe | None:
    return _scaled(recipe, _named(finding, "targets") or 1)


def _standardize_both(recipe: Recipe, finding: Finding) -> Recipe | None:
    better = _scaled(recipe, 1)
    return _standardize(better, finding) if better is not None else None


def _targets_in_range(recipe: Recipe, finding: Finding) -> Recipe | None:
    """Masks of 0 and 255 are divided; other targets need somebody who reads the code."""
    drawn = recipe.data(torch.Generator().manual_seed(77), True)
    if not (isinstance(drawn, tuple | list) and drawn[1].is_floating_point() and drawn[1].min() >= 0):
        return None
    top = float(drawn[1].max())
    return m.batches(lambda batch: (batch[0], batch[1] / top, *batch[2:]))(recipe)


def _constant_rate(recipe: Recipe, finding: Finding) -> Recipe | None:
    return None if recipe.schedule is None else replace(recipe, schedule=None)


def _all_parameters(recipe: Recipe, finding: Finding) -> Recipe:
    """What no optimizer holds is added to the first one."""

    def build(net: nn.Module) -> list[Optimizer]:
        optimizers = m.listed(recipe.optimizer(net))
        held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        missing = [p for p in net.parameters() if p.requires_grad and id(p) not in held]
        optimizers[0].add_param_group({"params": missing})
        return optimizers

    return replace(recipe, optimizer=build)


def _usual_loop(recipe: Recipe, finding: Finding) -> Recipe | None:
    """A loop of one's own with one optimizer gives way to the Trainer's."""
    single = len(m.listed(recipe.optimizer(recipe.model()))) == 1
    return replace(recipe, manual=None) if single and recipe.manual is not None else None


def _open_output(recipe: Recipe, finding: Finding) -> Recipe | None:
    """A plain stack loses the activation at its end."""
    example = recipe.model()
    if not isinstance(example, nn.Sequential) or list(example[-1].parameters()):
        return None
    return replace(recipe, model=lambda: recipe.model()[:-1])  # type: ignore[index]


def _even_rates(recipe: Recipe, finding: Finding) -> Recipe:
    """The faster of two optimizers is brought to a ratio of 5e-3, and so is the slower one."""
    fast, slow = finding.evidence.get("fast", 5e-3), finding.evidence.get("slow", 5e-3)
    first_is_fast = "optimizer 0 changes" in finding.message

    def build(net: nn.Module) -> list[Optimizer]:
        optimizers = m.listed(recipe.optimizer(net))
        for optimizer, ratio in zip(optimizers, (fast, slow) if first_is_fast else (slow, fast), strict=True):
            for group in optimizer.param_groups:
                group["lr"] *= 5e-3 / max(ratio, 1e-9)
        return optimizers

    return replace(recipe, optimizer=build)


CURES: dict[str, Cure] = {
    remedies.FLIP_SIGN: _minimize,
    remedies.UNFREEZE: _unfreeze,
    remedies.OWN_PARAMETERS: _all_parameters,
    remedies.ZERO_GRAD: _usual_loop,
    remedies.CALL_STEP: _usual_loop,
    remedies.REGISTER: _registered,
    remedies.MOMENTUM: _momentum,
    remedies.PASS_LOGITS: _open_output,
    remedies.PASS_LOG_PROBABILITIES: _log_probabilities,
    remedies.PASS_LOG_SOFTMAX: _log_softmax_first,
    remedies.PASS_LOGARITHMS: _logarithms,
    remedies.TARGETS_OF_DIVERGENCE: _softmax_of_targets,
    remedies.OPEN_OUTPUT: _open_output,
    remedies.NORMALIZE_TARGET: _scaled_targets,
    remedies.NORMALIZE_BOTH: _standardize_both,
    remedies.TARGETS_IN_RANGE: _targets_in_range,
    remedies.NORMALIZE_INPUT: _standardize,
    remedies.LOWER_DECAY: _less_decay,
    remedies.LOWER_MOMENTUM: _less_momentum,
    remedies.SLOWER_DECAY: _constant_rate,
    remedies.RAISE_CEILING: _raise_ceiling,
    remedies.LOWER_RATE: _lower,
    remedies.RAISE_RATE: _raise,
    remedies.EVEN_RATES: _even_rates,
    remedies.ORTHOGONAL: _orthogonal,
    remedies.ZERO_BIAS: _zero_bias,
    remedies.INIT_NORMAL: _initialize,
    remedies.AS_DRAWN: _as_drawn,
    remedies.FROM_ZERO: _from_zero,
    remedies.ONE_FROM_ZERO: _one_from_zero,
    remedies.SCALES_FROM_ZERO: _scales_from_zero,
    remedies.SMALLER_WEIGHTS: _smaller_weights,
    remedies.SMALLER_LOGITS: _smaller_logits,
    remedies.LARGER_LOSS: _larger_loss,
    remedies.NORMALIZE_AND_INIT: _normalize_and_initialize,
    remedies.NORMALIZE: _normalize,
    remedies.CLIP: _clip,
}
