"""Layers whose gradient is exactly zero."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import weight_layers
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord


class ZeroGradient(Rule):
    """A layer takes part in the graph, and its gradient has been exactly zero for several records.

    Mostly a consequence: of dead units, of weights that are all zero, of underflow. *Info* as long as most layers get a
    gradient: a softmax over one variable passes none on, nor does an expert that nothing is routed to.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> rule = ZeroGradient()
        >>> rule.observe(quiet_record(0)) is None
        True
        >>> rule.observe(quiet_record(0, layer_norms=(0.0, 0.1, 0.1, 0.1, 0.1, 0.1))).message
        'a: the gradient is exactly zero.'
    """

    id = "zero-gradient"
    harmless_if_learning = True
    needs = ("layer_kinds",)

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if record.num_nonfinite >= record.num_steps:
            return None  # no good step since the last record, hence no norm: NaN is not zero
        layers = weight_layers(record)
        zero = tuple(record.layers[i] for i in layers if record.max_layer_norms[i] == 0)
        if not zero:
            return None
        return Finding(
            rule=self.id,
            severity="critical" if 2 * len(zero) > len(layers) else "info",
            message=f"{named(zero)}: the gradient is exactly zero.",
            step=record.step,
            layers=zero,
            evidence={"layers": float(len(zero)), "of": float(len(record.layers))},
            causes=("units behind it are dead or all zero", "the gradient underflows"),
            remedies=(remedies.INIT_NORMAL, remedies.LEAKY, remedies.CONNECT),
        )
