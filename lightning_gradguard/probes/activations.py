"""What activations look like, on sampled steps: hooks are attached, look once, and are gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.arguments import check_count
from lightning_gradguard.harmless.part import Part
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.measurement.tensors import accumulator
from lightning_gradguard.probes.compiled import modules_in_compiled_code
from lightning_gradguard.probes.functions import FunctionWatch
from lightning_gradguard.probes.plain import plain_values
from lightning_gradguard.probes.sampled import SampledProbe, is_sampled
from lightning_gradguard.record import ActivationStats

# An output beyond these is on the flat part of the curve: the derivative is below 0.04 (tanh) and 0.02 (sigmoid).
_TANH_FLAT = 0.98
_SIGMOID_FLAT = 0.02
# Such units never let a gradient through again once their input is negative for every sample.
_CAN_DIE = ("ReLU", "ReLU6", "GELU", "SiLU")
_ACTIVATION_MODULES = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU)
_SAMPLES = 8  # of a batch among which outputs are compared
_DEAD_ABOVE = -1e-2  # GELU and SiLU tend to zero from below
_MAX_CALLS = 8  # of one module in one forward pass; a cell in a loop over time would fill the record
_WINDOW = 64  # sampled batches after which the memory of dead units is renewed, so that a revived one is seen


@dataclass
class _Seen:
    """Device tensors of one module call, until the record asks for them."""

    name: str
    kind: str
    dtype: torch.dtype
    values: dict[str, Tensor] = field(default_factory=dict)
    num_elements: int = 1
    num_batches: int = 1


class Probe(SampledProbe):
    """Looks at the outputs of layers and activation functions on sampled steps.

    On a sampled step forward hooks are attached before the forward pass and removed after it; on every other step
    the cost is one comparison. Hooks change nothing: outputs are read under ``no_grad``, and no random number is
    drawn. Nothing crosses to the host before :meth:`take`.

    Watched are modules that own parameters, activation modules, and activations, softmax and attention that are applied
    as functions, under the name of the module that applies them: ``encoder.relu()``. What runs inside of compiled code
    is not seen, and no function in a model that has any, unless it is made to run eagerly.

    Args:
        module: the model.
        every_n_steps: interval between sampled steps, >= 1; the powers of two below it are sampled as well.
        eagerly: whether to look into compiled code, which whoever runs the step then runs eagerly.

    Attributes:
        functions: what looks at functions.
        order: name of each module that ran, mapped to its place in the forward pass; empty before the first sample.

    Raises:
        TypeError, ValueError: if ``every_n_steps`` is no int of at least 1.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> probe = Probe(net)
        >>> probe.start(step=0)
        True
        >>> _ = net(torch.ones(2, 4))
        >>> probe.stop()
        >>> [stats.kind for stats in probe.take()]
        ['Linear', 'ReLU']
    """

    def __init__(self, module: nn.Module, every_n_steps: int = 50, *, eagerly: bool = False) -> None:
        check_count(every_n_steps, "every_n_steps")
        self.module = module
        self.eagerly = eagerly
        self.every_n_steps = every_n_steps
        self.order: dict[str, int] = {}
        self._watched: list[tuple[str, nn.Module]] = []
        self.part = Part("the probe of activations", "rules that look at activations stay silent")
        self._calls: dict[str, int] = {}
        self._seen: dict[str, _Seen] = {}
        self._first: dict[str, _Seen] | None = None  # the first sample: how the run began is not to be lost
        self._told = False  # whether a record has asked yet
        self._highest: dict[str, Tensor] = {}  # per unit, over the sampled batches
        self._lowest: dict[str, Tensor] = {}
        self._batches: dict[str, int] = {}
        self._previous: nn.Module | None = None
        self._inside: list[tuple[str, nn.Module]] = []  # modules whose forward is running, the innermost last
        self._entered = False  # whether a watched module has run in this forward pass
        self._ready: tuple[ActivationStats, ...] | None = None  # a sample that a checkpoint held
        self.functions = FunctionWatch(self._see_function)
        self.flows: dict[str, bool] = {}  # whether a gradient flows through the output of a module

    def start(self, step: int) -> bool:
        """Attaches the hooks if the step is sampled; call it before the forward pass."""
        if not is_sampled(step, self.every_n_steps) or self.part.is_attached:
            return self.part.is_attached
        if self._seen and not self._told and self._first is None:
            self._first = self._seen
        self._seen, self._calls = {}, {}
        if not self._watched:
            hidden = set() if self.eagerly else modules_in_compiled_code(self.module)
            self._watched = [
                (name, part)
                for part, name in module_names(self.module).items()
                if is_watched(part) and part not in hidden
            ]
        self._inside, self._entered = [], False
        for name, module in self._watched:
            self.part.attach(module, self._hook(name), name)
        if self.eagerly or not modules_in_compiled_code(self.module):
            self._watch_functions()
        return True

    def _watch_functions(self) -> None:
        for part, name in module_names(self.module).items():
            self.part.attach_before(part, self._enter(name), name)
            self.part.attach(part, self._leave, name)
        self.functions.part.run(self.functions.start)

    def look_for_modules(self) -> None:
        """Makes the next sample look anew which modules there are."""
        self._watched = []

    def stop(self) -> None:
        """Removes the hooks; call it after the forward pass."""
        self.part.detach()
        self._previous = None
        self.functions.part.run(self.functions.stop)

    @torch.no_grad()
    def take(self) -> tuple[ActivationStats, ...] | None:
        """Returns what the last sample saw, in the order of the forward pass; ``None`` without a new sample.

        The first call tells of the first sample instead, however many there were by then: what initialization does
        shows nowhere else.
        """
        if self.part.is_attached:
            return None
        if not self._seen:
            ready, self._ready = self._ready, None
            return ready
        self._ready = None
        seen = list((self._first or self._seen).values())
        self._first, self._seen, self._told = None, {}, True
        values = [value for entry in seen for value in entry.values.values()]
        home = values[0].device
        dtype = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
        values = [value.to(home, dtype, non_blocking=True) for value in values]
        numbers = iter(torch.stack(values).tolist())  # the one host sync of a sampled step
        return tuple(_stats(entry, {key: next(numbers) for key in entry.values}) for entry in seen)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs in order to see what it would have seen; waits for a sample that is not told yet."""
        before = (self._first, self._seen, self._told)
        waiting = self.take()
        self._first, self._seen, self._told = before
        self._ready = waiting if not self._seen else None
        return {
            "waiting": [] if waiting is None else [asdict(stats) for stats in waiting],
            "told": self._told,
            "order": dict(self.order),
            "highest": {name: value.clone() for name, value in self._highest.items()},
            "lowest": {name: value.clone() for name, value in self._lowest.items()},
            "batches": dict(self._batches),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._first, self._seen, self._told = None, {}, state["told"]
        self._ready = tuple(ActivationStats(**stats) for stats in state["waiting"]) or None
        self.order.update(state["order"])
        self._batches = dict(state["batches"])
        home = next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))
        self._highest = {name: value.to(home) for name, value in state["highest"].items()}
        self._lowest = {name: value.to(home) for name, value in state["lowest"].items()}

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._inside.append((name, module))

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self._inside and self._inside.pop()[1] is not module:
            pass  # one whose forward raised never left

    def _see_function(self, kind: str, output: Tensor, figures: Mapping[str, Tensor]) -> None:
        """Takes in an activation that was applied as a function; in a watched activation module it is seen as such."""
        owner, module = self._inside[-1] if self._inside else ("", None)
        if isinstance(module, (*_ACTIVATION_MODULES, nn.RNNBase, nn.RNNCellBase)) or not output.is_floating_point():
            return
        call = f"{kind.lower()}()"
        name = f"{owner}.{call}" if owner else call
        number = self._calls[name] = self._calls.get(name, 0) + 1
        if number > _MAX_CALLS:
            return
        entry = _Seen(name if number == 1 else f"{name}#{number}", kind, output.dtype)
        self._seen[entry.name] = entry
        self._look(entry, output, None)
        entry.values.update(figures)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            output = plain_values(output[0] if isinstance(output, tuple) and output else output)
            if output is None:
                return
            first, self._entered = not self._entered, True
            call = self._calls[name] = self._calls.get(name, 0) + 1
            self.order.setdefault(name, len(self.order))
            if call <= _MAX_CALLS:
                key = name if call == 1 else f"{name}#{call}"
                entry = _Seen(key, type(module).__name__, output.dtype)
                self._seen[key] = entry
                self._look(entry, output, args[0] if first and args else None, module)
                self.flows[name] = output.requires_grad
                if output.dtype in (torch.float16, torch.bfloat16) and output.requires_grad and not output.is_leaf:
                    smallest = torch.finfo(output.dtype).smallest_normal
                    hook = self.part.hook(_underflow_hook(entry.values, smallest), f"module {name!r}")
                    output.register_hook(hook)
            self._previous = module

        return hook

    @torch.no_grad()
    def _look(self, entry: _Seen, output: Tensor, given: Any = None, module: nn.Module | None = None) -> None:
        """Takes in an output; ``given`` is what went into the first module."""
        values = entry.values
        output = output.detach()
        floats = output.to(accumulator(output.dtype))
        entry.num_elements = floats.numel()
        values["norm"] = torch.linalg.vector_norm(floats)
        kinds = {entry.kind, *(base.__name__ for base in type(module).__mro__)}  # of a subclass it is that of its base
        if not kinds.isdisjoint(_CAN_DIE):
            low, high = self._extremes_of_units(floats)
            values["dead"], entry.num_batches = self._dead(entry.name, low, high)
            values["low"], values["high"] = low.amin(), high.amax()
        else:
            values["low"], values["high"] = torch.aminmax(floats)
        tokens = isinstance(module, nn.Embedding) and isinstance(given, Tensor)
        if (inputs := plain_values(given.float() if tokens else given)) is not None:
            values["input_rms"] = inputs.to(accumulator(inputs.dtype)).square().mean().sqrt()
        if not kinds.isdisjoint(("Tanh", "RNN", "RNNCell")) and getattr(module, "nonlinearity", "tanh") == "tanh":
            values["saturated"] = (floats.abs() > _TANH_FLAT).float().mean()
        elif not kinds.isdisjoint(("Linear", "Conv1d", "Conv2d", "Conv3d")):
            self._spread(values, floats, module)
        elif not kinds.isdisjoint(("LSTM", "GRU")) and floats.dim() >= 2:
            values["unit_spread"] = (floats - floats[..., :1]).abs().amax()
        elif "Sigmoid" in kinds:
            values["saturated"] = ((floats - 0.5).abs() > 0.5 - _SIGMOID_FLAT).float().mean()

    def _spread(self, values: dict[str, Tensor], output: Tensor, module: nn.Module | None) -> None:
        """How much units differ, and how much samples do: largest difference from the first one, over a few samples."""
        output = output[:_SAMPLES]
        if output.dim() >= 2 and len(output) > 1:
            values["sample_spread"] = (output - output[:1]).abs().amax()
        unit = 1 if output.dim() >= 4 or (isinstance(module, nn.Conv1d) and output.dim() == 3) else output.dim() - 1
        if output.dim() >= 2 and output.shape[unit] > 1:
            values["unit_spread"] = (output - output.narrow(unit, 0, 1)).abs().amax()

    def _extremes_of_units(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest output of each unit."""
        unit = self._unit_dim(output)
        others = [dim for dim in range(output.dim()) if dim != unit]
        return (output.amin(others), output.amax(others)) if others else (output.clone(), output.clone())

    def _dead(self, key: str, low: Tensor, high: Tensor) -> tuple[Tensor, int]:
        """Share of units that were never active over the sampled batches, and how many those are."""
        if key in self._highest and self._highest[key].shape == high.shape and self._batches[key] < _WINDOW:
            high = torch.maximum(high, self._highest[key])
            low = torch.minimum(low, self._lowest[key])
            self._batches[key] += 1
        else:
            self._batches[key] = 1
        self._highest[key], self._lowest[key] = high, low
        return ((high <= 0) & (low > _DEAD_ABOVE)).float().mean(), self._batches[key]

    def _unit_dim(self, output: Tensor) -> int:
        """Tells which dimension counts units: channels after a convolution, the last one otherwise."""
        if output.dim() >= 4:
            return 1
        conv = isinstance(self._previous, nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d)
        return 1 if output.dim() == 3 and conv else output.dim() - 1


def is_watched(module: nn.Module) -> bool:
    """Tells whether a probe looks at what a module gives: it owns parameters, or is an activation."""
    if any(True for _ in module.parameters(recurse=False)):
        return True
    return isinstance(module, _ACTIVATION_MODULES)


def _underflow_hook(values: dict[str, Tensor], smallest: float) -> Callable[[Tensor], None]:
    def hook(grad: Tensor) -> None:
        values["grad_underflow"] = (grad.detach().abs() < smallest).float().mean()

    return hook


def _stats(entry: _Seen, values: dict[str, float]) -> ActivationStats:
    norm, low, high = (values.pop(key) for key in ("norm", "low", "high"))
    max_abs = max(-low, high)
    rms = norm / math.sqrt(entry.num_elements)
    if "unit_spread" in values:
        values["unit_spread"] = values["unit_spread"] / rms if rms > 0 else 0.0
    if "sample_spread" in values:
        values["sample_spread"] = values["sample_spread"] / rms if rms > 0 else 0.0
    return ActivationStats(
        module=entry.name,
        kind=entry.kind,
        rms=rms,
        max_abs=max_abs,
        range_used=max_abs / torch.finfo(entry.dtype).max,
        dtype=str(entry.dtype).removeprefix("torch."),
        num_batches=entry.num_batches,
        **values,
    )
