"""Records of a healthy step, made by hand: to show and to test what a rule says of one that differs."""

from __future__ import annotations

from typing import Any

from lightning_gradguard.record import ActivationStats, StepRecord

LAYERS = ("a", "b", "c", "d", "e", "head")


def quiet_record(step: int = 0, **fields: Any) -> StepRecord:
    """A quiet step of a healthy net of six linear layers; what differs is given by name.

    Example:
        >>> quiet_record(7, loss=2.5).loss
        2.5
    """
    layers = fields.get("layers", LAYERS)
    norms = fields.get("layer_norms", (0.1,) * len(layers))
    healthy: dict[str, Any] = {
        "optimizer": 0,
        "num_optimizers": 1,
        "layers": layers,
        "layer_norms": norms,
        "total_norm": 0.25,
        "post_clip_norm": 0.25,
        "threshold": None,
        "coefficient": None,
        "cosine": None,
        "verdict": "ok",
        "nonfinite_layers": (),
        "cause": None,
        "loss_scale": None,
        "num_steps": 1,
        "num_clipped": 0,
        "num_nonfinite": 0,
        "max_layer_norms": norms,
        "max_total_norm": 0.25,
        "min_coefficient": None,
        "clip_rate": None,
        "nonfinite_total": 0,
        "skipped_total": 0,
        "weight_norms": (1.0,) * len(layers),
        "loss": 1.0,
        "layer_sizes": (100,) * len(layers),
        "layer_kinds": ("Linear",) * len(layers),
        "trainable": (True,) * len(layers),
        "depth": tuple(range(len(layers))),
        "update_ratios": (0.01,) * len(layers),
    }
    return StepRecord(**{"step": step, **healthy, **fields})


def quiet_activation(module: str = "a", kind: str = "Linear", **fields: Any) -> ActivationStats:
    """The output of a healthy linear layer; what differs is given by name."""
    healthy: dict[str, Any] = {"rms": 1.0, "max_abs": 3.0, "range_used": 1e-30, "dtype": "float32"}
    return ActivationStats(module=module, kind=kind, **{**healthy, **fields})
