"""Kinds of runs that rules are made on: look at them as much as you like."""

from ..kind import Kind
from . import (
    actor_critic,
    adapting,
    adversaries,
    autoencoders,
    control,
    convolutional,
    dense,
    density,
    distances,
    equations,
    graphs,
    latents,
    optimizers,
    pairs,
    patches,
    recurrent,
    regression,
    series,
    sets,
    signals,
    tables,
    tasks_in_one,
    transformers,
    tuning,
    vision,
    words,
)

_FAMILIES = (
    dense,
    tables,
    convolutional,
    transformers,
    recurrent,
    autoencoders,
    adversaries,
    regression,
    pairs,
    sets,
    control,
    tuning,
    tasks_in_one,
    patches,
    vision,
    words,
    signals,
    latents,
    density,
    distances,
    graphs,
    equations,
    series,
    actor_critic,
    adapting,
    optimizers,
)


def kinds() -> list[Kind]:
    return [kind for family in _FAMILIES for kind in family.KINDS]
