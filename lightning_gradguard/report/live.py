"""Says what is found while a run goes on, and how it went when it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import final

from rich.console import Group
from rich.text import Text

from lightning_gradguard.record import Finding, Severity, StepRecord
from lightning_gradguard.report.console import as_text, show_finding, show_run
from lightning_gradguard.report.picture import pictures_of
from lightning_gradguard.report.summary import SEVERITIES, Summary, summarize
from lightning_gradguard.sinks import MemorySink, Sink
from lightning_gradguard.tensorboard.events import EventLog

Say = Callable[[Severity, str], None]


@final
class ConsoleSink(Sink):
    """Says each new finding once, when it comes, and sums the run up in a few lines when it ends.

    One that becomes graver later is said once more, without what was explained already.

    Holds the last 1,000 records and at most 200 events for each optimizer, whatever the length of the run.

    Args:
        say: takes severity and text of what is to be said; ``None`` prints the text.
        width: characters in a line, at least 40.

    Raises:
        ValueError: if ``width`` is below 40.

    Example:
        >>> from lightning_gradguard.record import Finding
        >>> sink = ConsoleSink()
        >>> sink.tell(Finding("exploding", "critical", "The gradient grows.", 7, remedies=("clip it",)))
        GradGuard at step 7:
          critical exploding
            The gradient grows.
            try: clip it
    """

    def __init__(self, say: Say | None = None, width: int = 80) -> None:
        if width < 40:
            raise ValueError(f"width must be at least 40, got {width}")
        self.say = say or (lambda severity, text: print(text))
        self.width = width
        self._memory = MemorySink(max_records=1000)
        self._events: dict[int, EventLog] = {}
        self._steps: dict[int, tuple[int, int]] = {}  # by optimizer: steps and clipped ones, up to the last record
        self._said: dict[tuple[int, str], int] = {}  # by optimizer and rule: how grave it was when it was said
        self._ended = False

    def __repr__(self) -> str:
        return f"ConsoleSink(width={self.width})"

    def write(self, record: StepRecord) -> None:
        """Takes note of one record, and says what was found at it."""
        self._memory.write(record)
        self._events.setdefault(record.optimizer, EventLog()).observe(record)
        steps, clipped = self._steps.get(record.optimizer, (0, 0))
        self._steps[record.optimizer] = steps + record.num_steps, clipped + record.num_clipped
        for finding in record.findings:
            key, grade = (record.optimizer, finding.rule), SEVERITIES.index(finding.severity)
            said = self._said.get(key, -1)
            if grade <= said or finding.until is not None:
                continue
            self._said[key] = grade
            where = f"{record.step} of optimizer {record.optimizer}" if record.num_optimizers > 1 else f"{record.step}"
            self._tell(finding, where, short=said >= 0)

    def tell(self, finding: Finding) -> None:
        """Says one finding, with its causes and remedies, most likely first."""
        self._tell(finding, f"{finding.step}", short=False)

    def _tell(self, finding: Finding, where: str, *, short: bool) -> None:
        head = Text(f"GradGuard at step {where}:")
        self.say(finding.severity, as_text(Group(head, show_finding(finding, short=short)), self.width))

    def close(self) -> None:
        """Sums up, unless :meth:`end` did."""
        self.end()

    def summaries(self) -> list[Summary]:
        """How the run went up to now, by optimizer."""
        found = []
        for picture in pictures_of(self._memory.records, "this run"):
            steps, clipped = self._steps[picture.optimizer]
            picture = replace(picture, events=self._events[picture.optimizer].content())
            summary = summarize(picture)
            found.append(replace(summary, steps=steps, clipped=None if summary.clipped is None else clipped))
        return found

    def end(
        self,
        summaries: Sequence[Summary] | None = None,
        how: str = "",
        cleared: Collection[str] = (),
        after: Sequence[str] = (),
    ) -> None:
        """Says how the run went, once: a second call says nothing, nor does one before the first step.

        Args:
            summaries: by optimizer; those of the records if not given.
            how: how it ended, such as ``"stopped early"``.
            cleared: ids of rules whose finding does not hold any more.
            after: lines to end with: what was saved, and what to type next.
        """
        summaries = self.summaries() if summaries is None else summaries
        if self._ended or not summaries:
            return
        self._ended = True
        title = f"GradGuard: {how} after" if how else "GradGuard:"
        titles = [f"{title} optimizer {s.optimizer}'s" if len(summaries) > 1 else title for s in summaries]
        shown = [show_run(s, title=t, short=True, cleared=cleared) for s, t in zip(summaries, titles, strict=True)]
        # What comes after holds paths and commands to be copied: those lines are never broken.
        self.say("info", "\n".join([as_text(Group(*shown), self.width), *after]))
