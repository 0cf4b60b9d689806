"""What a clipping policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.arguments import show_arguments
from lightning_gradguard.clip.answer import LARGEST as LARGEST
from lightning_gradguard.clip.answer import Clip as Clip
from lightning_gradguard.clip.answer import limited as limited
from lightning_gradguard.clip.answer import norm_coefficient as norm_coefficient
from lightning_gradguard.clip.answer import number
from lightning_gradguard.clip.answer import observed as observed
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.needs import NOTHING, Needs

State = dict[str, Any]  # tensors, and numbers in the place of those that a policy calls single


class ClipPolicy(ABC):
    """Decides how far the gradients of one optimizer step are cut back.

    A policy object holds settings and nothing else; one object may serve several optimizers. What it remembers is a
    flat dict of tensors that the pipeline keeps for each optimizer, hands to :meth:`decide`, and puts into the
    checkpoint. What lies on a device stays there: a policy never waits for a value of it.

    To write one takes :meth:`init_state` and :meth:`decide`; besides, :meth:`needs` for one that goes by units, and
    :meth:`check` for one that has something to warn of. What it may rely on:

    - **When.** :meth:`decide` is called once for each step of its optimizer: after accumulation, all-reduce and
      unscaling, before anybody knows whether the step is bad. A step without any gradient does not call it. A step
      whose norm overflowed though every element is finite calls it twice under a guard: with the infinite norm, and
      with the exact one. Later policies of a chain see what the ones before would leave. Under several processes each
      one calls it with the same numbers.
    - **State.** Rebind an entry (``state["mean"] = new``) or write it in place (``state["mean"].lerp_(...)``), as you
      like; keys, shapes and dtypes stay those of :meth:`init_state`. What goes into the answer must not be written to
      afterwards: write first, or answer with a clone. Otherwise the step ends with an error.
    - **What is not finite.** A NaN or infinite element shows as a NaN or infinite ``total``, and in ``norms`` (and
      ``max_abs``) of its parameter. The state must be as before then: with a guard the answer is thrown away, or the
      step is decided again; without one it is carried out. A finite step that the guard drops for another reason (a
      spike, a buffer) has been decided, and learned, like any other.

    Attributes:
        per_parameter: keys of the state whose first dimension is the layout's parameters; they are stored by name,
            and follow their parameters when the layout changes.
        single: keys of the state that are single numbers, which :meth:`decide` calculates with by the functions of
            :mod:`~lightning_gradguard.clip.answer`: floats where gradients lie on the CPU, tensors elsewhere.

    Example:
        >>> import torch
        >>> from lightning_gradguard import ClipPolicy, Clip, GradientPipeline
        >>> class Halve(ClipPolicy):
        ...     def init_state(self, layout, device):
        ...         return {}
        ...     def decide(self, measurement, state):
        ...         return Clip(coefficient=torch.full_like(measurement.total, 0.5))
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> pipeline = GradientPipeline(net, torch.optim.SGD(net.parameters(), lr=0.1), clip=Halve())
        >>> _ = pipeline.before_step()
        >>> net.weight.grad
        tensor([[1.5000, 2.0000]])
    """

    per_parameter: tuple[str, ...] = ()
    single: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return show_arguments(self)

    @abstractmethod
    def init_state(self, layout: Layout, device: torch.device) -> State:
        """Returns the complete state before the first step: tensors on ``device``, of a dtype that you name.

        ``torch.zeros(())`` without ``dtype`` follows ``torch.set_default_dtype``, and float16 cannot hold a norm.
        """

    @abstractmethod
    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Answers one measurement, and lets it into ``state`` if its total norm is finite.

        Args:
            measurement: the gradients of this step, see
                :class:`~lightning_gradguard.measurement.measurement.Measurement`.
            state: what :meth:`init_state` gave, as the last step left it; to be rebound or written in place.

        Returns:
            What to do to the gradients; nothing is written to them here.
        """

    def needs(self, layout: Layout) -> Needs:
        """Returns what is to be measured of the gradients beyond the norm of each; nothing, unless a policy says so.

        Called once for a layout, before the first step; :meth:`decide` then finds the answer in
        ``measurement.by_unit(self)``. A policy that asks others returns ``Needs.of(others, layout)``. Under several
        processes all must return the same.
        """
        return NOTHING

    def check(self, layout: Layout) -> None:  # noqa: B027
        """Warns if the policy can do nothing with these parameters; called when training starts."""


def fresh_state(policy: ClipPolicy, layout: Layout, device: torch.device) -> State:
    """Returns a policy's state before the first step, as tensors of its own that it may write in place.

    Raises:
        TypeError: if the policy gives something else than tensors.
    """
    state = policy.init_state(layout, device)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(policy).__name__}.init_state must give tensors, got {value!r} ({type(value).__name__}) for "
                f"{key!r}: write torch.tensor({value!r}, dtype=torch.float32, device=device)"
            )
    return {key: number(value) if key in policy.single else value.clone() for key, value in state.items()}
