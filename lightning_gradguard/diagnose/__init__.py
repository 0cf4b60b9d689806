"""What is wrong, how sure, and what to do: rules over records."""

from __future__ import annotations

from lightning_gradguard.diagnose.diagnosis import Diagnosis, Rule
from lightning_gradguard.diagnose.rules import default_rules
from lightning_gradguard.diagnose.rules.bad_batches import BadBatches
from lightning_gradguard.diagnose.rules.clipping_always import ClippingAlways
from lightning_gradguard.diagnose.rules.critic_won import CriticWon
from lightning_gradguard.diagnose.rules.dead_units import DeadUnits
from lightning_gradguard.diagnose.rules.diverged import Diverged
from lightning_gradguard.diagnose.rules.double_activation import DoubleActivation
from lightning_gradguard.diagnose.rules.exploding import ExplodingOverDepth
from lightning_gradguard.diagnose.rules.exploding_in_time import ExplodingOverTime
from lightning_gradguard.diagnose.rules.fp16_headroom import Fp16Headroom
from lightning_gradguard.diagnose.rules.fp16_underflow import Fp16Underflow
from lightning_gradguard.diagnose.rules.frozen_last import FrozenLast
from lightning_gradguard.diagnose.rules.high_momentum import HighMomentum
from lightning_gradguard.diagnose.rules.identical_units import IdenticalUnits
from lightning_gradguard.diagnose.rules.imbalance import OptimizerImbalance
from lightning_gradguard.diagnose.rules.input_scale import InputScale
from lightning_gradguard.diagnose.rules.large_updates import LargeUpdates
from lightning_gradguard.diagnose.rules.loss_rises import LossRises
from lightning_gradguard.diagnose.rules.loss_scale import LossScaleCollapse
from lightning_gradguard.diagnose.rules.no_gradient import NoGradient
from lightning_gradguard.diagnose.rules.no_step import NoStep
from lightning_gradguard.diagnose.rules.old_gradients import OldGradients
from lightning_gradguard.diagnose.rules.output_range import OutputRange
from lightning_gradguard.diagnose.rules.output_scale import OutputScale
from lightning_gradguard.diagnose.rules.outweighed import Outweighed
from lightning_gradguard.diagnose.rules.poor_initialization import PoorInitialization
from lightning_gradguard.diagnose.rules.rate_decayed import RateDecayed
from lightning_gradguard.diagnose.rules.runaway import Runaway
from lightning_gradguard.diagnose.rules.saturated_attention import SaturatedAttention
from lightning_gradguard.diagnose.rules.saturated_output import SaturatedOutput
from lightning_gradguard.diagnose.rules.saturation import SaturatedActivations
from lightning_gradguard.diagnose.rules.small_updates import SmallUpdates
from lightning_gradguard.diagnose.rules.stale_statistics import StaleStatistics
from lightning_gradguard.diagnose.rules.starving_part import StarvingPart
from lightning_gradguard.diagnose.rules.target_scale import TargetScale
from lightning_gradguard.diagnose.rules.unoptimized import Unoptimized
from lightning_gradguard.diagnose.rules.unregistered import Unregistered
from lightning_gradguard.diagnose.rules.vanishing import VanishingOverDepth
from lightning_gradguard.diagnose.rules.vanishing_in_time import VanishingOverTime
from lightning_gradguard.diagnose.rules.weight_decay import WeightDecay
from lightning_gradguard.diagnose.rules.wrong_sign import WrongSign
from lightning_gradguard.diagnose.rules.zero_gradient import ZeroGradient
from lightning_gradguard.diagnose.rules.zero_rate import ZeroRate

__all__ = [
    "BadBatches",
    "ClippingAlways",
    "CriticWon",
    "DeadUnits",
    "Diagnosis",
    "Diverged",
    "DoubleActivation",
    "ExplodingOverDepth",
    "ExplodingOverTime",
    "Fp16Headroom",
    "Fp16Underflow",
    "FrozenLast",
    "HighMomentum",
    "IdenticalUnits",
    "InputScale",
    "LargeUpdates",
    "LossRises",
    "LossScaleCollapse",
    "NoGradient",
    "NoStep",
    "OldGradients",
    "OptimizerImbalance",
    "OutputRange",
    "OutputScale",
    "Outweighed",
    "PoorInitialization",
    "RateDecayed",
    "Rule",
    "Runaway",
    "SaturatedActivations",
    "SaturatedAttention",
    "SaturatedOutput",
    "SmallUpdates",
    "StaleStatistics",
    "StarvingPart",
    "TargetScale",
    "Unoptimized",
    "Unregistered",
    "VanishingOverDepth",
    "VanishingOverTime",
    "WeightDecay",
    "WrongSign",
    "ZeroGradient",
    "ZeroRate",
    "default_rules",
]
