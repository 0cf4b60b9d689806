"""Every policy there is, with its twin: the laws and the parity tests run over these lists."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.chain import Chain
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.clip.quantile import QuantileClip
from lightning_gradguard.clip.value import ValueClip
from lightning_gradguard.clip.zclip import ZClip
from tests import reference

# as a user would write them
ADAPTIVE: dict[str, Callable[[], ClipPolicy]] = {
    "AutoClip": AutoClip,
    "AutoClip-value": lambda: AutoClip(by="value"),
    "ZClip": ZClip,
    "ZClip-value": lambda: ZClip(by="value"),
    "ZClip-mean": lambda: ZClip(to="mean"),
    "ZClip-percentile": lambda: ZClip(to="percentile"),
    "QuantileClip": QuantileClip,
    "QuantileClip-value": lambda: QuantileClip(by="value"),
    "AdaGC": AdaGC,
    "MaxClip": MaxClip,
}
ALL: dict[str, Callable[[], ClipPolicy]] = ADAPTIVE | {
    "NormClip": lambda: NormClip(0.5),
    "ValueClip": lambda: ValueClip(0.1),
    "AGC": AGC,
    "AutoClip-original": lambda: AutoClip(original=True),
    "ZClip-original": lambda: ZClip(original=True, max_norm=1.0),
    "AdaGC-original": lambda: AdaGC(original=True),
    "MaxClip-original": lambda: MaxClip(decay=0.999, original=True),
    "Chain-AGC-Norm": lambda: Chain([AGC(), NormClip(0.5)]),
    "Chain-Value-ZClip": lambda: Chain([ValueClip(0.5), ZClip()]),
    "Chain-AdaGC-ZClip": lambda: Chain([AdaGC(), ZClip(max_norm=1.0)]),
}

Pair = tuple[Callable[[], ClipPolicy], Callable[[], Callable]]
TWINS: dict[str, Pair] = {
    "NormClip": (lambda: NormClip(1.0), lambda: reference.Norm(1.0)),
    "ValueClip": (lambda: ValueClip(0.3), lambda: reference.Value(0.3)),
    "AutoClip": (AutoClip, reference.Auto),
    "AutoClip-p90-window20": (lambda: AutoClip(90, 20, 2.0), lambda: reference.Auto(90, 20, 2.0)),
    "AutoClip-value": (lambda: AutoClip(by="value"), lambda: reference.Auto(by="value")),
    "AutoClip-original": (
        lambda: AutoClip(window=10_000, original=True),
        lambda: reference.Auto(window=10_000, original=True),
    ),
    "ZClip": (ZClip, reference.Z),
    "ZClip-ceiling": (lambda: ZClip(2.0, 0.9, max_norm=1.0), lambda: reference.Z(2.0, 0.9, max_norm=1.0)),
    "ZClip-value": (lambda: ZClip(by="value"), lambda: reference.Z(by="value")),
    "ZClip-mean": (lambda: ZClip(to="mean"), lambda: reference.Z(to="mean")),
    "ZClip-percentile": (lambda: ZClip(to="percentile"), lambda: reference.Z(to="percentile")),
    "ZClip-original": (lambda: ZClip(max_norm=1.0, original=True), lambda: reference.Z(max_norm=1.0, original=True)),
    "ZClip-original-mean": (
        lambda: ZClip(to="mean", original=True),
        lambda: reference.Z(to="mean", original=True),
    ),
    "ZClip-original-percentile": (
        lambda: ZClip(to="percentile", original=True),
        lambda: reference.Z(to="percentile", original=True),
    ),
    "QuantileClip": (QuantileClip, reference.Quantile),
    "QuantileClip-90-value": (
        lambda: QuantileClip(0.9, 0.1, by="value"),
        lambda: reference.Quantile(0.9, 0.1, by="value"),
    ),
    "AdaGC": (lambda: AdaGC(warmup=20), lambda: reference.Ada(warmup=20)),
    "AdaGC-original": (
        lambda: AdaGC(warmup=20, original=True),
        lambda: reference.Ada(warmup=20, original=True),
    ),
    "MaxClip": (MaxClip, reference.Max),
    "MaxClip-original": (
        lambda: MaxClip(decay=0.999, original=True),
        lambda: reference.Max(decay=0.999, original=True),
    ),
    "AGC": (AGC, reference.Agc),
    "Chain": (
        lambda: Chain([ValueClip(0.3), ZClip(), NormClip(1.0)]),
        lambda: reference.Chain([reference.Value(0.3), reference.Z(), reference.Norm(1.0)]),
    ),
}
