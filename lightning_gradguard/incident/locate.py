"""Finds the first module and operator that made a value non-finite, by running the step once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.harmless.rng import RngState
from lightning_gradguard.incident.rerun import untouched
from lightning_gradguard.incident.trace import Extreme, OperatorCall, Origin, TensorRange, is_finite
from lightning_gradguard.incident.watcher import NeedsOtherProcesses, Recorder
from lightning_gradguard.measurement.layout import clean_name

Step = Callable[[nn.Module, Any], Tensor | None]

_MAX_EXTREMES = 8


@dataclass(frozen=True)
class Localisation:
    """Where a non-finite value began, as far as running the step again could tell.

    Attributes:
        origin: what made it, or held it before the step; ``None`` if the step came out finite.
        turned_nan: the operator that turned an infinity from ``origin`` into a NaN, where that was another one.
        loss: the loss of the step as run again.
        bad_gradients: names of the parameters whose gradient was not finite.
        bad_buffers: names of the buffers that the forward pass made non-finite.
        near_limit: the first values that came near the end of their dtype before the origin (their square overflows),
            in order: parameters and batch entries that did from the start, then results.
        error: what the step raised, if it did.
    """

    origin: Origin | None
    turned_nan: OperatorCall | None
    loss: float | None
    bad_gradients: tuple[str, ...]
    bad_buffers: tuple[str, ...]
    near_limit: tuple[Extreme, ...]
    error: str | None = None

    @property
    def found(self) -> bool:
        """Tells whether the step gave a non-finite value again, and its origin is known."""
        return self.origin is not None

    @property
    def module(self) -> str | None:
        """Name of the module in which it began; ``""`` is the training step outside of all submodules."""
        call = self.origin.call if self.origin is not None else None
        return None if call is None else call.module

    @property
    def phase(self) -> str | None:
        """``"batch"``, ``"parameter"``, ``"buffer"``, ``"tensor"``, ``"loss scale"``, ``"forward"`` or
        ``"backward"``.
        """
        if self.origin is None:
            return None
        call = self.origin.call
        return call.phase if self.origin.place == "operator" and call is not None else self.origin.place

    def __str__(self) -> str:
        if self.origin is None:
            near = f"; near the limit: {self.near_limit[0].describe()}" if self.near_limit else ""
            return self.error or f"the step came out finite when run again (loss {self.loss}){near}"
        return _sentence(self.origin, self.turned_nan)


def localise(
    module: nn.Module,
    step: Step,
    batch: Any,
    *,
    loss_scale: float | None = None,
    rng: RngState | None = None,
    buffers: dict[str, Tensor] | None = None,
    context: AbstractContextManager[Any] | None = None,
) -> Localisation:
    """Runs a step again under watch, and names what made the first value that spoiled its loss or gradients.

    Every operator's result is looked at, which takes three to ten times as long as the plain step: for an
    incident, not for every step. Nothing stays changed: weights, gradients, buffers, metrics and random number
    generators are put back. Gradients come from ``torch.autograd.grad``, so hooks that reduce gradients between
    processes do not run.

    An infinity that a mask writes on purpose is not taken for a fault unless it becomes a NaN.

    Args:
        module: the model as it was before the bad update.
        step: ``step(module, batch)`` runs forward pass and loss, and returns the loss.
        batch: the batch of the bad step.
        loss_scale: scale of a ``GradScaler``: the gradients overflow only with it.
        rng: state of the random number generators before the step.
        buffers: values of the buffers before the step, by name.
        context: entered around the forward pass, ``torch.autocast`` say.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> found = localise(net, lambda m, x: m(x).log().mean(), torch.zeros(1, 2) - 1e3)
        >>> found.phase
        'forward'
    """
    with untouched(module, rng=rng, buffers=buffers):
        return _watch(module, step, batch, loss_scale, context or nullcontext())


def _watch(
    module: nn.Module, step: Step, batch: Any, loss_scale: float | None, context: AbstractContextManager[Any]
) -> Localisation:
    """Runs the step once, with whatever it leaves behind."""
    loss: Tensor | None = None
    error = None
    gradients: dict[str, Tensor] = {}
    bad_gradients: Mapping[str, Any] = {}
    # Made before the step, so that what was bad in weights, batch and buffers to begin with is known.
    recorder = Recorder(module, batch)  # once the buffers are what they were
    finite_before = {name for name, buffer in module.named_buffers() if is_finite(buffer)}
    try:
        # Compiled code would hide its operators: it runs eagerly here.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"), recorder:
            with context:
                loss = step(module, batch)
            gradients = _gradients(module, loss if loss is None or loss_scale is None else loss * loss_scale)
        bad_gradients = {name: grad for name, grad in gradients.items() if not is_finite(grad)}
    except NeedsOtherProcesses:
        raise
    except Exception as problem:
        error = f"running the step again raised {type(problem).__name__}: {problem}"
    bad_buffers = tuple(n for n, b in module.named_buffers() if n in finite_before and not is_finite(b))
    # The loss is asked first: what is wrong there is the cause of every gradient after it.
    targets = [] if loss is None else [loss]
    answer = recorder.origin_of(targets) or recorder.origin_of(bad_gradients.values())
    if answer is None and error is None and (spoiled := _spoiled_by_unscaling(gradients, loss_scale)):
        scale_range = TensorRange((), "float32", float(loss_scale or 0.0), float(loss_scale or 0.0), 0, 0)
        answer, bad_gradients = (Origin("loss scale", "", None, scale_range, False), None), dict.fromkeys(spoiled)
    # Neither loss nor gradients are bad: the first bad value of all is the best that can be said.
    if answer is None and (error is not None or bad_buffers):
        answer = recorder.earliest()
    return conclude(recorder, answer, loss, tuple(bad_gradients), bad_buffers, error)


def conclude(
    recorder: Recorder,
    answer: tuple[Origin, OperatorCall | None] | None,
    loss: Tensor | None,
    bad_gradients: Sequence[str],
    bad_buffers: Sequence[str],
    error: str | None,
) -> Localisation:
    """Puts what a recorder saw into a :class:`Localisation`."""
    origin, turned = answer or (None, None)
    # Values near the limit tell something only up to the operator that went over it.
    until = origin.call.index if origin is not None and origin.call is not None else float("inf")
    near = [extreme for extreme in recorder.near_limit if extreme.index < until][:_MAX_EXTREMES]
    return Localisation(
        origin=origin,
        turned_nan=turned,
        loss=None if loss is None else float(loss.detach()),
        bad_gradients=tuple(clean_name(name) for name in bad_gradients),
        bad_buffers=tuple(clean_name(name) for name in bad_buffers),
        near_limit=tuple(near),
        error=error,
    )


def place_from_gradients(layers: Sequence[str], bad_layers: Sequence[str]) -> str:
    """Returns what the mere list of layers with non-finite gradients says about the place; costs nothing.

    The backward pass runs from the last layer to the first and carries a non-finite value along. All layers bad
    means that it was there before: in the loss or the forward pass. The layers up to *k* bad and those after it
    good means that the backward pass of *k*, or of what follows it, made it. It is a hint: a ReLU that is off passes
    on nothing, so a NaN of the forward pass may stop half way.

    Args:
        layers: names of the layers that have a gradient, in depth order.
        bad_layers: those whose gradient is not finite.

    Example:
        >>> place_from_gradients(["a", "b", "c"], ["a", "b"])
        "every layer up to 'b' and none after it: made in the backward pass, between 'b' and 'c'"
    """
    bad = [layer in set(bad_layers) for layer in layers]
    if not any(bad):
        return "no layer"
    # A non-finite value travels from the last layer to the first: what counts is the last bad one.
    last = max(index for index, is_bad in enumerate(bad) if is_bad)
    if all(bad):
        return "all layers: it was there before the backward pass, in the forward pass or the loss"
    if sum(bad) == 1 and last > 0:
        return (
            f"only {layers[last]!r}: made in the gradient of its own parameters, or stopped before the earlier layers, "
            "as a ReLU that is off does"
        )
    if all(bad[: last + 1]):
        return (
            f"every layer up to {layers[last]!r} and none after it: made in the backward pass, "
            f"between {layers[last]!r} and {layers[last + 1]!r}"
        )
    names = ", ".join(repr(layer) for layer, is_bad in zip(layers, bad, strict=True) if is_bad)
    return f"{names}: several branches, or layers that are not in the order they run in"


def _gradients(module: nn.Module, loss: Tensor | None) -> dict[str, Tensor]:
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named or loss is None or not loss.requires_grad:
        return {}
    grads = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    return {name: grad for (name, _), grad in zip(named, grads, strict=True) if grad is not None}


def _spoiled_by_unscaling(gradients: Mapping[str, Tensor], loss_scale: float | None) -> list[str]:
    """Names of the gradients that are finite until the loss scale is divided out of them."""
    if loss_scale is None:
        return []
    factor = 1.0 / loss_scale if loss_scale else float("inf")  # as a GradScaler has it
    return [name for name, grad in gradients.items() if not is_finite(grad * factor)]


def _sentence(origin: Origin, turned: OperatorCall | None) -> str:
    call = origin.call
    if origin.place == "operator" and call is not None:
        kind = "NaN" if call.output.nan else "Inf"
        inputs = "; ".join(given.describe(masked=True) for given in call.inputs) or "nothing"
        finite = "" if any(given.inf for given in call.inputs) else "finite "
        text = f"first {kind} made by {call.operator} {_where(call)}, from {finite}inputs: {inputs}"
    elif origin.place == "loss scale":
        scale = origin.held.low if origin.held is not None else 0.0
        text = f"gradients are finite until the loss scale ({scale:.3g}) is divided out of them"
    else:
        place = "" if origin.place == "batch" else f"{origin.place} "  # names of its parts begin with it
        text = f"{place}{origin.name} was not finite before the step ({origin.held})"
        if call is not None:
            text += f"; first used by {call.operator} {_where(call)}"
    if turned is not None and turned is not call:
        text += f"; became NaN in {turned.operator} {_where(turned)}"
    return text


def _where(call: OperatorCall) -> str:
    module = f"module {call.module!r}" if call.module else "the training step itself"
    line = f", {call.source}" if call.source else ""
    node = f" ({call.node})" if call.node else ""
    return f"in the {call.phase} pass{node} of {module}{line}"
