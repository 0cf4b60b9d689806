"""Runs a real policy over recorded norms, step by step, as a training would have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_gradguard.clip.answer import Clip, filled
from lightning_gradguard.clip.base import ClipPolicy, fresh_state
from lightning_gradguard.hindsight.notation import written
from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.needs import Needs

Norms = NDArray[np.float32]
_HOST = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Trial:
    """What a policy would have answered to each step.

    Attributes:
        policy: the policy.
        norms: what it was asked about, float32 ``[n]``.
        thresholds: what it compared each with, float32 ``[n]``; NaN where it has none.
        coefficients: by what each would have been multiplied, float32 ``[n]``, in [0, 1].
    """

    policy: ClipPolicy
    norms: Norms
    thresholds: Norms
    coefficients: Norms

    @cached_property
    def clipped(self) -> NDArray[np.bool_]:
        """Tells for each step whether it would have been clipped; a step that is not finite never is."""
        return (self.coefficients < 1.0) & np.isfinite(self.norms)

    @cached_property
    def applied(self) -> Norms:
        """Returns what would have been left of each norm; NaN for a step that is not finite."""
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(self.norms), self.norms * self.coefficients, np.float32(np.nan))


@torch.no_grad()
def try_policy(policy: ClipPolicy, norms: Norms) -> Trial:
    """Returns what a policy would have answered to a run with these norms, to the bit of a float32 on the CPU.

    The policy is asked through its own :meth:`~lightning_gradguard.clip.base.ClipPolicy.decide`, one step after the
    other, with a state of its own from before the first. Some 0.3 ms a step.

    Args:
        policy: one that goes by the total norm alone.
        norms: of the raw gradients, oldest first.

    Raises:
        ValueError: if the policy needs more than the total norm; says what.

    Example:
        >>> from lightning_gradguard import NormClip
        >>> try_policy(NormClip(1.0), np.array([0.5, 4.0], dtype=np.float32)).coefficients.round(4)
        array([1.  , 0.25], dtype=float32)
    """
    layout = _layout_of_one()
    if Needs.of([policy], layout).leaves:
        raise ValueError(_refusal(policy, "the norms of units and of their weights"))
    state = fresh_state(policy, layout, _HOST)
    thresholds, coefficients = [], []
    for total in torch.from_numpy(np.array(norms, dtype=np.float32)).unbind():
        clip = policy.decide(_measurement(layout, total), state)
        coefficients.append(_coefficient(policy, clip))
        thresholds.append(filled(total, math.nan if clip.threshold is None else clip.threshold))
    trial = Trial(policy, np.asarray(norms, dtype=np.float32), _numbers(thresholds), _numbers(coefficients))
    if np.isnan(trial.coefficients[np.isfinite(trial.norms)]).any():
        raise ValueError(_refusal(policy, "more than the total norm"))
    return trial


def _numbers(values: list[Tensor]) -> Norms:
    return torch.stack(values).float().numpy() if values else np.zeros(0, np.float32)


def _layout_of_one() -> Layout:
    net = nn.Linear(1, 1, bias=False)
    return Layout.from_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.0))


def _measurement(layout: Layout, total: Tensor) -> Measurement:
    """A step of which nothing but the total norm is known: whoever goes by anything else answers NaN."""
    unknown = torch.full((1,), torch.nan)
    measurement = Measurement(layout, (None,), unknown, total)
    measurement.__dict__.update(max_abs=unknown, weight_norms=unknown)
    return measurement


def _coefficient(policy: ClipPolicy, clip: Clip) -> Tensor:
    """Returns the one number that the whole gradient would have been multiplied by, over all of a chain."""
    if clip.units is not None or clip.by_unit is not None:
        raise ValueError(_refusal(policy, "the norms of units and of their weights"))
    if clip.bound is not None:
        raise ValueError(_refusal(policy, "the largest elements of the gradients"))
    own = torch.ones(()) if clip.coefficient is None else clip.coefficient
    if own.dim():
        raise ValueError(_refusal(policy, "the norm of each parameter"))
    return own if clip.then is None else own * _coefficient(policy, clip.then)


def _refusal(policy: ClipPolicy, needs: str) -> str:
    return (
        f"{written(policy)} needs {needs}, and records hold the total norm of each step: try it in a run that it does "
        "not change, with AdaptiveGradientClipping(policy, dry_run=True)"
    )
