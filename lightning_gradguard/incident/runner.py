"""Runs the step of a bundle in a freshly built module, as often as it is asked to."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.harmless.rng import capture_rng, restore_rng
from lightning_gradguard.incident.batch import map_tensors
from lightning_gradguard.incident.bundle import BundleError, MicroBatch
from lightning_gradguard.incident.fake_trainer import Reached, call_training_step, is_manual, loss_of, without_trainer
from lightning_gradguard.incident.locate import Localisation, Step, localise
from lightning_gradguard.incident.read import Bundle
from lightning_gradguard.incident.restore import build_whole, load_state
from lightning_gradguard.incident.trace import is_finite
from lightning_gradguard.measurement.layout import clean_name

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


class StepFailed(BundleError):
    """The step raised an error of its own; the message names it and the line. ``__cause__`` is the error itself."""


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Attributes:
        losses: of each batch that had one.
        gradients: as the optimizer would have seen them, without the loss scale, by parameter name.
        bad_buffers: names of the buffers that are not finite after it.
    """

    losses: tuple[float, ...]
    gradients: dict[str, Tensor]
    bad_buffers: tuple[str, ...]

    @property
    def bad_gradients(self) -> tuple[str, ...]:
        """Names of the parameters whose gradient is not finite."""
        return tuple(name for name, grad in self.gradients.items() if not is_finite(grad))


class StepRunner:
    """One bundle and one module, ready to run.

    Args:
        bundle: a checked one.
        module: built as it was for the run; it gets the weights of the incident.
        step: ``step(module, batch)`` gives the loss, where there is no ``training_step``.

    Attributes:
        batches: those of the bundle, on the module's device.

    Raises:
        BundleError: if the module does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, module: nn.Module, step: Step | None) -> None:
        self.bundle = bundle
        self.module = module
        self.step = step
        self.config = bundle.report["config"]
        scale = self.config.get("loss_scale")
        self.scale = 1.0 if scale is None else float(scale)
        self.share = 1.0 / (self.config.get("accumulate_grad_batches") or 1)
        self.manual = step is None and is_manual(module)
        self._losses: list[float] = []
        try:
            build_whole(module)
        except Exception as problem:
            raise BundleError(f"configure_model of the module {_told(problem)}") from problem
        load_state(bundle, module)
        self.batches = tuple(replace(micro, batch=self._moved(micro.batch)) for micro in bundle.batches)

    def run(self, batches: Sequence[MicroBatch]) -> Outcome:
        """Runs batches as one step, from the weights of the incident.

        Raises:
            StepFailed: if the step raises.
        """
        load_state(self.bundle, self.module)
        self._losses = []
        for micro in batches:
            restore_rng(micro.rng)
            batch = map_tensors(micro.batch, _copy)  # a step may write to its batch
            try:
                loss = self._loss(batch, micro.index, self._backward)
                if loss is not None and not self.manual:
                    self._backward(loss)
            except Exception as problem:
                raise StepFailed(f"the step {_told(problem)}") from problem
        named = {clean_name(name): parameter.grad for name, parameter in self.module.named_parameters()}
        gradients = {name: self._unscaled(grad) for name, grad in named.items() if grad is not None}
        bad_buffers = [clean_name(name) for name, buffer in self.module.named_buffers() if not is_finite(buffer)]
        return Outcome(tuple(self._losses), gradients, tuple(bad_buffers))

    def localise(self, batches: Sequence[MicroBatch]) -> Localisation | None:
        """Returns the first of the batches that goes bad, or near it, under watch; ``None`` if none does."""
        load_state(self.bundle, self.module)
        near: Localisation | None = None
        for micro in batches:
            found = self._localise(micro)
            if found.found or found.error is not None:
                return found
            near = near or (found if found.near_limit else None)
        return near

    def anomaly(self, batches: Sequence[MicroBatch]) -> str:
        """Returns what autograd's own anomaly detection says of the step."""
        with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
            warnings.simplefilter("always")
            stack.enter_context(torch.autograd.detect_anomaly(check_nan=True))
            error = ""
            try:
                self.run(batches)
            except StepFailed as problem:
                error = str(problem.__cause__)
        messages = [str(warning.message).strip() for warning in caught if "Error detected" in str(warning.message)]
        return "\n".join([*messages, error]).strip() or "nothing (it sees NaN in the backward pass only, not Inf)"

    def _localise(self, micro: MicroBatch) -> Localisation:
        def step(module: nn.Module, batch: Any) -> Tensor | None:
            losses: list[Tensor] = []
            loss = self._loss(batch, micro.index, losses.append)
            return torch.stack([one.reshape(()) for one in losses]).sum() if loss is None and losses else loss

        batch = map_tensors(micro.batch, _copy)
        scale = None if self.config.get("loss_scale") is None else self.scale
        return localise(self.module, step, batch, loss_scale=scale, rng=micro.rng)

    def _backward(self, loss: Tensor) -> None:
        self._losses.append(float(loss.detach()))
        (loss * self.scale if self.scale != 1.0 else loss).backward()  # without a graph it raises, as it did in the run

    def _unscaled(self, grad: Tensor) -> Tensor:
        """As a loss scaler does it: by the inverse, which is infinite for a scale of 0."""
        factor = 1.0 / self.scale if self.scale else float("inf")
        return grad if factor == 1.0 else grad * factor

    def _loss(self, batch: Any, index: int, backward: Callable[[Tensor], None]) -> Tensor | None:
        """Returns the loss of one batch; ``None`` where a manual step has run its backward passes, or there is none."""
        with self._precision():
            if self.step is not None:
                loss = self.step(self.module, batch)
                return None if loss is None else loss * self.share
            with without_trainer(self.module, self.config, self.bundle.report["optimizer"], backward):
                try:
                    output = call_training_step(self.module, batch, index)
                except Reached:
                    return None
        loss = None if self.manual else loss_of(output)
        return None if loss is None else loss * self.share

    def _moved(self, batch: Any) -> Any:
        device = next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))
        on_cpu = self.bundle.report["batch_on_cpu"]
        return map_tensors(batch, lambda path, tensor: tensor if path in on_cpu else tensor.to(device))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        autocast = self.config.get("autocast")
        before = torch.get_default_dtype()
        with ExitStack() as stack:
            if self.config.get("default_dtype"):  # half and double precision modes build their constants in it
                stack.callback(torch.set_default_dtype, before)
                torch.set_default_dtype(getattr(torch, str(self.config["default_dtype"]).removeprefix("torch.")))
            if autocast is not None:
                dtype = getattr(torch, str(autocast["dtype"]).removeprefix("torch."))
                stack.enter_context(torch.autocast(autocast["device_type"], dtype=dtype))
            yield


@contextmanager
def as_it_was(bundle: Bundle) -> Iterator[None]:
    """Number of threads and default dtype of the incident; generators and both put back at the end."""
    rng, threads, dtype = capture_rng(), torch.get_num_threads(), torch.get_default_dtype()
    recorded = bundle.report["versions"]
    try:
        torch.set_num_threads(int(recorded.get("num_threads", threads)))
        torch.set_default_dtype(getattr(torch, str(recorded.get("default_dtype", dtype)).removeprefix("torch.")))
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        restore_rng(rng)


def _copy(path: str, tensor: Tensor) -> Tensor:
    return tensor.clone()


def _told(problem: Exception) -> str:
    """Returns what an error of the user's code was, and its line, in one line."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if not f.filename.startswith(_OURS)]
    own = [frame for frame in frames if f"{os.sep}site-packages{os.sep}" not in frame.filename] or frames
    where = f" at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""
    words = " ".join(str(problem).split())
    return f"raised {type(problem).__name__}{where}: {words[:300]}"
