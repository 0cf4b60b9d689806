"""A run in Python: its records, as a picture, as a table, and in a notebook."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from lightning_gradguard.record import Finding, Findings, StepRecord
from lightning_gradguard.report.frame import rows_by
from lightning_gradguard.report.html import run_html
from lightning_gradguard.report.names import RECORDS_NAME, run_name
from lightning_gradguard.report.picture import pictures_of
from lightning_gradguard.report.stored import stored_records
from lightning_gradguard.report.summary import Summary, summarize
from lightning_gradguard.sinks import read_jsonl

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@final
class Run:
    """The records of a run, with what can be done with them.

    Args:
        records: of one run, oldest first, of one optimizer or of several.
        name: of the run, for titles.

    Example:
        >>> Run([], name="first")
        Run(0 records, name='first')
    """

    def __init__(self, records: Sequence[StepRecord], name: str = "run") -> None:
        self.records = list(records)
        self.name = name

    def __repr__(self) -> str:
        return f"Run({len(self.records)} records, name={self.name!r})"

    def _repr_html_(self) -> str:
        return run_html(self.summaries, self.name)

    @cached_property
    def summaries(self) -> list[Summary]:
        """How each optimizer went, by its index: counts, findings, and the norms of the layers."""
        return [summarize(picture) for picture in pictures_of(self.records, self.name)]

    @property
    def findings(self) -> list[Finding]:
        """What was found in the run, optimizer by optimizer."""
        return Findings(finding for summary in self.summaries for finding in summary.findings)

    def plot(self, optimizer: int = 0) -> Figure:
        """Draws the run: norms of layers × steps, their profile over depth, and the total norm with what happened.

        Needs matplotlib, which is imported here and nowhere else.

        Args:
            optimizer: index of the optimizer.

        Raises:
            ValueError: if the run has no records of that optimizer.
        """
        from lightning_gradguard.report.figures import draw

        pictures = {picture.optimizer: picture for picture in pictures_of(self.records, self.name)}
        if optimizer not in pictures:
            raise ValueError(f"the run has no records of optimizer {optimizer}; it has those of {sorted(pictures)}")
        return draw(pictures[optimizer])

    def to_frame(self, by: Literal["layer", "step"] = "layer") -> pandas.DataFrame:
        """The records as a table of pandas, which is imported here and nowhere else.

        Args:
            by: ``"layer"``: a row for each layer at each record, with its norm, weight norm and update ratio.
                ``"step"``: a row for each record, with total norm, threshold, coefficient, loss and verdict.

        Raises:
            ValueError: if ``by`` is neither.
        """
        import pandas

        return pandas.DataFrame(rows_by(by, self.records))


def read_run(path: str | os.PathLike[str]) -> Run:
    """The records of one run, from its log folder or from a JSONL file.

    A log folder is read from the records that the callbacks leave in it (``gradguard.jsonl``), or from TensorBoard's
    event files, which hold less: no shapes and kinds of layers, no activations.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it holds no records, or those of several runs; or for a broken line, with its number.

    Example:
        >>> read_run("lightning_logs/version_0").plot()  # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_file():
        return Run(list(read_jsonl(path)), run_name(path, path))
    own = path / RECORDS_NAME
    files = [own] if own.is_file() else sorted(path.rglob("*.jsonl"))
    if len(files) == 1:
        return Run(list(read_jsonl(files[0])), path.resolve().name)
    if files:
        names = ", ".join(str(file.relative_to(path)) for file in files[:5])
        raise ValueError(f"{path} holds several runs ({names}): name one of them")
    return Run(stored_records(path), path.resolve().name)
