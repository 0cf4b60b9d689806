"""How a gradient changes for each time step back, from the temporal probe."""

from __future__ import annotations

import math

from lightning_gradguard.record import StepRecord

_FLOOR = 1e-38  # float32 holds nothing below in full
MIN_STEPS = 8  # shorter sequences neither forget nor explode


def factors(record: StepRecord) -> dict[str, float]:
    """For each recurrent module the mean factor by which ||d h_T / d x_t|| changes for one step back in time."""
    found = {}
    for module, norms in (record.temporal_norms or {}).items():
        if len(norms) >= MIN_STEPS and norms[-1] > 0 and all(math.isfinite(n) for n in norms):
            reach = next((i for i, n in enumerate(norms) if n > _FLOOR), len(norms) - 1)  # below is underflow
            steps = len(norms) - 1 - reach
            if steps > 0:
                found[module] = (norms[reach] / norms[-1]) ** (1 / steps)
        elif len(norms) >= MIN_STEPS and not all(math.isfinite(n) for n in norms):
            found[module] = math.inf
    return found
