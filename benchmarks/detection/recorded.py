"""The recorded results, small: one line a run, and the tables made of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import RESULTS, markdown_table

from .measure import Result
from .tables import cases, sentence, tables

RECORDED = RESULTS / "detection.json"
PAGE = RESULTS / "detection.md"
ROOT = RESULTS.parent.parent
IN_WORDS = (ROOT / "docs" / "diagnosis.md", ROOT / "README.md")  # pages with figures in marked places


@dataclass(frozen=True)
class Record:
    """A run of the whole benchmark: what it was, the ids of the rules that looked, and what came of each run."""

    heading: str
    rules: list[str]
    results: list[Result]


def write(record: Record) -> None:
    """Records it, and renews every page made of it."""
    order = sorted(record.results, key=lambda r: (r.kind, r.fault or "", r.seed))
    body = ",\n".join(map(line, order))
    about = f'"heading": {json.dumps(record.heading)},\n"rules": {json.dumps(record.rules)}'
    _whole(RECORDED, f'{{{about},\n"results": [\n{body}\n]}}\n')
    for path, text in pages(read()).items():
        _whole(path, text)


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


def read() -> Record:
    """What was recorded last."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    return Record(recorded["heading"], recorded["rules"], [_result(entry) for entry in recorded["results"]])


def line(result: Result) -> str:
    """One run as one line of strict JSON."""
    return json.dumps(_strict(result.plain()))


def lines(path: Path) -> list[Result]:
    """The runs of a file with one on each line."""
    return [_result(json.loads(one)) for one in path.read_text(encoding="utf-8").splitlines()]


def _result(entry: dict[str, object]) -> Result:
    numbers = {key: float(entry[key]) for key in ("before", "after", "remedied") if key in entry}  # type: ignore[arg-type]
    said = {key: [tuple(one) for one in entry.get(key, [])] for key in ("said", "noted")}  # type: ignore[attr-defined]
    return Result(**{"fault": None, **entry, **numbers, **said})  # type: ignore[arg-type]


def pages(record: Record) -> dict[Path, str]:
    """The text of every page that shows something of a record."""
    found = cases(record.results)
    made = tables(found, record.rules)
    marked = {
        "overall": markdown_table(*made["Flagged and named"][1]),
        "rules": markdown_table(*made["Each rule"][1]),
        "sentence": sentence(found),
    }
    parts = [f"# Detection\n\n`python -m benchmarks.detection`\n\n{record.heading}\n"]
    parts += [f"## {title}\n\n{says}\n\n{markdown_table(*table)}\n" for title, (says, table) in made.items()]
    return {PAGE: "\n".join(parts)} | {path: _renewed(path.read_text(encoding="utf-8"), marked) for path in IN_WORDS}


def _renewed(text: str, marked: dict[str, str]) -> str:
    """A page whose marked places hold what they should."""
    return re.sub(
        r"<!-- detection: (\w+) -->.*?<!-- end -->",
        lambda place: f"<!-- detection: {place[1]} -->\n{marked[place[1]]}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )
