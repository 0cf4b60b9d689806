"""What is wrong, how sure, and what to do: rules over records."""

from __future__ import annotations

from lightning_gradguard.diagnose.base import Diagnosis, Rule
from lightning_gradguard.diagnose.clipping_always import ClippingAlways
from lightning_gradguard.diagnose.dead_units import DeadUnits
from lightning_gradguard.diagnose.exploding import ExplodingOverDepth
from lightning_gradguard.diagnose.exploding_in_time import ExplodingOverTime
from lightning_gradguard.diagnose.fp16_headroom import Fp16Headroom
from lightning_gradguard.diagnose.fp16_underflow import Fp16Underflow
from lightning_gradguard.diagnose.imbalance import OptimizerImbalance
from lightning_gradguard.diagnose.input_scale import InputScale
from lightning_gradguard.diagnose.large_updates import LargeUpdates
from lightning_gradguard.diagnose.loss_scale import LossScaleCollapse
from lightning_gradguard.diagnose.no_gradient import NoGradient
from lightning_gradguard.diagnose.poor_initialization import PoorInitialization
from lightning_gradguard.diagnose.runaway import Runaway
from lightning_gradguard.diagnose.saturation import SaturatedActivations
from lightning_gradguard.diagnose.small_updates import SmallUpdates
from lightning_gradguard.diagnose.vanishing import VanishingOverDepth
from lightning_gradguard.diagnose.vanishing_in_time import VanishingOverTime
from lightning_gradguard.diagnose.wrong_sign import WrongSign
from lightning_gradguard.diagnose.zero_gradient import ZeroGradient

__all__ = [
    "ClippingAlways",
    "DeadUnits",
    "Diagnosis",
    "ExplodingOverDepth",
    "ExplodingOverTime",
    "Fp16Headroom",
    "Fp16Underflow",
    "InputScale",
    "LargeUpdates",
    "LossScaleCollapse",
    "NoGradient",
    "OptimizerImbalance",
    "PoorInitialization",
    "Rule",
    "Runaway",
    "SaturatedActivations",
    "SmallUpdates",
    "VanishingOverDepth",
    "VanishingOverTime",
    "WrongSign",
    "ZeroGradient",
    "default_rules",
]


def default_rules() -> list[Rule]:
    """A new set of all rules at their defaults, causes before what they lead to."""
    return [
        NoGradient(),
        WrongSign(),
        Fp16Underflow(),
        LossScaleCollapse(),
        InputScale(),
        PoorInitialization(),
        SaturatedActivations(),
        ExplodingOverTime(),
        OptimizerImbalance(),
        LargeUpdates(),
        ClippingAlways(),
        SmallUpdates(),
        VanishingOverDepth(),
        ExplodingOverDepth(),
        VanishingOverTime(),
        DeadUnits(),
        Fp16Headroom(),
        ZeroGradient(),
        Runaway(),
    ]
