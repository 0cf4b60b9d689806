"""The first remedy of a finding, carried out by itself: as a change of the recipe, whatever the recipe is.

A remedy is known by words of its text, and numbers are read from the finding's evidence. What needs somebody who reads
the code (a ``detach()`` to be found, a loss to be written anew) is not applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradguard.record import Finding

from . import mistakes as m
from .recipe import Batch, Recipe

Cure = Callable[[Recipe, Finding], Recipe | None]


def cured(recipe: Recipe, finding: Finding) -> Recipe | None:
    """The recipe after the first remedy; ``None`` where it cannot be applied by itself."""
    text = finding.remedies[0] if finding.remedies else ""
    cure = next((cure for words, cure in CURES if re.search(words, text, re.IGNORECASE)), None)
    return cure(recipe, finding) if cure else None


def _lower(recipe: Recipe, finding: Finding) -> Recipe:
    return m.rate(1 / finding.evidence.get("lower_learning_rate_by", 10.0))(recipe)


def _raise(recipe: Recipe, finding: Finding) -> Recipe | None:
    if _rate(recipe) == 0:
        return None  # zero times a factor is zero: the user must choose
    return m.rate(finding.evidence.get("raise_learning_rate_by", 10.0))(recipe)


def _rate(recipe: Recipe) -> float:
    made = recipe.optimizer(recipe.model())
    return ([made] if isinstance(made, Optimizer) else list(made))[0].param_groups[0]["lr"]


def _unfreeze(recipe: Recipe, finding: Finding) -> Recipe:
    """Only what the finding names."""
    named = tuple(f"{name.removeprefix('net.')}." for name in finding.layers)
    return m.weights(lambda name, p: p.requires_grad_() if f"{name}.".startswith(named) else None)(recipe)


def _minimize(recipe: Recipe, finding: Finding) -> Recipe:
    """``maximize=True`` off where it is on; the sign of the loss turned where it is not."""
    made = recipe.optimizer(recipe.model())
    first = made if isinstance(made, Optimizer) else next(iter(made))
    if not first.param_groups[0].get("maximize"):
        return replace(recipe, loss=lambda net, batch: -recipe.loss(net, batch), metric=recipe.metric or recipe.loss)

    def build(net: nn.Module) -> list[Optimizer]:
        built = recipe.optimizer(net)
        optimizers = [built] if isinstance(built, Optimizer) else list(built)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["maximize"] = False
        return optimizers

    return replace(recipe, optimizer=build)


def _standardize(recipe: Recipe, finding: Finding) -> Recipe | None:
    """Zero mean and unit variance of every feature, over the first training batches."""
    generator = torch.Generator().manual_seed(77)
    drawn = [recipe.data(generator, True) for _ in range(20)]
    if not (isinstance(drawn[0], tuple | list) and isinstance(drawn[0][0], Tensor) and drawn[0][0].is_floating_point()):
        return None
    x = torch.cat([batch[0] for batch in drawn])
    of_each = x.dim() == 2 and x.shape[1] <= 16  # a table has features, an image has pixels
    mean, std = (x.mean(0), x.std(0)) if of_each else (x.mean(), x.std())
    return m.inputs(lambda x: (x - mean) / (std + 1e-12))(recipe)


def _initialize(recipe: Recipe, finding: Finding) -> Recipe:
    def start(net: nn.Module) -> None:
        for part in net.modules():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part.weight.requires_grad:
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=0.3)

    return m.model(start)(recipe)


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


def _raise_ceiling(recipe: Recipe, finding: Finding) -> Recipe | None:
    usual = finding.evidence.get("usual_norm")
    return None if usual is None or recipe.clip is None else replace(recipe, clip=usual)


def _clip(recipe: Recipe, finding: Finding) -> Recipe | None:
    return None if recipe.manual else replace(recipe, clip=finding.evidence.get("early", 1.0))


def _less_decay(recipe: Recipe, finding: Finding) -> Recipe:
    def build(net: nn.Module) -> list[Optimizer]:
        built = recipe.optimizer(net)
        optimizers = [built] if isinstance(built, Optimizer) else list(built)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["weight_decay"] = min(group["weight_decay"], 0.01)
        return optimizers

    return replace(recipe, optimizer=build)


def _scaled_targets(recipe: Recipe, finding: Finding) -> Recipe | None:
    generator = torch.Generator().manual_seed(77)
    drawn = [recipe.data(generator, True) for _ in range(20)]
    y = torch.cat([batch[1] for batch in drawn]) if isinstance(drawn[0], tuple | list) else torch.zeros(1).long()
    if not y.is_floating_point():
        return None

    def scaled(batch: Batch) -> Batch:
        return (batch[0], (batch[1] - y.mean()) / y.std(), *batch[2:])

    return m.batches(scaled)(recipe)


def _constant_rate(recipe: Recipe, finding: Finding) -> Recipe | None:
    return None if recipe.schedule is None else replace(recipe, schedule=None)


CURES: list[tuple[str, Cure]] = [
    (r"minimi[sz]e the loss|maximize=", _minimize),
    (r"requires_grad", _unfreeze),
    (r"bring the targets to zero mean", _scaled_targets),
    (r"zero mean and unit variance", _standardize),
    (r"lower the weight decay", _less_decay),
    (r"decay over the whole run", _constant_rate),
    (r"raise the clipping threshold", _raise_ceiling),
    (r"lower the (learning )?rate", _lower),
    (r"raise the (learning )?rate", _raise),
    (r"orthogonal", _orthogonal),
    (r"biases .*zero|zero .*biases before", _zero_bias),
    (r"initiali[sz]e", _initialize),
    (r"add (batch|layer).*normalization", _normalize),
    (r"clip the total gradient norm", _clip),
]
