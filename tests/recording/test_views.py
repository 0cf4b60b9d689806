"""Every view of a run gets every record, and none can end the run."""

from __future__ import annotations

import pytest

from lightning_gradguard.record import StepRecord
from lightning_gradguard.recording.views import Views
from lightning_gradguard.sinks import MemorySink, Sink


class Failing(Sink):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def write(self, record: StepRecord) -> None:
        self.calls.append("write")
        raise OSError("no space left")

    def close(self) -> None:
        self.calls.append("close")
        raise OSError("no space left")


def test_one_that_fails_gets_no_more_records_is_closed_and_does_not_hide_the_others(make_record):
    failing, after = Failing(), MemorySink()
    views = Views([failing, after])
    with pytest.warns(UserWarning, match=r"the view Failing failed .*no space left") as said:
        views.write(make_record(1))
        views.write(make_record(2))
        views.close()
        views.close()
    assert len(said) == 1
    assert failing.calls == ["write", "close"]
    assert [record.step for record in after.records] == [1, 2]
