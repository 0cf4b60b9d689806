"""What a list of many runs shows of one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_gradguard.tensorboard.flow import HEAD_ROWS, LAYER_STATS, NO_LOSS, STEP_STATS, Array

_GRAVITY = {"critical": 0, "warning": 1, "info": 2}


def summarize(run: str, last: Mapping[int, Array], payloads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one run in a few numbers that strict JSON can carry; of several optimizers the worst.

    ``findings`` (how many), ``finding`` (the gravest one: rule, severity, message), ``nonfinite`` (steps of the whole
    run), ``clipped`` (share of the steps of the whole run), ``spread`` (largest over smallest layer in the last
    column) and ``loss`` (the last one; ``"nan"`` and ``"inf"`` are strings). ``None`` where it is not known.

    Args:
        run: its name.
        last: the last matrix of each optimizer.
        payloads: the lists of events that were written; each is cumulative within its process.
    """
    heads = [dict(zip(STEP_STATS, m[:HEAD_ROWS].ravel().tolist(), strict=True)) for m in last.values()]
    findings = list({f["rule"]: f for payload in payloads for f in payload["findings"]}.values())
    findings.sort(key=lambda finding: (finding.get("until") is not None, _GRAVITY[finding["severity"]]))
    counted = sum(p["counts"].get(kind, 0) for p in payloads[-1:] for kind in ("nonfinite", "rollback"))
    losses = [head["loss"] for head in heads if head["loss"] != NO_LOSS]
    return {
        "name": run,
        "optimizers": sorted(last),
        "findings": len(findings),
        "finding": {name: findings[0].get(name) for name in _OF_FINDING} if findings else None,
        "nonfinite": max([counted, *(int(head["nonfinite_total"]) for head in heads)]),
        "clipped": max((head["clip_rate"] for head in heads if head["clip_rate"] >= 0), default=None),
        "spread": max((found for m in last.values() if (found := _spread(m)) is not None), default=None),
        "loss": (losses[-1] if math.isfinite(losses[-1]) else str(losses[-1])) if losses else None,
    }


_OF_FINDING = ("rule", "severity", "message", "until")


def _spread(matrix: Array) -> float | None:
    """Largest over smallest layer: of gradient over weight where that is measured, else of the norms."""
    for stat in ("ratio", "norm"):
        column = matrix[HEAD_ROWS:, LAYER_STATS.index(stat)].astype(np.float64)
        usable = column[np.isfinite(column) & (column > 0)]
        if len(usable) > 1:
            return float(usable.max() / usable.min())
    return None
