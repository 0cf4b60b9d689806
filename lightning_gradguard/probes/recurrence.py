"""How far back in time a recurrent module's gradient reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.arguments import check_count
from lightning_gradguard.measurement.names import module_names
from lightning_gradguard.probes.activations import is_sampled


class TemporalProbe:
    """Measures ||d h_T / d x_t|| over t for ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``, on sampled steps.

    Weights of a recurrent module are shared over time, so that their gradient cannot show that the past is
    forgotten. Here the last output h_T, projected on a fixed random direction, is differentiated with respect to the
    input at every time step. That is done on the first few sequences of the batch by a pass of its own after the
    module's: the user's graph, gradients, random numbers and buffers stay as they were.

    Loops over cells and packed sequences are not seen. Under ``bidirectional`` the forward direction is measured.

    Args:
        module: the model; without a recurrent module in it the probe does nothing.
        every_n_steps: interval between sampled steps, >= 1; the powers of two below it are sampled as well.
        max_sequences: how many sequences of a batch to look at, >= 1. Four show the decay as well as a whole batch.

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

    def __init__(self, module: nn.Module, every_n_steps: int = 50, max_sequences: int = 4) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_sequences", max_sequences)):
            check_count(value, name)
        self.module = module
        self.every_n_steps = every_n_steps
        self.max_sequences = max_sequences
        self._recurrent = [(n, m) for m, n in module_names(module).items() if isinstance(m, nn.RNNBase)]
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, Tensor] = {}

    def start(self, step: int) -> bool:
        """Attaches hooks if the step is sampled and there is a recurrent module; call it before the forward pass."""
        if self._recurrent and not self._handles and is_sampled(step, self.every_n_steps):
            self._handles = [m.register_forward_hook(self._hook(n), with_kwargs=True) for n, m in self._recurrent]
        return bool(self._handles)

    def stop(self) -> None:
        """Removes the hooks; call it after the forward pass."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> dict[str, tuple[float, ...]] | None:
        """The norms over time of the first sample not yet told, by module name; ``None`` without a new one."""
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
            inputs = args[0] if args else kwargs.get("input")
            if name not in self._seen and isinstance(inputs, Tensor) and inputs.dim() == 3:
                hidden = args[1] if len(args) > 1 else kwargs.get("hx")
                with _disable_current_modes():  # what looks at functions is not to see this pass
                    self._seen[name] = self._measure(module, inputs, hidden)

        return hook

    def _measure(self, module: nn.RNNBase, inputs: Tensor, hidden: Any) -> Tensor:
        batch = 0 if module.batch_first else 1
        few = min(self.max_sequences, inputs.shape[batch])
        x = inputs.detach().narrow(batch, 0, few).clone().requires_grad_()
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            output, _ = module.forward(x, _narrow(hidden, few))  # forward, not __call__: no hook sees this pass
            last = output.select(1 - batch, -1)[:, : module.proj_size or module.hidden_size]
            generator = torch.Generator().manual_seed(0)
            direction = torch.randn(last.shape[-1], generator=generator).to(last)
            (gradient,) = torch.autograd.grad((last * direction).sum(), x)
        over_time = gradient.detach().movedim(1 - batch, 0).flatten(1)
        return torch.linalg.vector_norm(over_time, dim=1, dtype=torch.float32)


def _narrow(hidden: Any, few: int) -> Any:
    """The states of the first sequences; states lie as [layers, batch, features]."""
    if hidden is None:
        return None
    if isinstance(hidden, tuple):
        return tuple(_narrow(state, few) for state in hidden)
    return hidden.detach().narrow(1, 0, few).contiguous()
