"""Layers that the loss does not reach."""

from __future__ import annotations

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import execution_order
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, StepRecord


class NoGradient(Rule):
    """A trainable layer has no gradient at all, or one stretch of layers in the middle is frozen.

    *No gradient* is ``p.grad is None``, not zero: the graph does not lead from the loss to the layer. A single
    stretch of frozen layers between trainable ones is reported as well, if the optimizer holds it. What people freeze
    on purpose looks otherwise: the first layers (fine-tuning), all normalization layers, or every layer beside its
    adapter; those stay unmentioned.

    Example:
        >>> NoGradient().id
        'no-gradient'
    """

    id = "no-gradient"
    harmless_if_learning = True
    needs = ("trainable", "layer_kinds")

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        assert record.trainable is not None
        if all(record.trainable) and None not in record.max_layer_norms:
            return None
        unreached = tuple(
            record.layers[i]
            for i in execution_order(record)
            if record.trainable[i] and record.max_layer_norms and record.max_layer_norms[i] is None
        )
        if unreached and len(unreached) < len(record.layers):
            return self._finding(record, unreached, "require a gradient and never get one", frozen=False)
        frozen = self._frozen_between(record)
        if frozen:
            return self._finding(record, frozen, "are frozen between layers that train", frozen=True)
        return None

    def _frozen_between(self, record: StepRecord) -> tuple[str, ...]:
        """The frozen layers with trainable ones on either side, if they are one stretch."""
        assert record.trainable is not None and record.layer_kinds is not None
        order = [i for i in execution_order(record) if "Norm" not in record.layer_kinds[i]]
        flags = [record.trainable[i] for i in order]
        if not any(flags):
            return ()
        start, stop = flags.index(True), len(flags) - flags[::-1].index(True)
        inner = [place for place in range(start, stop) if not flags[place]]
        if not inner or inner[-1] - inner[0] + 1 != len(inner):
            return ()
        return tuple(record.layers[order[place]] for place in inner)

    def _finding(self, record: StepRecord, layers: tuple[str, ...], what: str, *, frozen: bool) -> Finding:
        causes = (
            ("requires_grad was switched off by mistake",)
            if frozen
            else ("a detached tensor cuts the graph", "the layer's output is not used in the loss")
        )
        return Finding(
            rule=self.id,
            severity="warning" if frozen else "critical",
            message=f"{named(layers)} {what}: {len(layers)} of {len(record.layers)} layers.",
            step=record.step,
            layers=layers,
            evidence={"layers": float(len(layers)), "of": float(len(record.layers))},
            causes=causes,
            remedies=(remedies.UNFREEZE, remedies.CONNECT) if frozen else (remedies.CONNECT, remedies.UNFREEZE),
        )
