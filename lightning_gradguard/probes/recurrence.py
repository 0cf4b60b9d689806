"""How far back in time a recurrent module's gradient reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_gradguard.arguments import check_count
from lightning_gradguard.harmless.part import Part
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.probes.compiled import modules_in_compiled_code
from lightning_gradguard.probes.over_time import norms_over_time
from lightning_gradguard.probes.sampled import SampledProbe, is_sampled


class TemporalProbe(SampledProbe):
    """Measures ||d h_T / d x_t|| over t for ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, on sampled steps.

    Weights of a recurrent module are shared over time, so that their gradient cannot show that the past is
    forgotten. Here the last output h_T, projected on a fixed random direction, is differentiated with respect to the
    input at every time step. That is done on the first few sequences of the batch by a pass of its own after the
    module's: the user's graph, gradients, random numbers and buffers stay as they were.

    Loops over cells and packed sequences are not seen; what else is left out, and why, is listed at
    :func:`~lightning_gradguard.probes.over_time.norms_over_time`. Under ``bidirectional`` the forward direction is
    measured.

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
            if isinstance(part, nn.RNNBase) and part not in hidden
        ]
        self.part = Part("the probe of gradients over time", "rules that look at them stay silent")
        self._seen: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        kept = {name: getattr(self, name) for name in ("every_n_steps", "max_sequences", "eagerly")}
        return f"TemporalProbe({type(self.module).__name__}, {', '.join(f'{k}={v!r}' for k, v in kept.items())})"

    def start(self, step: int) -> bool:
        """Attaches hooks if the step is sampled and there is a recurrent module; call it before the forward pass."""
        if not self.part.is_attached and is_sampled(step, self.every_n_steps):
            for name, module in self._recurrent:
                self.part.attach(module, self._hook(name), name, with_kwargs=True)
        return self.part.is_attached

    def stop(self) -> None:
        """Removes the hooks; call it after the forward pass."""
        self.part.detach()

    def take(self) -> dict[str, tuple[float, ...]] | None:
        """Returns the norms over time of the first sample not yet told, by module name; ``None`` without a new one."""
        if not self._seen:
            return None
        seen, self._seen = self._seen, {}
        return {name: tuple(norms.tolist()) for name, norms in seen.items()}  # host sync: a sampled step

    def state(self) -> dict[str, Tensor]:
        """What is not told yet."""
        return {name: norms.clone() for name, norms in self._seen.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from :meth:`state`."""
        self._seen = dict(state)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if name in self._seen:
                return
            with _disable_current_modes():  # what looks at functions is not to see this pass
                norms = norms_over_time(module, args, kwargs, output, self.max_sequences)
            if norms is not None:
                self._seen[name] = norms

        return hook
