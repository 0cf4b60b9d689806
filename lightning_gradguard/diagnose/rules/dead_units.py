"""Units that never fire."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import count
from lightning_gradguard.record import ActivationStats, Finding, StepRecord


class DeadUnits(Rule):
    """In some module most units were silent in every one of many batches.

    Counted per unit over sampled batches, not as zeros in one batch: a sparse layer is mostly zero in each batch and
    yet every unit fires now and then.

    *Info* while the loss falls, as it may by the way round a branch; but not where all units are silent and the layer
    before them gets no gradient at all: the loss then falls without it.

    Args:
        share: of a module's units, in (0, 1]. Runs that train well were seen at up to 0.25 in one module.
        min_batches: sampled batches to look at first, >= 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_activation, quiet_record
        >>> rule = DeadUnits()
        >>> well, dead = (quiet_activation("act", "ReLU", dead=share, num_batches=4) for share in (0.1, 0.9))
        >>> rule.observe(quiet_record(0, activations=(well,))) is None
        True
        >>> rule.observe(quiet_record(0, activations=(dead,))).message
        '90% of the units of act were silent in each of 4 sampled batches; 1 module is affected.'
    """

    id = "dead-units"
    harmless_if_learning = True
    needs = ("activations",)

    def __init__(self, share: float = 0.6, min_batches: int = 4) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        if min_batches < 1:
            raise ValueError(f"min_batches must be at least 1, got {min_batches}")
        self.share, self.min_batches = share, min_batches

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        dead = [
            a
            for a in record.activations or ()
            if a.dead is not None and a.dead >= self.share and a.num_batches >= self.min_batches
        ]
        if not dead:
            return None
        self.harmless_if_learning = not any(a.dead == 1.0 and _is_cut_off(a, record) for a in dead)
        worst = max(dead, key=lambda a: a.dead or 0.0)
        return Finding(
            rule=self.id,
            severity="critical" if worst.dead == 1.0 else "warning",
            message=(
                f"{worst.dead:.0%} of the units of {worst.module} were silent in each of {worst.num_batches} sampled "
                f"batches; {count(len(dead), 'module')} affected."
            ),
            step=record.step,
            layers=tuple(a.module for a in dead),
            evidence={"dead": worst.dead or 0.0, "batches": float(worst.num_batches), "modules": float(len(dead))},
            causes=("biases far below zero", "a learning rate that threw the weights too far"),
            remedies=(remedies.ZERO_BIAS, remedies.LEAKY, remedies.lower_rate()),
        )


def _is_cut_off(silent: ActivationStats, record: StepRecord) -> bool:
    """Whether the layer that ran before an activation has a gradient of exactly zero."""
    before = None
    for activation in record.activations or ():
        if activation is silent:
            break
        before = activation.module if activation.module in record.layers else before
    norms = dict(zip(record.layers, record.layer_norms, strict=True))
    return before is not None and norms[before] == 0 and record.total_norm > 0
