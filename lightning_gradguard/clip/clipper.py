"""The clipping policies of one optimizer, with what each of them remembers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.answer import Clip
from lightning_gradguard.clip.apply import after, apply_, is_clipped, is_tensor_wise, norms_left
from lightning_gradguard.clip.base import ClipPolicy, State, fresh_state
from lightning_gradguard.clip.chain import Chain
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement, whole_norms
from lightning_gradguard.measurement.needs import Needs
from lightning_gradguard.measurement.sharding import is_flat

Policies = ClipPolicy | Mapping[str, ClipPolicy | None]


def check_policy(value: object, where: str) -> None:
    """Refuses what is not a policy, with a hint where a class was passed for an instance.

    Raises:
        TypeError: says what was got, and where.
    """
    if isinstance(value, ClipPolicy):
        return
    if isinstance(value, type) and issubclass(value, ClipPolicy):
        raise TypeError(f"{where} must be a policy, got the class {value.__name__}: write {value.__name__}(...)")
    raise TypeError(f"{where} must be a ClipPolicy such as NormClip(1.0), got {type(value).__name__}: {value!r}")


@dataclass
class _Part:
    """One policy with the parameters that it clips.

    Attributes:
        group: the name of its parameter group; empty for all parameters.
        policy: what decides.
        layout: its parameters.
        indices: these as indices into the optimizer's layout; ``None``: all.
        state: what it remembers.
        needs: what is to be measured for it.
    """

    group: str
    policy: ClipPolicy
    layout: Layout
    indices: list[int] | None
    state: State
    needs: Needs

    @classmethod
    def of(
        cls, group: str, policy: ClipPolicy, layout: Layout, indices: list[int] | None, device: torch.device
    ) -> _Part:
        needs = Needs.of([policy], layout).within(indices)
        return cls(group, policy, layout, indices, fresh_state(policy, layout, device), needs)

    def decide(self, measurement: Measurement) -> tuple[Measurement, Clip]:
        """Returns what the policy sees of a measurement of all parameters, and its answer."""
        # A policy of one group sees its own parameters alone: its norm is that of the group.
        indices = self.indices
        seen = measurement if indices is None else measurement.part(self.layout, indices, self.needs)
        clip = self.policy.decide(seen, self.state)
        clip.refuse_writes(self.policy)
        return seen, clip


@dataclass(eq=False)  # not frozen, nor are others that each step makes: that takes five times as long
class Clips:
    """The answers of an optimizer's policies to one step, each with the part of the measurement that it saw.

    Attributes:
        smallest_coefficient: of the step, of shape ``[]``, on the device. Where gradients are not simply scaled it is 0
            if the step is clipped and 1 if not.
        answers: what each policy saw and said; empty where nothing clips.
        indices: for each answer its parameters, as indices into the layout; ``None``: all.
        ratio: the gradient-to-weight ratio from which the policy clips, for one that goes by it (AGC).
        threshold: what the policy compared with; ``None`` where that is not one number for all parameters.
        single_coefficient: the one that scales the whole gradient, shape ``[]``; ``None`` where there is no such.
    """

    smallest_coefficient: Tensor
    answers: tuple[tuple[Measurement, Clip], ...] = ()
    indices: tuple[list[int] | None, ...] = ()
    ratio: float | None = None
    threshold: float | Tensor | None = None
    single_coefficient: Tensor | None = None

    @classmethod
    def of(
        cls,
        total: Tensor,
        answers: Sequence[tuple[Measurement, Clip]],
        indices: Sequence[list[int] | None] = (None,),
        ratio: float | None = None,
    ) -> Clips:
        """Returns the answers with the numbers that tell of them.

        Args:
            total: norm of the whole gradient.
            answers: see above.
            indices: see above.
            ratio: see above.
        """
        threshold = single = None
        if len(answers) == 1 and indices[0] is None:  # else there is no single number
            clip = answers[0][1]
            threshold = clip.threshold
            single = None if clip.then or clip.coefficient is None or clip.coefficient.dim() else clip.coefficient
        smallest = _smallest(answers, total) if single is None else single
        return cls(smallest, tuple(answers), tuple(indices), ratio, threshold, single)

    def any_clipped(self) -> Tensor | bool:
        """Tells whether an answer changes anything, a boolean of shape ``[]`` on the device."""
        return _any_clipped(self.answers)

    def after(self, measurement: Measurement) -> Measurement:
        """Returns what the whole gradient measures once the answers are applied; nothing is written."""
        grads, norms = measurement.grads, measurement.norms
        for (seen, clip), indices in zip(self.answers, self.indices, strict=True):
            clipped = after(seen, clip)
            if indices is None:
                return clipped
            # Parameters without a policy keep their norms; the total is that of both.
            norms = norms.index_copy(0, measurement.layout.index(indices, norms.device), clipped.norms.to(norms))
            if clipped.grads is not seen.grads:
                changed = dict(zip(indices, clipped.grads, strict=True))
                grads = tuple(changed.get(i, grad) for i, grad in enumerate(grads))
        return replace(measurement, grads=grads, norms=norms, total=torch.linalg.vector_norm(norms))

    def apply_(self) -> None:
        """Carries out the answers on the gradients, in place."""
        for seen, clip in self.answers:
            apply_(seen, clip)

    def norms_once_applied(self, measurement: Measurement) -> Tensor:
        """Returns the norm of each gradient after :meth:`apply_`, ``[num_params]``.

        Known from numbers where gradients or their units are scaled. Where elements were cut, what is left of them is
        read once more: a pass, in steps that were clipped.
        """
        layout, norms = measurement.layout, measurement.norms
        for (seen, clip), indices in zip(self.answers, self.indices, strict=True):
            left = norms_left(seen, clip)
            if left is None:
                return whole_norms(layout, measurement.grads, layout.norms_of_gradients)
            # Parameters without a policy keep their norms.
            norms = (
                left if indices is None else norms.index_copy(0, layout.index(indices, norms.device), left.to(norms))
            )
        return norms


def leave_alone(measurement: Measurement) -> Clips:
    """Answers for nobody: where there is no policy, gradients are left alone."""
    return Clips(torch.ones_like(measurement.total))


def _smallest(answers: Sequence[tuple[Measurement, Clip]], total: Tensor) -> Tensor:
    """Returns the smallest coefficient of some answers; 0 or 1 where they do not simply scale gradients."""
    if not all(clip.coefficient is not None and clip.then is None for _, clip in answers):
        return 1.0 - torch.as_tensor(_any_clipped(answers), device=total.device).to(total)
    # What is simply scaled is told by its smallest coefficient, on the device, without a read of gradients.
    each = [clip.coefficient.min() for _, clip in answers if clip.coefficient is not None]
    if len(each) <= 1:
        return each[0] if each else torch.ones_like(total)
    return torch.stack(each).min()


def _any_clipped(answers: Sequence[tuple[Measurement, Clip]]) -> Tensor | bool:
    # Flags stay on the device: the host reads the step's signals once, and they are among them.
    flags = [
        is_clipped(seen, clip) if clip.changes is None or clip.then is not None else clip.changes
        for seen, clip in answers
    ]
    if len(flags) <= 1:
        return flags[0] if flags else False
    return torch.stack(flags).any()


class Clipper:
    """Runs one policy over an optimizer's parameters, or one for each of its named parameter groups.

    Args:
        policies: a policy for all parameters, or a mapping from parameter-group name to policy or ``None``.
        layout: the parameters of the optimizer.
        device: where their gradients live.

    Raises:
        TypeError: if something else than a policy is given.

    Attributes:
        parts: each policy with its parameters and its memory.
        needs: what is to be measured for all of them at each step, besides norms.
        waiting: names of parameter groups that have a policy and do not exist yet.
    """

    def __init__(self, policies: Policies, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.parts: list[_Part] = []
        self.waiting: tuple[str, ...] = ()
        # One policy for all, or one for each group; a group may come later, as a finetuning callback adds it.
        if not isinstance(policies, Mapping):
            check_policy(policies, "clip")
            self.parts.append(_Part.of("", policies, layout, None, device))
        else:
            for group, policy in policies.items():
                if policy is not None:
                    check_policy(policy, f"the policy of parameter group {group!r}")
                if group not in layout.group_names:
                    self.waiting += (group,)
                elif policy is not None:
                    indices = [i for i, g in enumerate(layout.group_of) if layout.group_names[g] == group]
                    self.parts.append(_Part.of(group, policy, layout.subset(indices), indices, device))
        for part in self.parts:
            part.policy.check(part.layout)
        # Declared once, before the first step: then one pass over the gradients serves all policies.
        self.needs = Needs.together([part.needs for part in self.parts])
        self._indices = [part.indices for part in self.parts]
        self._ratio = _ratio_of(policies) if isinstance(policies, ClipPolicy) else None
        self._looks_for_flat = any(map(is_flat, layout.params))

    def decide(self, measurement: Measurement) -> Clips:
        """Asks each policy."""
        answers = [part.decide(measurement) for part in self.parts]
        if self._looks_for_flat:
            self._warn_of_flat([clip for _, clip in answers])
        return Clips.of(measurement.total, answers, self._indices, self._ratio)

    def _warn_of_flat(self, clips: Sequence[Clip]) -> None:
        """Says once that a policy for single tensors or units is given flattened ones; its answer tells what it is."""
        for part, clip in zip(self.parts, clips, strict=True):
            if any(map(is_flat, part.layout.params)) and is_tensor_wise(clip):
                warnings.warn(
                    f"{type(part.policy).__name__} clips tensor by tensor or unit by unit, and FSDP has flattened the "
                    "parameters: all tensors of a wrapped module are taken for a single one, and clipped otherwise "
                    "than without FSDP. Wrap with use_orig_params=True, as in "
                    "FSDPStrategy(use_orig_params=True), or use a policy for the whole norm",
                    stacklevel=2,
                )
                self._looks_for_flat = False
                return

    def state_dict(self) -> dict[str, Any]:
        """Returns what the policies remember, per-parameter values with the names they belong to."""
        return {
            part.group: {"names": list(part.layout.names), "state": {k: _kept(v) for k, v in part.state.items()}}
            for part in self.parts
        }

    def load_state_dict(self, state: Mapping[str, Any], *, warn: bool = True) -> None:
        """Takes over what :meth:`state_dict` gave, parameter by parameter, and warns of what does not fit.

        A parameter that is new starts fresh, one that is gone is left out; a state of another policy, or of other
        settings (a window of another length), is left out as a whole.

        Args:
            state: from :meth:`state_dict`, of this or of another layout.
            warn: whether to say what does not fit; off when the layout changed under way, which is no mistake.
        """
        for part in self.parts:
            saved = state.get(part.group)
            where = f" of parameter group {part.group!r}" if part.group else ""
            problem = "the checkpoint holds none: it starts fresh" if saved is None else _load_part(part, saved)
            if problem and warn:
                warnings.warn(f"clipping state{where} of {type(part.policy).__name__}: {problem}", stacklevel=2)


def _kept(value: Tensor | float) -> Tensor:
    """Returns an entry of a state as a tensor of its own; a number from the host in double precision."""
    if isinstance(value, Tensor):
        return value.clone()
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64, device="cpu")


def _load_part(part: _Part, saved: Mapping[str, Any]) -> str | None:
    """Copies a saved state into a part; returns what did not fit, in words."""
    # Rows of per-parameter state may come and go; every other shape says that settings have changed.
    old = saved["state"]
    by_name = part.policy.per_parameter
    expected, found = (
        {key: torch.as_tensor(value).shape[1 if key in by_name else 0 :] for key, value in state.items()}
        for state in (part.state, old)
    )
    if expected != found:
        return f"the checkpoint has {found}, this policy needs {expected}: it starts fresh"
    # Rows go by name, not by place: a changed model keeps what is known of the parameters that stayed.
    position = {name: index for index, name in enumerate(saved["names"])}
    rows = [(i, position[name]) for i, name in enumerate(part.layout.names) if name in position]
    for key, value in part.state.items():
        if not isinstance(value, Tensor):  # a single number, on the host
            part.state[key] = type(value)(old[key])
            continue
        source = old[key].to(value)
        if key in part.policy.per_parameter:
            for index, row in rows:
                value[index] = source[row]
        else:
            value.copy_(source)
    if not part.policy.per_parameter or list(part.layout.names) == list(saved["names"]):
        return None
    new = sorted(set(part.layout.names) - set(saved["names"]))
    gone = sorted(set(saved["names"]) - set(part.layout.names))
    return f"new parameters start fresh: {new}; parameters that are gone are left out: {gone}"


def check_policies(value: object, name: str) -> None:
    """Accepts a policy, or a mapping from optimizer index or parameter-group name to policy or ``None``.

    Raises:
        TypeError: for anything else.
        ValueError: for an empty mapping, or a negative index.
    """
    if not isinstance(value, Mapping):
        check_policy(value, name)
        return
    if not value:
        raise ValueError(f"{name} is an empty mapping: name an optimizer index or a parameter group")
    for key, policy in value.items():
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise TypeError(f"{name}: keys are optimizer indices or parameter-group names, got {key!r}")
        if isinstance(key, int) and key < 0:
            raise ValueError(f"{name}: optimizer indices count from 0, got {key}")
        if policy is not None:
            check_policy(policy, f"{name}[{key!r}]")


def _ratio_of(policy: ClipPolicy) -> float | None:
    """Returns the gradient-to-weight ratio from which a policy clips: AGC's, also in a chain; AdaGC's is another."""
    if isinstance(policy, AGC):
        return policy.ratio
    each = policy.policies if isinstance(policy, Chain) else ()
    return next((ratio for ratio in map(_ratio_of, each) if ratio is not None), None)


def warn_of_waiting(waiting: Sequence[str], present: Sequence[str], *, at_the_end: bool = False) -> None:
    """Says that policies wait for parameter groups that do not exist, or that they have waited in vain.

    Args:
        waiting: names of these groups.
        present: names of those that exist.
        at_the_end: whether nothing can come any more.
    """
    names, known = ", ".join(map(repr, waiting)), ", ".join(map(repr, present))
    what = (
        f"the clipping policies for parameter groups {names} were never used: no group of that name came"
        if at_the_end
        else f"the clipping policies name parameter groups {names}, which do not exist yet: they wait for them"
    )
    warnings.warn(f"{what}; the groups are {known}", stacklevel=3)
