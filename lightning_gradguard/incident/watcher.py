"""Watches every operator of a training step and follows each non-finite value from where it was made."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_gradguard.incident.batch import named_numbers, named_tensors, opaque_parts
from lightning_gradguard.incident.trace import (
    Extreme,
    OperatorCall,
    Origin,
    Phase,
    TensorRange,
    is_near_limit,
    largest_magnitude,
    pieces,
    reals,
    shape_of,
)  # fmt: skip
from lightning_gradguard.measurement.layout import clean_name
from lightning_gradguard.measurement.sharding import num_processes

# Operators that only write constants: an infinity they write is meant (an attention mask), until it becomes a NaN.
_FILLS = ("fill", "full", "masked_fill", "where", "constant_pad", "index_fill", "scalar_tensor", "lift", "triu", "tril")
# Their results are uninitialized memory, whatever it holds.
_UNINITIALIZED = ("empty", "new_empty", "resize")
_TRAIL = 8
# Operators by which processes talk to each other.
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")
_LIBRARIES = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics")


class NeedsOtherProcesses(Exception):
    """A step that waits for other processes cannot be run again by one: raised before the first time it would."""


@dataclass
class _Taint:
    origin: Origin
    order: int
    nan: OperatorCall | None  # the operator that turned an infinity into a NaN, if one did


class Recorder(TorchDispatchMode):
    """While active, looks at the result of every operator; :meth:`origin_of` then tells where a value went bad.

    Values are followed by the memory they lie in, so views and in-place operators are followed too. A parameter, or
    any other tensor from before the step but for buffers, is copied just before an operator writes to it, and put back
    at exit.

    Args:
        module: its submodules give the names.
        batch: searched for values that were not finite to begin with.
    """

    def __init__(self, module: nn.Module, batch: object) -> None:
        super().__init__()
        self.near_limit: list[Extreme] = []
        self._num_calls = 0
        self._trail: deque[Extreme] = deque(maxlen=_TRAIL)
        self._taints: dict[int, _Taint] = {}
        self._first_use: dict[Origin, OperatorCall] = {}
        self._made: set[int] = set()
        self._buffers = {_memory(buffer) for buffer in module.buffers()}  # whoever runs the step puts them back
        self._written: list[tuple[Tensor, Tensor]] = []
        self._stack: list[tuple[str, object]] = []  # modules being run, each with the autograd node it was entered in
        self._forward_of: dict[int, tuple[str, str | None]] = {}  # autograd's sequence number -> module, source
        self._module = module
        self._hooks: list[Any] = []
        self._spoiled: list[tuple[str, TensorRange]] = []  # entries of the batch that are no tensors
        self._opaque = opaque_parts(batch)
        self._scan(module, batch)

    def __enter__(self) -> Recorder:
        for name, part in self._module.named_modules():
            self._hooks.append(part.register_forward_pre_hook(self._enter_module(clean_name(name))))
            self._hooks.append(part.register_forward_hook(self._leave_module, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        with torch.no_grad():
            for tensor, before in reversed(self._written):
                tensor.copy_(before)

    def origin_of(self, tensors: Iterable[Tensor]) -> tuple[Origin, OperatorCall | None] | None:
        """Returns the earliest origin of the non-finite values in these tensors, and the operator that made it a NaN.

        An infinity that was meant counts only where there is nothing else.
        """
        found = [t for t in map(self._taint_of, tensors) if t is not None]
        return self._answer(found)

    def earliest(self) -> tuple[Origin, OperatorCall | None] | None:
        """Returns the first value that went bad unintended, whether or not it reached a result."""
        return self._answer([taint for taint in self._taints.values() if not taint.origin.meant])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operator and looks at what it made."""
        kwargs = kwargs or {}
        name = func.__name__
        if func.namespace in _COLLECTIVES and num_processes() > 1:
            raise NeedsOtherProcesses(
                f"the step talks to other processes ({func}), which do not run it again at the same time"
            )
        call = _Call(self, func, args, kwargs)
        self._protect(call.written)
        result = func(*args, **kwargs)
        self._num_calls += 1
        self._remember_forward(call)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        outputs += [t for t in call.written if all(t is not o for o in outputs)]
        for output in outputs:
            self._made.add(_memory(output))
            if name.startswith(_UNINITIALIZED):
                self._taints.pop(_memory(output), None)
            else:
                self._look_at(output, call)
        return result

    def _answer(self, taints: Sequence[_Taint]) -> tuple[Origin, OperatorCall | None] | None:
        if not taints:
            return None
        first = min(taints, key=lambda t: (t.origin.meant, t.order))
        used = self._first_use.get(first.origin)
        return (first.origin if used is None else replace(first.origin, call=used)), first.nan

    def _look_at(self, output: Tensor, call: _Call) -> None:
        largest = largest_magnitude(output)
        if largest is None:
            return
        memory = _memory(output)
        if largest < float("inf"):  # False for NaN
            fraction = largest / torch.finfo(output.dtype).max
            dtype = str(output.dtype).removeprefix("torch.")
            extreme = Extreme(self._num_calls, call.phase, call.module, call.operator, dtype, largest, fraction)
            if call.written or memory not in call.memories:  # a mere view tells nothing new
                self._trail.append(extreme)
            if is_near_limit(largest, output.dtype):
                self.near_limit.append(extreme)
            covered = all(piece.nbytes >= piece.untyped_storage().nbytes() for piece in pieces(output))
            if memory not in call.memories or (covered and call.written):
                self._taints.pop(memory, None)
            return
        taint = self._trace(output, call)
        before = self._taints.get(memory)
        if before is None or memory not in call.memories or taint.order < before.order:
            self._taints[memory] = taint

    def _trace(self, output: Tensor, call: _Call) -> _Taint:
        """Returns the origin of a non-finite result: one of the inputs', or the operator itself."""
        inherited = call.bad_inputs()
        event = None

        def this() -> OperatorCall:
            nonlocal event
            event = event or call.describe(output)
            return event

        is_nan = bool(reals(output).isnan().any())
        unmeant = [taint for taint in inherited if not taint.origin.meant]
        if unmeant:
            taint = min(unmeant, key=lambda t: t.order)
            if taint.origin.call is None and taint.origin not in self._first_use:
                self._first_use[taint.origin] = this()
            turned = taint.nan or (this() if is_nan and not _had_nan(taint.origin) else None)
            return _Taint(taint.origin, taint.order, turned)
        if inherited and not (is_nan and not any(t.nan or _had_nan(t.origin) for t in inherited)):
            return min(inherited, key=lambda t: t.order)
        meant = not inherited and not is_nan and any(part in call.operator for part in _FILLS)
        origin = Origin("operator", call.module, this(), None, meant, tuple(self._trail))
        return _Taint(origin, self._num_calls, None)

    def _protect(self, written: Sequence[Tensor]) -> None:
        for tensor in written:
            if _memory(tensor) not in self._made and _memory(tensor) not in self._buffers:
                self._written.append((tensor, tensor.detach().clone()))

    def _remember_forward(self, call: _Call) -> None:
        if call.phase == "forward":
            # An operator that autograd follows has just been given the number before the next one.
            self._forward_of.setdefault(torch._C._autograd._get_sequence_nr() - 1, (call.module, call.source))

    def _scan(self, module: nn.Module, batch: object) -> None:
        for name, parameter in module.named_parameters():
            self._hold(parameter, "parameter", clean_name(name), -3)
        for path, tensor in named_tensors(batch):
            self._hold(tensor, "batch", path, -2)
        for path, numbers in named_numbers(batch):
            values = TensorRange.of(torch.tensor(numbers, device="cpu"))
            self._spoiled += [(path, values)] if values.nan or values.inf else []
        for name, buffer in module.named_buffers():
            self._hold(buffer, "buffer", clean_name(name), -1)

    def _hold(self, tensor: Tensor, place: Any, name: str, order: int) -> None:
        largest = largest_magnitude(tensor)
        if largest is None:
            return
        if largest < float("inf"):
            if is_near_limit(largest, tensor.dtype):
                fraction, dtype = largest / torch.finfo(tensor.dtype).max, str(tensor.dtype).removeprefix("torch.")
                owner = name.rpartition(".")[0] if place != "batch" else ""
                self.near_limit.append(Extreme(0, "forward", owner, f"{place} {name}", dtype, largest, fraction))
            return
        values = TensorRange.of(tensor)
        if place == "batch":
            self._spoiled.append((name, values))
        is_mask = place == "buffer" and not values.nan and not bool((reals(tensor) == float("inf")).any())
        origin = Origin(place, name, None, values, is_mask)
        self._taints.setdefault(_memory(tensor), _Taint(origin, order, None))

    def taint_stranger(self, tensor: Tensor) -> _Taint:
        """The origin of a tensor that is not finite and was never seen before.

        What was made of an entry of the batch behind torch's back (of an array, or of a list of numbers) is known by
        its numbers. Only what can have come from nowhere else is said to be from before the step.
        """
        values = TensorRange.of(tensor)
        for path, entry in self._spoiled:
            if (entry.nan, entry.inf) == (values.nan, values.inf):
                return _Taint(Origin("batch", path, None, entry, False), -2, None)
        shape = ", ".join(map(str, shape_of(tensor)))
        name = f"a tensor of shape [{shape}] made before the step"
        if self._opaque:
            name += f", or in {', '.join(self._opaque[:3])}, which could not be looked into,"
        return _Taint(Origin("tensor", name, None, values, not values.nan), 0, None)

    def _taint_of(self, tensor: Tensor) -> _Taint | None:
        largest = largest_magnitude(tensor)
        return None if largest is None or largest < float("inf") else self._taints.get(_memory(tensor))

    def _enter_module(self, name: str) -> Any:
        def enter(part: nn.Module, args: Any) -> None:
            self._stack.append((name, torch._C._current_autograd_node()))

        return enter

    def _leave_module(self, part: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()


class _Call:
    """One operator about to run: where, with what."""

    def __init__(self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.recorder = recorder
        self.operator = str(func)
        self.tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.memories = {_memory(tensor) for tensor in self.tensors}
        self.written: list[Tensor] = []
        if func._schema.is_mutable or "batch_norm" in func.__name__:
            self.written = _written_tensors(func, args, kwargs)
        self.before = {id(t): TensorRange.of(t) for t in self.written if largest_magnitude(t) is not None}
        self.bad_before = {id(t) for t in self.written if _memory(t) in recorder._taints}
        node = torch._C._current_autograd_node()
        self.module, entered_in = recorder._stack[-1] if recorder._stack else ("", None)
        self.phase: Phase = "forward" if node is None or node is entered_in else "backward"
        self.node: str | None = None
        if self.phase == "backward":
            self.node = node.name()
            self.module, self.source = recorder._forward_of.get(node._sequence_nr(), (self.module, None))
        else:
            self.source = _user_line()

    def bad_inputs(self) -> list[_Taint]:
        """Returns where the non-finite inputs got it from; a tensor never seen before is its own origin."""
        found = []
        for tensor in self.tensors:
            if id(tensor) in self.before:
                if id(tensor) in self.bad_before:
                    found.append(self.recorder._taints[_memory(tensor)])
                continue
            largest = largest_magnitude(tensor)
            if largest is None or largest < float("inf"):
                continue
            taint = self.recorder._taints.get(_memory(tensor))
            if taint is None:
                taint = self.recorder._taints[_memory(tensor)] = self.recorder.taint_stranger(tensor)
            found.append(taint)
        return found

    def describe(self, output: Tensor) -> OperatorCall:
        """Returns the call as it is reported."""
        ranges = [self.before.get(id(t)) or TensorRange.of(t) for t in self.tensors if largest_magnitude(t) is not None]
        return OperatorCall(
            index=self.recorder._num_calls,
            phase=self.phase,
            module=self.module,
            operator=self.operator,
            node=self.node,
            source=self.source,
            inputs=tuple(ranges),
            output=TensorRange.of(output),
        )


def _had_nan(origin: Origin) -> bool:
    values = origin.held or (origin.call.output if origin.call is not None else None)
    return values is not None and values.nan > 0


def _written_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors an in-place or ``out=`` operator writes to, by its schema."""
    values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    name = func.__name__
    if "batch_norm" in name and "backward" not in name:  # some update their statistics and do not say so
        written += [statistic for statistic in ("running_mean", "running_var") if statistic not in written]
    return [leaf for name in written for leaf in tree_leaves(values.get(name)) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    """Returns where the numbers of a tensor lie: one place for all views, and for the array that they came from."""
    for piece in pieces(tensor):
        storage = piece.untyped_storage()
        return storage.data_ptr() or storage._cdata
    return id(tensor)


def _user_line() -> str | None:
    """File, line and function of the innermost frame that belongs neither to a library nor to this package."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        parts = path.split(os.sep)
        is_library = "site-packages" in parts and any(name in parts for name in _LIBRARIES)
        if not path.startswith("<") and not is_library and not path.startswith(_PACKAGE):
            return f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
