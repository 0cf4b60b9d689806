"""Runs the step of an incident bundle again, without a Trainer, and says what came of it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.harmless.rng import capture_rng, restore_rng
from lightning_gradguard.incident.bundle import BundleError, MicroBatch, digest_gradient
from lightning_gradguard.incident.codec import map_tensors
from lightning_gradguard.incident.fake_trainer import Reached, call_training_step, is_manual, loss_of, without_trainer
from lightning_gradguard.incident.locate import Localisation, Step, localise
from lightning_gradguard.incident.read import Bundle, load_state, read_bundle
from lightning_gradguard.measurement.layout import clean_name

REPRODUCED, NOT_REPRODUCED, UNUSABLE = 0, 1, 2


@dataclass(frozen=True)
class ReplayReport:
    """What a replay found.

    Attributes:
        step: of the incident.
        optimizer: of the incident.
        reproduced: whether a parameter that had a non-finite gradient (or a buffer that went bad) had one again; for an
            incident whose gradients were finite: whether they came out the same.
        exact: whether every gradient is the same to the bit; ``None`` where the incident's were averaged over
            processes, so that one process cannot tell.
        expected: names of the parameters and buffers that were bad at the incident.
        found: those that were bad in the replay.
        loss: the loss of each batch of the step.
        localisation: where it began.
        anomaly: the trace of autograd's own anomaly detection, if it was asked for.
    """

    step: int
    optimizer: int
    reproduced: bool
    exact: bool | None
    expected: tuple[str, ...]
    found: tuple[str, ...]
    loss: tuple[float, ...]
    localisation: Localisation | None
    anomaly: str | None = None

    def __str__(self) -> str:
        verdict = "reproduced" if self.reproduced else "NOT reproduced"
        bits = {True: ", bit for bit", False: ", not bit for bit", None: ""}[self.exact if self.reproduced else None]
        losses = ", ".join(f"{value:.6g}" for value in self.loss)
        lines = [
            f"step {self.step}, optimizer {self.optimizer}: {verdict}{bits}",
            f"  loss: {losses or 'none'}",
            f"  non-finite then: {_names(self.expected)}",
            f"  non-finite now:  {_names(self.found)}",
        ]
        if self.localisation is not None:
            lines.append(f"  where: {self.localisation}")
            lines += [f"  near the limit before it: {e.describe()}" for e in self.localisation.near_limit]
        if self.anomaly is not None:
            lines += ["  autograd's anomaly detection:", *(f"    {line}" for line in self.anomaly.splitlines())]
        return "\n".join(lines)


def replay(
    bundle: str | os.PathLike[str], module: nn.Module, *, step: Step | None = None, anomaly: bool = False
) -> ReplayReport:
    """Runs the step of an incident again and compares.

    The module gets the weights, buffers and modes of the incident, the generators their state before each batch; the
    global state of the process is put back afterwards. The batch goes to the module's device.

    Args:
        bundle: folder of the incident.
        module: built as it was for the run; its weights are replaced. A LightningModule's ``training_step`` is called,
            with logging made harmless; so is any module's that has one.
        step: ``step(module, batch)`` returns the loss, for a module without ``training_step``.
        anomaly: run once more under ``torch.autograd.detect_anomaly`` and add its trace.

    Raises:
        BundleError: if the bundle cannot be used, or does not fit the module.
        TypeError: if there is neither a ``training_step`` nor a ``step``.

    Example:
        >>> print(replay("incidents/step-000412-opt0", MyModule()))  # doctest: +SKIP
    """
    if step is None and not callable(getattr(module, "training_step", None)):
        raise TypeError(
            f"{type(module).__name__} has no training_step; pass step=, a function of (module, batch) giving the loss"
        )
    return _Replay(read_bundle(bundle), module, step).run(anomaly)


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m lightning_gradguard replay``.

    Returns:
        0 if the incident was reproduced, 1 if not, 2 if bundle or module cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m lightning_gradguard replay", description=__doc__)
    parser.add_argument("bundle", help="folder of the incident, e.g. incidents/step-000412-opt0")
    parser.add_argument("--module", required=True, metavar="my.module:factory", help="returns the module; no arguments")
    parser.add_argument(
        "--step", metavar="my.module:step", help="step(module, batch) -> loss, where there is no training_step"
    )
    parser.add_argument("--anomaly", action="store_true", help="add the trace of autograd's anomaly detection")
    parser.add_argument("--device", default=None, help="e.g. cuda; the module's own if not given")
    arguments = parser.parse_args(argv)
    try:
        read_bundle(arguments.bundle)  # before any of the user's code is imported
        module = _load(arguments.module)()
        if not isinstance(module, nn.Module):
            raise TypeError(f"{arguments.module} returned a {type(module).__name__}, not a torch.nn.Module")
        if arguments.device is not None:
            module.to(arguments.device)
        step = None if arguments.step is None else _load(arguments.step)
        report = replay(arguments.bundle, module, step=step, anomaly=arguments.anomaly)
    except BundleError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return UNUSABLE
    except Exception as problem:
        traceback.print_exc()
        print(f"error: {type(problem).__name__}: {problem}", file=sys.stderr)
        return UNUSABLE
    print(report)
    return REPRODUCED if report.reproduced else NOT_REPRODUCED


class _Replay:
    """One bundle and one module, ready to run."""

    def __init__(self, bundle: Bundle, module: nn.Module, step: Step | None) -> None:
        self.bundle = bundle
        self.module = module
        self.step = step
        self.config = bundle.report["config"]
        self.losses: list[float] = []
        self.scale = float(self.config.get("loss_scale") or 1.0)
        self.share = 1.0 / int(self.config.get("accumulate_grad_batches") or 1)
        self.manual = step is None and is_manual(module)
        load_state(bundle, module)

    def run(self, anomaly: bool) -> ReplayReport:
        report = self.bundle.report
        with _as_it_was(self.bundle):
            gradients = self.accumulate()
            losses = tuple(self.losses)
            bad_buffers = [clean_name(n) for n, b in self.module.named_buffers() if not bool(b.isfinite().all())]
            localisation = self.localise()
            trace = self.anomaly() if anomaly else None
        digests = {name: digest_gradient(grad) for name, grad in gradients.items()}
        recorded = report["gradients"]
        expected = [name for name, entry in recorded.items() if entry["nan"] or entry["inf"]] + report["bad_buffers"]
        found = [name for name, entry in digests.items() if entry["nan"] or entry["inf"]]
        found = [name for name in found if name in recorded]
        found += [name for name in bad_buffers if name in report["bad_buffers"]]
        exact = {name: digests.get(name, {}).get("sha256") == entry["sha256"] for name, entry in recorded.items()}
        return ReplayReport(
            step=report["step"],
            optimizer=report["optimizer"],
            reproduced=bool(set(expected) & set(found)) if expected else all(exact.values()),
            exact=None if int(self.config.get("world_size") or 1) > 1 else all(exact.values()),
            expected=tuple(expected),
            found=tuple(found),
            loss=losses,
            localisation=localisation,
            anomaly=trace,
        )

    def accumulate(self) -> dict[str, Tensor]:
        """Runs all batches of the step; the gradients as the optimizer would have seen them, without the loss scale."""
        load_state(self.bundle, self.module)
        self.losses.clear()
        for micro in self.bundle.batches:
            restore_rng(micro.rng)
            self.forward_backward(micro)
        named = {clean_name(name): parameter.grad for name, parameter in self.module.named_parameters()}
        factor = 1.0 / self.scale
        return {name: grad * factor if factor != 1.0 else grad for name, grad in named.items() if grad is not None}

    def forward_backward(self, micro: MicroBatch) -> None:
        loss = self.loss(micro, self.backward)
        if loss is not None and not self.manual:
            self.backward(loss)

    def backward(self, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))
        (loss * self.scale if self.scale != 1.0 else loss).backward()

    def loss(self, micro: MicroBatch, backward: Callable[[Tensor], None]) -> Tensor | None:
        batch = map_tensors(micro.batch, self.to_device)
        with self.precision():
            if self.step is not None:
                return self.step(self.module, batch) * self.share
            with without_trainer(self.module, self.config, self.bundle.report["optimizer"], backward):
                try:
                    output = call_training_step(self.module, batch, micro.index)
                except Reached:
                    return None
        if self.manual:
            return None
        return loss_of(output) * self.share

    def to_device(self, path: str, tensor: Tensor) -> Tensor:
        """A copy on the module's device, so that a step that writes to its batch does not spoil the next run."""
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        return tensor.to("cpu" if path in self.bundle.report["batch_on_cpu"] else device, copy=True)

    def localise(self) -> Localisation | None:
        """The first batch of the step that goes bad, or near it, under watch; ``None`` if none does."""
        load_state(self.bundle, self.module)
        near: Localisation | None = None
        for micro in self.bundle.batches:
            backward_losses: list[Tensor] = []

            def step(
                module: nn.Module, batch: Any, micro: MicroBatch = micro, losses: list[Tensor] = backward_losses
            ) -> Tensor:
                loss = self.loss(MicroBatch(batch, micro.index, micro.rng), losses.append)
                return loss if loss is not None else torch.stack([one.reshape(()) for one in losses]).sum()

            found = localise(self.module, step, micro.batch, loss_scale=self.scale, rng=micro.rng)
            if found.found or found.error is not None:
                return found
            near = near or (found if found.near_limit else None)
        return near

    def anomaly(self) -> str:
        with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
            warnings.simplefilter("always")
            stack.enter_context(torch.autograd.detect_anomaly(check_nan=True))
            error = ""
            try:
                self.accumulate()
            except RuntimeError as problem:
                error = str(problem)
        messages = [str(warning.message).strip() for warning in caught if "Error detected" in str(warning.message)]
        return "\n".join([*messages, error]).strip() or "nothing (it sees NaN in the backward pass only, not Inf)"

    @contextmanager
    def precision(self) -> Iterator[None]:
        autocast = self.config.get("autocast")
        before = torch.get_default_dtype()
        with ExitStack() as stack:
            if "default_dtype" in self.config:  # half and double precision modes build their constants in it
                stack.callback(torch.set_default_dtype, before)
                torch.set_default_dtype(getattr(torch, str(self.config["default_dtype"]).removeprefix("torch.")))
            if autocast is not None:
                dtype = getattr(torch, str(autocast["dtype"]).removeprefix("torch."))
                stack.enter_context(torch.autocast(autocast["device_type"], dtype=dtype))
            yield


@contextmanager
def _as_it_was(bundle: Bundle) -> Iterator[None]:
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


def _load(name: str) -> Any:
    """The object that ``package.module:name`` names; the working folder is searched too."""
    module, separator, attribute = name.partition(":")
    if not separator or not attribute:
        raise ValueError(f"expected my.module:factory, got {name!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
