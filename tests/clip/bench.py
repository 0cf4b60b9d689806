"""A set of parameters without a network, whose gradients a test sets, and one step of a policy on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_gradguard.clip.answer import Clip
from lightning_gradguard.clip.apply import apply_
from lightning_gradguard.clip.base import ClipPolicy, State, fresh_state
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, measure
from lightning_gradguard.measurement.needs import Needs

SHAPES = ((3, 4), (4,), (2, 2))


def layout_of(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32) -> Layout:
    module = nn.Module()
    for i, shape in enumerate(shapes):
        module.register_parameter(f"w{i}", nn.Parameter(torch.ones(shape, dtype=dtype)))
    return Layout.from_optimizer(module, torch.optim.SGD(module.parameters(), lr=0.1))


class Run:
    """A policy over parameters, with its state."""

    def __init__(self, policy: ClipPolicy, layout: Layout | None = None) -> None:
        self.policy = policy
        self.layout = layout_of() if layout is None else layout
        self.needs = Needs.of([policy], self.layout)
        self.state: State = fresh_state(policy, self.layout, torch.device("cpu"))

    def measure(self, grads: Sequence[Tensor | None]) -> Measurement:
        for parameter, grad in zip(self.layout.params, grads, strict=True):
            parameter.grad = None if grad is None else grad.clone().to(parameter.dtype)
        return measure(self.layout, self.needs)

    @property
    def memory(self) -> dict[str, Tensor]:
        """The state as tensors, whatever the arithmetic: in single precision."""
        whole = {k: v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for k, v in self.state.items()}
        return {key: value.float().clone() for key, value in whole.items()}

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None]) -> tuple[Clip, list[Tensor | None]]:
        """One step: the answer, and the gradients as they are afterwards."""
        measurement = self.measure(grads)
        clip = self.policy.decide(measurement, self.state)
        apply_(measurement, clip)
        return clip, [parameter.grad for parameter in self.layout.params]

    def at(self, level: float) -> tuple[Clip, list[Tensor | None]]:
        """One step with gradients of this total norm, all elements equal."""
        count = sum(parameter.numel() for parameter in self.layout.params)
        return self.step([torch.full(p.shape, level / count**0.5) for p in self.layout.params])

    def norm_after(self, level: float) -> float:
        """The norm that is left of a step of this norm."""
        _, grads = self.at(level)
        return float(torch.cat([grad.double().flatten() for grad in grads]).norm())
