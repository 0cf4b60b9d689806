"""Finds the sentences of README, docs and public docstrings that promise something without exception."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import lightning_gradguard
from lightning_gradguard.diagnose import default_rules

ROOT = Path(__file__).parents[2]
PROMISE = re.compile(r"\b(never|always|every|exact|exactly|cannot|bit for bit|to the bit)\b", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z`*\[_])| \| |^#+ ")
_PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*[-|#*>] |\s*\d+\. |\||\s{8,}\w+: )")
_LABEL = 6  # words: fewer are a heading, a label or a cell of a table


def promises() -> Iterator[tuple[str, str]]:
    """Where each stands, and the sentence."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for sentence in sentences(page.read_text(encoding="utf-8")):
            yield page.relative_to(ROOT).as_posix(), sentence
    for name, doc in docstrings():
        for sentence in sentences(doc):
            yield name, sentence


def docstrings() -> Iterator[tuple[str, str]]:
    """Of every public name and of its public methods, and of every rule."""
    classes = {name: getattr(lightning_gradguard, name) for name in lightning_gradguard.__all__}
    classes |= {type(rule).__name__: type(rule) for rule in default_rules()}
    for name, found in classes.items():
        if not callable(found):
            continue
        yield name, vars(found).get("__doc__") or inspect.getdoc(found) or ""
        if not inspect.isclass(found):
            continue
        for member, value in vars(found).items():
            function = value.fget if isinstance(value, property) else value
            if not member.startswith("_") and inspect.isfunction(function) and function.__doc__:
                yield f"{name}.{member}", function.__doc__


def sentences(text: str) -> Iterator[str]:
    """Those of a text that promise; code blocks are left out."""
    for paragraph in _PARAGRAPH.split(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        for sentence in _END.split(" ".join(paragraph.split())):
            words = re.sub(r"``.*?``|`[^`]*`|\]\([^)]*\)", "", sentence)
            if PROMISE.search(words) and ">>>" not in sentence and len(sentence.split()) >= _LABEL:
                yield sentence.strip(" -|*")
