"""How far back in time a recurrent module's gradient reaches."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_gradguard.arguments import check_count
from lightning_gradguard.harmless.part import Part
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.measurement.tensors import accumulator
from lightning_gradguard.probes.compiled import modules_in_compiled_code
from lightning_gradguard.probes.over_time import norms_over_time
from lightning_gradguard.probes.plain import plain_values
from lightning_gradguard.probes.sampled import SampledProbe, is_sampled

_LONGEST = 1024  # calls of a cell in a loop that are looked at


class TemporalProbe(SampledProbe):
    """Measures ||d h_T / d x_t|| over t for ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, on sampled steps.

    Weights of a recurrent module are shared over time, so that their gradient cannot show that the past is
    forgotten. Here the last output h_T, projected on a fixed random direction, is differentiated with respect to the
    input at every time step. That is done on the first few sequences of the batch by a pass of its own after the
    module's: the user's graph, gradients, random numbers and buffers stay as they were.

    Of cells in a loop it is ||d loss / d h_t||, from hooks on their outputs: a pass of its own would have to run the
    user's loop. It is that of the first sequence of calls, each of which is given the state that the one before gave.

    What is left out, and why, is listed at :func:`~lightning_gradguard.probes.over_time.norms_over_time`. Under
    ``bidirectional`` the forward direction is measured.

    Args:
        module: the model; without a recurrent module in it the probe does nothing.
        every_n_steps: interval between sampled steps, >= 1; the powers of two below it are sampled as well.
        max_sequences: how many sequences of a batch to look at, >= 1. Four show the decay as well as a whole batch.
        eagerly: whether to look into compiled code, which whoever runs the step then runs eagerly.

    Raises:
        TypeError, ValueError: if an argument is no int of at least 1.

    Example:
        >>> import torch
        >>> probe = TemporalProbe(torch.nn.GRU(3, 5, batch_first=True))
        >>> probe.start(step=0)
        True
        >>> _ = probe.module(torch.zeros(2, 7, 3))
        >>> probe.stop()
        >>> [len(norms) for norms in probe.take().values()]
        [7]
    """

    def __init__(
        self, module: nn.Module, every_n_steps: int = 50, max_sequences: int = 4, *, eagerly: bool = False
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_sequences", max_sequences)):
            check_count(value, name)
        self.module = module
        self.every_n_steps = every_n_steps
        self.max_sequences = max_sequences
        self.eagerly = eagerly
        hidden = set() if eagerly else modules_in_compiled_code(module)
        self._recurrent = [
            (name, part)
            for part, name in module_names(module).items()
            if isinstance(part, nn.RNNBase | nn.RNNCellBase) and part not in hidden
        ]
        self.part = Part("the probe of gradients over time", "rules that look at them stay silent")
        self._seen: dict[str, Tensor] = {}
        self._loops: dict[str, _Loop] = {}

    def __repr__(self) -> str:
        kept = {name: getattr(self, name) for name in ("every_n_steps", "max_sequences", "eagerly")}
        return f"TemporalProbe({type(self.module).__name__}, {', '.join(f'{k}={v!r}' for k, v in kept.items())})"

    def start(self, step: int) -> bool:
        """Attaches hooks if the step is sampled and there is a recurrent module; call it before the forward pass."""
        if not self.part.is_attached and is_sampled(step, self.every_n_steps):
            for name, module in self._recurrent:
                if isinstance(module, nn.RNNBase):
                    self.part.attach(module, self._hook(name), name, with_kwargs=True)
                elif name not in self._loops:
                    self._loops[name] = _Loop()
                    self.part.attach(module, self._cell_hook(name), name, with_kwargs=True)
        return self.part.is_attached

    def stop(self) -> None:
        """Removes the hooks; call it after the forward pass."""
        self.part.detach()

    def take(self) -> dict[str, tuple[float, ...]] | None:
        """Returns the norms over time of the first sample not yet told, by module name; ``None`` without a new one."""
        seen = self._seen | self._of_loops()
        self._seen, self._loops = {}, {}
        if not seen:
            return None
        return {name: tuple(norms.tolist()) for name, norms in seen.items()}  # host sync: a sampled step

    def state(self) -> dict[str, Tensor]:
        """What is not told yet."""
        return {name: norms.clone() for name, norms in (self._seen | self._of_loops()).items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from :meth:`state`."""
        self._seen = dict(state)

    def _of_loops(self) -> dict[str, Tensor]:
        found = {name: loop.norms() for name, loop in self._loops.items()}
        return {name: norms for name, norms in found.items() if norms is not None}

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if name in self._seen:
                return
            with _disable_current_modes():  # what looks at functions is not to see this pass
                norms = norms_over_time(module, args, kwargs, output, self.max_sequences)
            if norms is not None:
                self._seen[name] = norms

        return hook

    def _cell_hook(self, name: str) -> Callable[..., None]:
        loop = self._loops[name]

        def hook(module: nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = args[1] if len(args) > 1 else kwargs.get("hx")
            state = plain_values(_hidden(output))
            if state is None or not state.requires_grad or not loop.goes_on(_hidden(given), state):
                return
            place = loop.length
            loop.length += 1
            state.register_hook(self.part.hook(lambda gradient: loop.add(place, gradient), f"module {name!r}"))

        return hook


class _Loop:
    """The calls of one cell in a loop over time, and the norms of the gradients of what they put out."""

    def __init__(self) -> None:
        self.length = 0
        self._last: weakref.ref[Tensor] | None = None
        self._norms: dict[int, Tensor] = {}

    def goes_on(self, given: Any, state: Tensor) -> bool:
        """Whether a call is given the state that the last one put out, or is the first."""
        last = None if self._last is None else self._last()
        if self.length >= _LONGEST or (self.length and (last is None or given is not last)):
            return False
        self._last = weakref.ref(state)
        return True

    def add(self, place: int, gradient: Tensor) -> None:
        """Takes in the gradient of one state, as the backward pass comes by."""
        self._norms[place] = torch.linalg.vector_norm(gradient.detach(), dtype=accumulator(gradient.dtype))

    def norms(self) -> Tensor | None:
        """Over time, the first step first; ``None`` without a loop or its backward pass."""
        if self.length < 2 or len(self._norms) < self.length:
            return None
        return torch.stack([self._norms[place] for place in range(self.length)])


def _hidden(state: Any) -> Any:
    return state[0] if isinstance(state, tuple) and state else state
