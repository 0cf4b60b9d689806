"""What a fit showed: shared by a callback and its copies, so that the one the user holds can be read."""

from __future__ import annotations

from typing import Any

from lightning_gradguard.diagnose.diagnosis import Diagnosis
from lightning_gradguard.record import Finding, Findings, StepRecord


class Seen:
    """The latest records and findings of one fit.

    A deep copy of it is the same object: libraries that copy the callbacks they are given train with the copy, and the
    user reads the original. A pickled one holds what was seen up to then.

    Args:
        records: goes on being filled while the fit runs.
        diagnoses: likewise, one for each optimizer.
    """

    def __init__(self, records: list[StepRecord] | None = None, diagnoses: list[Diagnosis] | None = None) -> None:
        self.show([] if records is None else records, [] if diagnoses is None else diagnoses)

    def show(self, records: list[StepRecord], diagnoses: list[Diagnosis]) -> None:
        """Shows another fit from now on."""
        self.records = records
        self._diagnoses = diagnoses
        self._found_before: list[Finding] = []

    @property
    def findings(self) -> list[Finding]:
        """Returns what the rules found, causes first, of whichever optimizer; mere facts last."""
        found = [finding for each in self._diagnoses for finding in each.findings]
        return Findings([*self._found_before, *sorted(found, key=lambda f: (f.severity == "info", f.place))])

    def __deepcopy__(self, memo: dict[int, Any]) -> Seen:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"records": list(self.records), "_diagnoses": [], "_found_before": self.findings}
