"""Several policies, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from lightning_gradguard.clip.answer import LARGEST, Clip, number, where
from lightning_gradguard.clip.apply import after
from lightning_gradguard.clip.base import ClipPolicy, State
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.needs import Needs


@final
class Chain(ClipPolicy):
    """Runs policies one after the other, each on what the one before left.

    The reported threshold is that of the first. Policies that scale whole tensors see each other for free. After one
    that clamps elements or scales units the gradients have to be copied and measured again, at every step: about the
    price of the clipping once more, and the memory of the gradients.

    Args:
        policies: at least one, in the order in which they act.

    Raises:
        TypeError: if something in the list is no policy.
        ValueError: if the list is empty.

    Example:
        >>> import torch
        >>> from lightning_gradguard import GradientPipeline
        >>> from lightning_gradguard import NormClip, ValueClip
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> pipeline = GradientPipeline(net, optimizer, clip=Chain([ValueClip(0.3), NormClip(0.1)]))
        >>> net.weight.grad = torch.tensor([[3.0, 0.4]])
        >>> pipeline.before_step(log=False)
        >>> net.weight.grad
        tensor([[0.0707, 0.0707]])
    """

    def __init__(self, policies: Sequence[ClipPolicy]) -> None:
        for policy in policies:
            if not isinstance(policy, ClipPolicy):
                made = (
                    f"write {policy.__name__}(...)"
                    if isinstance(policy, type)
                    else "give policies such as NormClip(1.0)"
                )
                raise TypeError(f"Chain takes ClipPolicy instances, got {policy!r}; {made}")
        if not policies:
            raise ValueError("Chain needs at least one policy, got none; leave clipping out instead")
        self.policies = tuple(policies)
        self.per_parameter = tuple(f"{i}.{key}" for i, policy in enumerate(policies) for key in policy.per_parameter)
        self.single = tuple(f"{i}.{key}" for i, policy in enumerate(policies) for key in policy.single)

    def init_state(self, layout: Layout, device: torch.device) -> State:
        """Returns the states of all, each key with its policy's number in front."""
        states = [policy.init_state(layout, device) for policy in self.policies]
        return {f"{i}.{key}": value for i, state in enumerate(states) for key, value in state.items()}

    def needs(self, layout: Layout) -> Needs:
        """Returns the needs of all policies."""
        return Needs.of(self.policies, layout)

    def check(self, layout: Layout) -> None:
        """Lets each policy check."""
        for policy in self.policies:
            policy.check(layout)

    def decide(self, measurement: Measurement, state: State) -> Clip:
        """Asks each policy about what the ones before it would leave."""
        clips: list[Clip] = []
        seen = measurement
        # Clamping makes a plausible number of an infinity: the later policies cannot tell that it is not to be learned.
        finite = number(measurement.total) <= LARGEST
        for i, policy in enumerate(self.policies):
            if clips:  # a norm that overflowed counts as the largest number, lest each policy scales it to nothing
                largest = torch.finfo(seen.norms.dtype).max
                bounded = replace(seen, norms=seen.norms.clamp(max=largest), total=seen.total.clamp(max=largest))
                seen = after(bounded, clips[-1])
            prefix = f"{i}."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            # A copy is what a later policy may write in place while the state can still stay as it was.
            new = {k: value.clone() if isinstance(value, Tensor) and i else value for k, value in own.items()}
            clips.append(policy.decide(seen, new))
            clips[-1].refuse_writes(policy)
            for key, value in new.items():
                state[prefix + key] = where(finite, value, own[key]) if i else value
        answer = clips[-1]
        for clip in reversed(clips[:-1]):
            answer = _followed_by(clip, answer)
        return answer


def _followed_by(clip: Clip, last: Clip) -> Clip:
    return replace(clip, then=last if clip.then is None else _followed_by(clip.then, last))
