"""Imports point one way: what the design says of the package's parts, walked through every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_gradguard"

# A part imports only parts below it, and siblings of its own folder.
ORDER: tuple[tuple[str, ...], ...] = (
    ("arguments", "harmless", "record"),
    ("measurement", "sinks", "spikes"),
    ("clip", "diagnose", "incident", "probes"),
    ("guard", "hindsight"),
    ("recording", "tensorboard"),
    ("pipeline", "report"),
    ("callbacks",),
    ("__init__", "__main__", "demo", "environment", "huggingface"),
)
# What reads records and nothing else of ours: rules, and every view.
READERS = ("diagnose", "report", "tensorboard", "hindsight")
READ = ("harmless", "arguments", "record", "sinks", "spikes", "diagnose", "report", "tensorboard", "hindsight")
# One view answers what another policy would have done, and a second implementation of a policy could only be wrong: it
# runs the real ones over what records hold. It asks them through the same `decide` as a step does, and nothing else.
READ_BESIDES = {"hindsight": ("clip", "measurement")}
# What only one part may import: everything else works where it is not installed.
ONLY = {"lightning": ("callbacks", "demo"), "pytorch_lightning": ("callbacks",), "tensorboard": ("tensorboard",)}
ONLY |= {"transformers": ("huggingface",), "matplotlib": ("report",), "pandas": ("report",)}


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(source: str) -> Iterator[str]:
    """Every module that a file imports when it runs: those for type checkers only do not count."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def wrong_imports(part: str, source: str) -> list[str]:
    """What a file of a part must not import, in words."""
    rank = {name: place for place, names in enumerate(ORDER) for name in names}
    wrong = []
    for module in imports(source):
        top, _, rest = module.partition(".")
        if top == "lightning_gradguard" and rest:
            other = rest.partition(".")[0]
            if other != part and rank[other] >= rank[part]:
                wrong.append(f"{part} imports {other}, which is not below it")
            elif part in READERS and other not in READ + READ_BESIDES.get(part, ()):
                wrong.append(f"{part} imports {other}, and may read records only")
        elif part not in ONLY.get(top, (part,)):
            wrong.append(f"{part} imports {top}, which only {' and '.join(ONLY[top])} may")
    return wrong


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    assert wrong_imports(part_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("measurement", "from lightning_gradguard.pipeline import GradientPipeline"),
        ("measurement", "def late():\n    from lightning_gradguard.callbacks.base import GradientCallback"),
        ("clip", "from lightning_gradguard.guard.guard import Guard"),
        ("diagnose", "from lightning_gradguard.measurement.layout import Layout"),
        ("tensorboard", "from lightning_gradguard.clip.zclip import ZClip"),
        ("hindsight", "from lightning_gradguard.guard.guard import Guard"),
        ("pipeline", "import lightning.pytorch as pl"),
        ("record", "from tensorboard.compat.proto.summary_pb2 import Summary"),
    ],
)
def test_the_walk_finds_what_is_wrong(part: str, source: str) -> None:
    assert len(wrong_imports(part, source)) == 1


def test_the_walk_lets_pass_what_only_type_checkers_read() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lightning.pytorch as pl"
    assert wrong_imports("measurement", source) == []
