"""Shows a run to the rule sets of others: each is told all that its own tool would see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

EVERY = 10  # steps between looks: their own defaults are one look an epoch, or 50 to 500 steps
KEPT = 3  # looks whose tensors are kept
ACTIVATIONS = nn.ReLU | nn.Tanh | nn.Sigmoid | nn.GELU | nn.SiLU | nn.LeakyReLU


@dataclass
class Look:
    """What the tools look at, at one step."""

    step: int
    loss: float
    accuracy: float | None
    finite: bool
    rate: float
    dropout: float
    inputs: float
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    activations: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # kind, input, output

    def forget(self) -> None:
        """Lets the tensors go, so that a long run costs no memory."""
        self.gradients, self.weights, self.activations = {}, {}, []


@dataclass(frozen=True)
class PublishedRule:
    """A name, when it speaks up over the looks so far, and the causes that it may be said to name."""

    name: str
    fires: Callable[[list[Look]], bool]
    names: frozenset[str]


class Watch(Callback):
    """Takes looks at a run, and keeps for each rule set the rule that fired first.

    Attributes:
        verdicts: rule by rule set, for the sets that fired.
    """

    def __init__(self) -> None:
        from . import RULE_SETS  # the sets import this module

        self.sets = RULE_SETS
        self.verdicts: dict[str, str] = {}
        self._looks: list[Look] = []
        self._handles: list[RemovableHandle] = []
        self._activations: list[tuple[str, Tensor, Tensor]] = []
        self._batch: Any = None
        self._step, self._due = 0, False

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        self._step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._batch, self._activations = batch, []
        self._due = self._step % EVERY == 0
        if self._due:
            for part in module.modules():
                if isinstance(part, ACTIVATIONS):
                    self._handles.append(part.register_forward_hook(self._see))

    def _see(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._activations.append((type(module).__name__, args[0].detach().float(), output.detach().float()))

    def on_train_batch_end(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        loss = float(module.losses[-1]) if module.losses else 0.0
        if not (self._due or not math.isfinite(loss)) or len(self.verdicts) == len(self.sets):
            return
        if self._looks and self._looks[-1].step == self._step:
            self._looks.pop()  # of the other optimizer, in the same step
        self._looks.append(self._look(trainer, module, loss))
        for look in self._looks[:-KEPT]:
            look.forget()
        for title, rules in self.sets.items():
            if title not in self.verdicts:
                fired = next((rule.name for rule in rules if rule.fires(self._looks)), None)
                if fired is not None:
                    self.verdicts[title] = fired

    def _look(self, trainer: pl.Trainer, module: Any, loss: float) -> Look:
        net, recipe = module.net, module.recipe
        named = [(n, p) for n, p in net.named_parameters() if not n.endswith("bias")]
        gradients = {n: _dense(p.grad) for n, p in named if p.grad is not None}
        weights = {n: p.detach().float().clone() for n, p in named}
        finite = math.isfinite(loss) and all(bool(t.isfinite().all()) for t in (*gradients.values(), *weights.values()))
        counts = getattr(recipe.metric, "counts_errors", False)
        first = self._batch[0] if isinstance(self._batch, tuple | list) else self._batch
        return Look(
            step=self._step,
            loss=loss,
            accuracy=1 - recipe.worth(net, batches=1) if counts else None,
            finite=finite,
            rate=trainer.optimizers[0].param_groups[0]["lr"],
            dropout=max((part.p for part in net.modules() if isinstance(part, nn.Dropout)), default=0.0),
            inputs=float(first.abs().max()) if isinstance(first, Tensor) and first.is_floating_point() else 0.0,
            gradients=gradients,
            weights=weights,
            activations=self._activations,
        )


def _dense(grad: Tensor) -> Tensor:
    return (grad.to_dense() if grad.is_sparse else grad).detach().float().clone()
