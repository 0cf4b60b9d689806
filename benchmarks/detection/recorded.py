"""The recorded results, small: one line a run, and the tables made of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.machine import RESULTS, markdown_table

from .measure import Result
from .tables import TABLES, Case, cases, overall, rules

RECORDED = RESULTS / "detection.json"
PAGE = RESULTS / "detection.md"
DOCS = RESULTS.parent.parent / "docs" / "diagnosis.md"
Table = Callable[[Sequence[Case]], tuple[list[str], list[list[str]]]]


def write(heading: str, results: Sequence[Result]) -> None:
    """Records results, and renews every page made of them."""
    order = sorted(results, key=lambda r: (r.kind, r.fault or "", r.seed))
    lines = ",\n".join(json.dumps(_strict(result.plain())) for result in order)
    _whole(RECORDED, f'{{"heading": {json.dumps(heading)}, "results": [\n{lines}\n]}}\n')
    PAGE.write_text(page(heading, results), encoding="utf-8")
    DOCS.write_text(in_docs(DOCS.read_text(encoding="utf-8"), results), encoding="utf-8")


def _whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _strict(value: object) -> object:
    """Rounded, and what is not finite as a string: strict JSON, and small."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < float("inf") else str(value)
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def read() -> tuple[str, list[Result]]:
    """The heading and the results that were recorded last."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    return recorded["heading"], [_result(entry) for entry in recorded["results"]]


def _result(entry: dict[str, object]) -> Result:
    numbers = {key: float(entry[key]) for key in ("before", "after", "remedied") if key in entry}  # type: ignore[arg-type]
    said = {key: [tuple(one) for one in entry.get(key, [])] for key in ("said", "noted")}  # type: ignore[attr-defined]
    return Result(**{"fault": None, **entry, **numbers, **said})  # type: ignore[arg-type]


def page(heading: str, results: Sequence[Result]) -> str:
    """Every table, as Markdown."""
    found = cases(results)
    parts = [f"# Detection\n\n`python -m benchmarks.detection`\n\n{heading}\n"]
    for title, make in TABLES.items():
        parts.append(f"## {title}\n\n{make.__doc__}\n\n{markdown_table(*make(found))}\n")
    return "\n".join(parts)


def in_docs(text: str, results: Sequence[Result]) -> str:
    """The page on the diagnosis, with the figures of its two tables renewed."""
    found = cases(results)
    for name, make in {"overall": overall, "rules": rules}.items():
        begin, end = f"<!-- detection: {name} -->", "<!-- end -->"
        before, _, rest = text.partition(begin)
        if not rest:
            raise ValueError(f"{DOCS} has no place for the table {name!r}: write {begin} and {end} where it belongs")
        text = f"{before}{begin}\n{markdown_table(*make(found))}\n{end}{rest.partition(end)[2]}"
    return text
