"""Layers that the loss does not reach."""

from __future__ import annotations

from typing import Literal

from lightning_gradguard.diagnose import remedies
from lightning_gradguard.diagnose.depth import execution_order, weight_layers
from lightning_gradguard.diagnose.diagnosis import Rule
from lightning_gradguard.diagnose.words import named
from lightning_gradguard.record import Finding, Severity, StepRecord

_PART = 0.25  # of all elements that make up a part of the net
_Why = Literal["cut", "flat", "frozen"]


class NoGradient(Rule):
    """No parameter has a gradient, or a trainable layer has none, or a stretch of layers in the middle is frozen.

    *No gradient* is ``p.grad is None``, not zero: the graph does not lead from the loss to the layer. How much that
    matters goes by what is left out:

    - nothing at all has a gradient: critical;
    - the first layers that run have none, up to some layer from which on all have: a cut, a warning;
    - a whole part of several layers, or one of several heads of the same shape, has none, although its output would
      pass it on: a warning;
    - layers that never ran, a copy of layers that train (a target network), or one here and there (a pooler whose
      output is not used): *info*, as long as they are fewer than half.

    A gradient may also be there and exactly zero, since something on the way has the derivative zero: rounding, a sign,
    an argmax or a comparison. That is reported of a part of several layers from the input on, at least a quarter of
    all elements, that never had another gradient while its units are alive and all behind it train.

    A single stretch of frozen layers between trainable ones is reported as well, if the optimizer holds it. What
    people freeze on purpose looks otherwise: the first layers (fine-tuning), all normalization layers, or every layer
    beside its adapter; those stay unmentioned.

    Example:
        >>> from lightning_gradguard.diagnose.quiet import quiet_record
        >>> NoGradient().observe(quiet_record()) is None
        True
        >>> NoGradient().observe(quiet_record(max_layer_norms=(None, None, 0.1, 0.1, 0.1, 0.1))).message
        'a, b require a gradient and never get one: 2 of 6 layers.'
    """

    id = "no-gradient"
    needs = ("trainable", "layer_kinds")
    sees_missing_steps = True

    def __init__(self) -> None:
        self._reached: set[str] = set()
        self._moved: set[str] = set()  # layers that had a gradient other than zero
        self._alive = True  # whether units of activations are

    def observe(self, record: StepRecord) -> Finding | None:
        """The finding that holds at this record, or ``None``."""
        if record.waiting is not None or record.cleared or not record.layers:
            return None
        if record.num_steps == 0:
            return self._nothing(record)
        assert record.trainable is not None
        self._reached.update(
            n for n, norm in zip(record.layers, record.max_layer_norms, strict=True) if norm is not None
        )
        self._moved.update(n for n, norm in zip(record.layers, record.max_layer_norms, strict=True) if norm)
        self._alive = not any((a.dead or 0.0) > 0.5 or a.rms == 0 for a in record.activations or ())
        if flat := self._behind_a_step_function(record):
            return self._finding(record, flat, "warning", "flat")
        if all(record.trainable) and len(self._reached) >= len(record.layers):
            return None
        unreached = tuple(
            record.layers[i]
            for i in execution_order(record)
            if record.trainable[i] and record.layers[i] not in self._reached
        )
        if unreached and len(unreached) < len(record.layers):
            severity = self._severity(record, frozenset(unreached))
            return self._finding(record, unreached, severity, "cut")
        frozen = self._frozen_between(record)
        if frozen:
            return self._finding(record, frozen, "warning", "frozen")
        return None

    def _nothing(self, record: StepRecord) -> Finding | None:
        if self._reached:
            return None
        foreign = sum(name.startswith("unnamed.") for name in record.layers)
        whose = f"; {foreign} of its {len(record.layers)} layers are not the module's" if foreign else ""
        copied = "the optimizer holds a copy of the model, or parameters from before they were replaced"
        cut = "a detached tensor cuts the graph"
        own = foreign == 0  # then it is no copy: the loss does not lead there
        return Finding(
            rule=self.id,
            severity="critical",
            message=f"no parameter of the optimizer has a gradient: nothing trains{whose}.",
            step=record.step,
            layers=record.layers,
            evidence={"layers": float(len(record.layers)), "foreign": float(foreign)},
            causes=(cut,) if own else (copied, cut),
            remedies=(remedies.CONNECT,) if own else (remedies.OWN_PARAMETERS, remedies.CONNECT),
        )

    def _severity(self, record: StepRecord, unreached: frozenset[str]) -> Severity:
        """How much it matters that these layers are not reached."""
        ran = [i for i in weight_layers(record) if record.depth is None or record.depth[i] is not None]
        flags = [record.layers[i] in unreached for i in ran]
        if not any(flags):
            return "info"  # they never run
        held_back = [
            record.flows is not None and record.flows[i] is False for i in ran if record.layers[i] in unreached
        ]
        shapes = list(record.layer_shapes or ())
        missing = [s for n, s in zip(record.layers, shapes, strict=False) if n in unreached]
        there = [s for n, s in zip(record.layers, shapes, strict=False) if n not in unreached]
        if shapes and all(there.count(s) >= missing.count(s) for s in set(missing)):
            # A copy of what trains, under no_grad on purpose; or one of several heads, which its loss does not reach.
            return "info" if all(held_back) or len(missing) > 2 else "warning"
        passed_on = [i for i in ran if record.layers[i] in unreached and record.flows is not None and record.flows[i]]
        if len({record.layers[i].rpartition(".")[0] for i in passed_on}) == 1 < len(passed_on) == len(unreached):
            return "warning"  # a whole part that is computed, and of which the loss knows nothing
        cut = flags[0] and True not in flags[flags.index(False) :] if False in flags else True
        return "warning" if cut or sum(flags) * 2 > len(flags) else "info"

    def _behind_a_step_function(self, record: StepRecord) -> tuple[str, ...]:
        """The layers from the input on whose gradient was always exactly zero, where that is a part of the net."""
        order = weight_layers(record)
        names = [record.layers[i] for i in order]
        flat = [
            record.max_layer_norms[i] == 0 and name not in self._moved for i, name in zip(order, names, strict=True)
        ]
        end = flat.index(False) if False in flat else 0
        weights = record.weight_norms or (1.0,) * len(record.layers)
        if end < 2 or True in flat[end:] or not self._alive or any(weights[i] == 0 for i in order):
            return ()
        sizes = record.layer_sizes or (1,) * len(record.layers)
        is_a_part = sum(sizes[i] for i in order[:end]) > _PART * sum(sizes[i] for i in order)
        return tuple(names[:end]) if is_a_part else ()

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

    def _finding(self, record: StepRecord, layers: tuple[str, ...], severity: Severity, why: _Why) -> Finding:
        one = len(layers) == 1
        what, causes, tries = {
            "cut": (
                "requires a gradient and never gets one" if one else "require a gradient and never get one",
                ("a detached tensor cuts the graph", "the layer's output is not used in the loss"),
                (remedies.CONNECT, remedies.UNFREEZE),
            ),
            "flat": (
                "get a gradient of exactly zero in every step, and all behind them another",
                ("something on the way has the derivative zero: round(), sign(), argmax(), a comparison",),
                (remedies.STRAIGHT_THROUGH, remedies.CONNECT),
            ),
            "frozen": (
                f"{'is' if one else 'are'} frozen between layers that train",
                ("requires_grad was switched off by mistake",),
                (remedies.UNFREEZE, remedies.CONNECT),
            ),
        }[why]
        return Finding(
            rule=self.id,
            severity=severity,
            message=f"{named(layers)} {what}: {len(layers)} of {len(record.layers)} layers.",
            step=record.step,
            layers=layers,
            evidence={"layers": float(len(layers)), "of": float(len(record.layers))},
            causes=causes,
            remedies=tries,
        )
