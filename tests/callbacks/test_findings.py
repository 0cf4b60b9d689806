"""Findings for loggers that show words: handed over whenever a reader would see something new."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradguard.callbacks.findings import FindingsSink
from lightning_gradguard.record import Finding

FINDING = Finding("a-rule", "warning", "words", 2)


class Shown(FindingsSink):
    """Keeps what a logger would be handed."""

    def __init__(self):
        super().__init__(logger=None)
        self.shown = []

    def _show(self, step, found):
        self.shown.append((step, self._verdict, list(found.values())))


def shown_of(make_record, *findings):
    sink = Shown()
    for step, finding in enumerate(findings, start=2):
        sink.write(make_record(step, findings=() if finding is None else (finding,)))
    return sink.shown


def test_a_finding_is_handed_over_once(make_record):
    assert shown_of(make_record, None, FINDING, None, replace(FINDING, count=8)) == [(3, "warning: a-rule", [FINDING])]


def test_one_that_becomes_graver_or_clears_is_handed_over_as_it_stands_now(make_record):
    graver, over = replace(FINDING, severity="critical"), replace(FINDING, severity="critical", until=9)
    assert shown_of(make_record, FINDING, graver, over) == [
        (2, "warning: a-rule", [FINDING]),
        (3, "critical: a-rule", [graver]),
        (4, "critical: a-rule", [over]),
    ]


def test_findings_stand_in_the_order_of_their_steps(make_record):
    early = replace(FINDING, rule="early", step=1)
    assert shown_of(make_record, FINDING, early)[-1][2] == [early, FINDING]
