"""Puts pages onto the site that live elsewhere in the repository, and one of the reference for each room of names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import lightning_gradguard

ROOT = Path(__file__).resolve().parents[1]

# Where each page of the reference takes its names from: the beginnings of their modules.
REFERENCE = {
    "callbacks": ("Callbacks", ("callbacks",)),
    "policies": ("Policies", ("clip.", "hindsight.")),
    "diagnosis": ("Diagnosis", ("diagnose", "spikes")),
    "core": ("Without Lightning", ("pipeline", "measurement.", "probes.")),
    "records": ("Records and sinks", ("record", "sinks", "tensorboard.", "report")),
    "incidents": ("Incidents", ("guard.", "incident.")),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is generated, or lies outside of the folder of pages."""

    def page(uri: str, text: str) -> None:
        files.append(File.generated(config, uri, content=text))

    def copy(uri: str, path: Path) -> None:
        files.append(File.generated(config, uri, abs_src_path=str(path)))

    page("index.md", front(read("README.md")))
    page("contributing.md", read("CONTRIBUTING.md"))
    page("gallery.md", read("examples/README.md").replace("](results/", "](gallery/"))
    for picture in (ROOT / "examples" / "results").glob("*.png"):
        copy(f"gallery/{picture.name}", picture)
    recorded = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    for path in recorded:
        copy(f"results/{path.name}", path)
    page("figures.md", figures(recorded))
    for script in (ROOT / "examples").rglob("*.py"):
        copy(f"examples/{script.relative_to(ROOT / 'examples').as_posix()}", script)
    for name in REFERENCE:
        page(f"reference/{name}.md", reference(name))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of the folder of pages lead to where the site has those files."""
    return re.sub(r"\]\(\.\./(?:benchmarks/)?(results|examples)/", r"](\1/", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Names that docstrings mark for readers of the source are shown without the mark and without their modules."""
    return re.sub(
        r":(?:func|class|data|meth|mod|attr|exc):\s*<code>~?(?:[\w.]+\.)?(\w+)</code>", r"<code>\1</code>", html
    )


def read(path: str) -> str:
    """A file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def front(readme: str) -> str:
    """The README as the front page."""
    return readme.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")


def figures(recorded: list[Path]) -> str:
    """The list of recorded measurements."""
    titles = [(path, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")) for path in recorded]
    lines = [f"- [{title or path.stem}](results/{path.name})" for path, title in titles]
    return "# Figures\n\nWhat was measured, with the commands and the machine.\n\n" + "\n".join(lines) + "\n"


def reference(name: str) -> str:
    """A page of the reference: each public name whose module belongs to it.

    Raises:
        ValueError: if a public name has no page.
    """
    homeless = [public for public, home in lightning_gradguard._HOME.items() if not pages_of(home)]
    if homeless:
        raise ValueError(f"no page of the reference has {homeless}: add their modules to REFERENCE in {__file__}")
    title, _ = REFERENCE[name]
    entries = [
        f"::: lightning_gradguard.{home}.{public}"
        for public, home in lightning_gradguard._HOME.items()
        if name in pages_of(home)
    ]
    return "\n\n".join([f"# {title}", *entries]) + "\n"


def pages_of(home: str) -> list[str]:
    """The pages on which the names of a module stand."""
    return [name for name, (_, modules) in REFERENCE.items() if any(f"{home}.".startswith(m) for m in modules)]
