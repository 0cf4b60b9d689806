"""A picture on its way to the browser: a small header, then plain numbers."""

from __future__ import annotations

import json
import struct

import numpy as np

from lightning_gradguard.tensorboard.flow import HEAD_ROWS, LAYER_STATS, NOT_MEASURED, STEP_STATS
from lightning_gradguard.tensorboard.store import Flow

_ALIGN = 8  # float64 arrays in the browser begin at multiples of eight bytes


def encode_frame(flow: Flow, stat: str) -> bytes:
    """Returns one statistic of a flow as bytes, little-endian.

    ``uint32`` length of the header; the header, JSON, padded with spaces; steps and wall times, float64 ``[columns]``;
    values of the step, float32 ``[columns, step stats]``; values of the layers, float32 ``[layers, columns]``.

    Args:
        flow: what to send.
        stat: one of ``norm``, ``ratio``, ``update``, ``coefficient``.

    Raises:
        ValueError: for an unknown statistic.
    """
    if stat not in LAYER_STATS:
        raise ValueError(f"stat must be one of {', '.join(LAYER_STATS)}; got {stat!r}")
    layer_values = flow.matrices[:, HEAD_ROWS:]
    header = {
        "stat": stat,
        "layers": flow.layers,
        "shapes": flow.shapes,
        "kinds": flow.kinds,
        "columns": len(flow.steps),
        "step_stats": STEP_STATS,
        "measured": [name for i, name in enumerate(LAYER_STATS) if (layer_values[:, :, i] != NOT_MEASURED).any()],
        "clip_ratio": flow.clip_ratio,
        "dry_run": flow.dry_run,
    }
    text = json.dumps(header).encode()
    text += b" " * (-(4 + len(text)) % _ALIGN)
    arrays = (
        flow.steps.astype("<f8"),
        flow.wall_times.astype("<f8"),
        flow.matrices[:, :HEAD_ROWS].astype("<f4"),
        np.ascontiguousarray(layer_values[:, :, LAYER_STATS.index(stat)].T, dtype="<f4"),
    )
    return struct.pack("<I", len(text)) + text + b"".join(array.tobytes() for array in arrays)
