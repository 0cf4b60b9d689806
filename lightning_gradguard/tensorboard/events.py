"""What happened in a run, as one bounded list that is written anew when it grows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from lightning_gradguard.record import StepRecord
from lightning_gradguard.spikes import Spike, SpikeRule, SpikeWatch

Event = dict[str, Any]

# The first ones tell how it began, the last ones how it ended; about 40 kB of JSON when full.
_KEEP_FIRST = 50
_KEEP_LAST = 150
_NAMED_LAYERS = 5
EVENTS_VERSION = 1


class EventLog:
    """Collects the events of one optimizer: non-finite steps, overflows, rollbacks, spikes and findings.

    TensorBoard keeps only a sample of what is written under a tag, but always the last. So each write holds all
    events so far: the first 50 and the last 150, and the count of every kind. The more there are, the rarer is a
    write (one per 5 % of growth), so that a run with thousands of events does not fill the disk with them.
    """

    def __init__(self) -> None:
        self._first: list[Event] = []
        self._last: list[Event] = []
        self._counts: Counter[str] = Counter()
        self._findings: dict[str, Event] = {}
        self._spikes = SpikeWatch(SpikeRule(window=64, warmup=16))  # in records, not in steps
        self._unwritten = 0

    def observe(self, record: StepRecord) -> bool:
        """Takes note of what one record tells, and says whether anything happened at it."""
        before = self._unwritten
        if record.cause is not None:
            self._add(_nonfinite_event(record))
        spike = self._spikes.see(record.max_total_norm)
        if spike is not None and record.cause is None:
            self._add(_spike_event(record, spike))
        for finding in record.findings:
            self._add_finding(record.step, asdict(finding))
        return self._unwritten > before

    @property
    def is_due(self) -> bool:
        """Tells whether enough is new for a write."""
        return self._unwritten > (len(self._first) + len(self._last)) // 20

    @property
    def has_unwritten(self) -> bool:
        """Tells whether anything is new, however little."""
        return self._unwritten > 0

    def content(self) -> dict[str, Any]:
        """All of it as values that JSON can carry."""
        values = {
            "version": EVENTS_VERSION,
            "counts": dict(self._counts),
            "events": self._first + self._last,
            "findings": list(self._findings.values()),
        }
        return dict(finite(values))

    def to_json(self) -> bytes:
        """All of it as strict JSON; what is in here then counts as written."""
        self._unwritten = 0
        return json.dumps(self.content(), allow_nan=False).encode()

    def _add_finding(self, step: int, finding: Event) -> None:
        """Returns what is new of a finding: that it holds, and how gravely; or that it has cleared (``until``)."""
        known = self._findings.get(finding["rule"], {})
        self._findings[finding["rule"]] = finding | {"first_step": known.get("first_step", finding["step"])}
        state = [(each.get("severity"), each.get("until") is None) for each in (known, finding)]
        if state[0] != state[1]:
            self._add(_finding_event(step, finding))

    def _add(self, event: Event) -> None:
        self._counts[event["kind"]] += 1
        self._unwritten += 1
        if len(self._first) < _KEEP_FIRST:
            self._first.append(event)
        else:
            self._last.append(event)
            del self._last[:-_KEEP_LAST]


def _nonfinite_event(record: StepRecord) -> Event:
    what = "NaN" if record.cause == "nan" else "infinite"
    layers = record.nonfinite_layers
    where = f"{len(layers)} of {len(record.layers)} layers" if layers else "the total norm"
    happened = {
        "buffer": "the forward pass made a buffer non-finite",
        "exception": "the step raised an exception, and something was not finite",
        "loss": "the loss is NaN although every gradient is finite",
        "square": "a finite gradient too large to be squared, which the optimizer does",
        "spike": f"gradient norm {record.total_norm:.3g} or loss far above the usual",
    }.get(record.cause or "", f"{what} gradient in {where}")
    outcome = {
        "skipped": "step skipped, no weight moved",
        "overflow": "left to the loss scaler" + (f" (scale {record.loss_scale:g})" if record.loss_scale else ""),
        "rolled_back": "weights rolled back",
    }.get(record.verdict, "step applied")
    kind = {"overflow": "overflow", "rolled_back": "rollback"}.get(record.verdict, "nonfinite")
    if kind == "nonfinite" and record.cause == "spike":
        # Beside the largest of the good steps since the last record, where there were any.
        factor = record.total_norm / record.max_total_norm if record.max_total_norm > 0.0 else 1.0
        return _event(record.step, "spike", f"{happened}: {outcome}", layers) | {"factor": factor}
    return _event(record.step, kind, f"{happened}: {outcome}", layers)


def _spike_event(record: StepRecord, spike: Spike) -> Event:
    norms = zip(record.layers, record.max_layer_norms, strict=True)
    largest = sorted(((norm, layer) for layer, norm in norms if norm is not None), reverse=True)
    factor = spike.value / spike.usual
    text = f"gradient norm {spike.value:.3g}, {factor:.1f} times the usual one"
    if record.min_coefficient is not None and record.min_coefficient < 1.0 and not record.dry_run:
        text += f", cut to {record.min_coefficient:.2g} of it"
    return _event(record.step, "spike", text, tuple(layer for _, layer in largest[:1])) | {"factor": factor}


def _finding_event(step: int, finding: Event) -> Event:
    rule, is_past = finding["rule"], finding.get("until") is not None
    kind, text = (
        ("cleared", f"{rule} does not hold any more") if is_past else ("finding", f"{rule}: {finding['message']}")
    )
    return _event(step, kind, text, tuple(finding["layers"])) | {"severity": finding["severity"], "rule": rule}


def _event(step: int, kind: str, text: str, layers: tuple[str, ...]) -> Event:
    return {
        "step": step,
        "kind": kind,
        "text": text,
        "layers": list(layers[:_NAMED_LAYERS]),
        "num_layers": len(layers),
    }


def finite(value: Any) -> Any:
    """The same with NaN and infinities as strings: strict JSON has no numbers for them."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
