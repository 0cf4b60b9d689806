"""What a clipping policy is, what it answers, and how the answer is carried out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.arguments import By, show_arguments
from lightning_gradguard.clip.arithmetic import LARGEST as LARGEST
from lightning_gradguard.clip.arithmetic import Number, number
from lightning_gradguard.clip.arithmetic import norm_coefficient as norm_coefficient
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.needs import NOTHING, Needs
from lightning_gradguard.measurement.unit_norms import UnitNorms

State = dict[str, Any]  # tensors, and numbers in the place of those that a policy calls single


@dataclass(frozen=True, eq=False)
class Clip:
    """A policy's answer to one measurement: what to do to the gradients, as device tensors.

    Of ``coefficient``, ``bound`` and ``units`` one is set; none means *leave them alone*.

    Attributes:
        threshold: what the policy compared with, shape ``[]``: a norm, or a largest absolute element; ``None`` for a
            policy with one threshold per tensor or unit.
        coefficient: multiply gradients by it, in [0, 1]: shape ``[]``, or ``[num_params]``.
        bound: clamp elements to [-bound, bound]: a float, or a tensor of shape ``[]`` or ``[num_params]``.
        beyond: multiply what lies beyond the bound by it instead, in [0, 1], ``[num_params]``; the bound is a tensor of
            that shape then.
        units: for each parameter a coefficient that broadcasts over its gradient (over the values of a coalesced
            sparse one), ``None`` where untouched.
        by_unit: the norms that ``units`` go by with the factor for each, from a policy that knows them: they tell what
            is left of the gradients, which otherwise are read once more when they were clipped.
        changes: whether the gradients change at all, a boolean of shape ``[]``, from a policy that knows it; otherwise
            :func:`is_clipped` finds out.
        then: what to do after this, for a chain of policies.
    """

    threshold: Tensor | None = None
    coefficient: Tensor | None = None
    bound: float | Tensor | None = None
    beyond: Tensor | None = None
    units: Sequence[Tensor | None] | None = None
    by_unit: Sequence[tuple[UnitNorms, Tensor]] | None = None
    changes: Tensor | None = None
    then: Clip | None = None
    _versions: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._count_writes())

    def overwritten(self) -> list[str]:
        """Returns the names of those of its tensors that somebody wrote to since it was made."""
        now = self._count_writes()
        return [name for name, version in self._versions.items() if now[name] != version]

    def _count_writes(self) -> dict[str, int]:
        # torch counts the writes to a tensor and to all views of it; the host reads no value
        single = (self.threshold, self.coefficient, self.bound, self.beyond, self.changes)
        names = ("threshold", "coefficient", "bound", "beyond", "changes")
        return {name: value._version for name, value in zip(names, single, strict=True) if isinstance(value, Tensor)}


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
            :mod:`~lightning_gradguard.clip.arithmetic`: floats where gradients lie on the CPU, tensors elsewhere.

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


def ask(policy: ClipPolicy, measurement: Measurement, state: State) -> Clip:
    """Returns a policy's answer to one measurement; ``state`` is updated.

    Raises:
        RuntimeError: if the policy wrote to its answer after making it.
    """
    clip = policy.decide(measurement, state)
    if written := clip.overwritten():
        raise RuntimeError(
            f"{type(policy).__name__}.decide wrote to the {written[0]} of its answer after making it, so that it is no "
            "longer what gradients were compared with: write the state in place before, or answer with a clone"
        )
    return clip


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


def observed(measurement: Measurement, by: By) -> tuple[Number, Number]:
    """Returns the number an adaptive policy follows, and the total norm, which tells whether the step is finite.

    Args:
        measurement: of this step.
        by: ``"norm"`` for the total norm, ``"value"`` for the largest absolute element.
    """
    total = number(measurement.total)
    if by == "norm":
        return total, total
    largest = measurement.max_abs
    return (number(largest.amax()) if largest.numel() else total), total


def limited(
    measurement: Measurement, by: By, level: Number, threshold: Number, target: Number, eps: float = 0.0
) -> Clip:
    """Returns the clip that brings what :func:`observed` gave down to ``target``: by scaling, or by clamping elements.

    Args:
        measurement: of this step.
        by: what was observed.
        level: what it was.
        threshold: what it was compared with, for the record.
        target: where it shall be afterwards; infinite for *leave it alone*.
        eps: see :func:`norm_coefficient`.
    """
    change = norm_coefficient(level, target, eps) if by == "norm" else target
    if not isinstance(change, Tensor):  # calculated on the host: both in one tensor
        threshold, change = torch.tensor([threshold, change], dtype=measurement.total.dtype).unbind()
    elif not isinstance(threshold, Tensor):
        threshold = measurement.total.new_full((), threshold)
    return Clip(threshold=threshold, coefficient=change) if by == "norm" else Clip(threshold=threshold, bound=change)
