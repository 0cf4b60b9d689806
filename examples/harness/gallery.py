"""Writes the gallery, ``examples/README.md``, from the recorded results: make gallery.

Words are in ``pages.py``, figures are not: every one comes from a record, with its command, date and machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the studies find the harness, too

from harness import bars, studies
from harness.data import UsageError
from harness.pages import PAGES, PICTURES, Page
from harness.report import Study, load, number

EXAMPLES = Path(__file__).parents[1]
SCREENSHOTS = "screenshots.json"  # of ``screenshots.py``
# {record|variant} or {record|variant|heading} in the words of a page
CELL = re.compile(r"\{([^|{}]+)\|([^|{}]+)(?:\|([^|{}]+))?\}")


def section(page: Page, folder: Path, home: Path) -> str:
    """One study of the gallery; records that are missing are said to be missing."""
    there = {name: load(path) for name in page.records if (path := folder / f"{name}.json").is_file()}
    made = {name: study for name, (study, _) in there.items()}
    parts = [f"## {page.title}", filled(page.why, made) or ""]
    for name in page.records:
        if name not in there:
            parts.append(f"*{name}: not recorded yet; `python examples/cases.py --only {name}` does it.*")
            continue
        study, about = there[name]
        plot = os.path.relpath(folder / f"{name}.png", home)
        parts += [
            f"### {study.question}",
            f"```bash\n{study.command}\n```",
            study.markdown(),
            f"*{study.source}. {seeds_of(study)} {about['date']}, {about['machine']}, {about['versions']}.*",
            f"![gradient norms of {name}]({plot})",
            verdict(study),
        ]
    if page.look:
        parts.append(f"**In TensorBoard:** {page.look}")
    lines = [line for text in page.not_held if (line := filled(text, made))]
    if lines:
        parts.append("**What did not hold:**\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(part for part in parts if part)


def filled(text: str, made: dict[str, Study]) -> str | None:
    """A text with the figures that it speaks of; ``None`` where they are not recorded yet."""
    if any(name not in made for name, _, _ in CELL.findall(text)):
        return None
    return CELL.sub(lambda match: cell(made[match[1]], match[2], match[3]), text)


def cell(study: Study, variant: str, heading: str | None) -> str:
    """A cell of the study's table, by default that of the first metric."""
    study.of(variant)  # says which variants there are
    headings, rows = study.rows()
    if heading is not None and heading not in headings:
        raise KeyError(f"{study.name} has no column {heading!r}; it has {headings}")
    [row] = [row for row in rows if row[0] == variant]
    return row[1 if heading is None else headings.index(heading)].replace("/", " of ")


def seeds_of(study: Study) -> str:
    count = max(len(study.of(variant)) for variant in study.variants())
    return f"{count} seeds." if count > 1 else "One seed."


def verdict(study: Study) -> str:
    """What the study had to show, and whether it did; where it did not, what each seed came to."""
    found = bars.of(study)
    if not found:
        return ""
    lines = [f"| {says(bar, study)} | {measured} | {'yes' if holds else '**no**'} |" for bar, measured, holds in found]
    missed = [text for bar, _, holds in found if not holds and (text := seed_by_seed(bar, study))]
    table = "\n".join(["| has to show | measured | holds |", "| --- | ---: | --- |", *lines])
    return "\n\n".join([table, *dict.fromkeys(missed)])


def says(bar: bars.Bar, study: Study) -> str:
    """The statement with the headings of the table in place of the names of the metrics."""
    names = {key: label for key, label in study.metrics.items() if key != label}
    return " ".join(names.get(word, word) for word in bar.says.split(" "))


def seed_by_seed(bar: bars.Bar, study: Study) -> str:
    """All that a statement was measured on; empty if it is not about one metric of one variant."""
    variant = bar.says.partition(": ")[0]
    keys = [key for key in study.metrics if key in bar.says.split(" ")]
    if variant not in study.variants() or not keys:
        return ""
    values = ", ".join(number(value) for value in study.values(variant, keys[0]))
    return f"*Missed; {study.metrics[keys[0]]} of `{variant}`, seed by seed: {values}.*"


def pictures(folder: Path, home: Path) -> str:
    """What TensorBoard shows of two studies, as ``screenshots.py`` left it."""
    record = folder / SCREENSHOTS
    if not record.is_file():
        return "*No pictures yet; `python examples/harness/screenshots.py --out examples/results` takes them.*"
    about = json.loads(record.read_text(encoding="utf-8"))
    parts, command = [], ""
    for shot in about["shots"]:
        if shot["command"] != command:
            command = shot["command"]
            parts.append(f"```bash\n{command}\ntensorboard --logdir runs/{shot['study']}\n```")
        parts += [PICTURES[shot["file"]], f"![{shot['file']}]({os.path.relpath(folder / shot['file'], home)})"]
    parts.append(
        f"*Taken by `python examples/harness/screenshots.py --out examples/results`, {about['date']}, "
        f"{about['machine']}, {about['versions']}.*"
    )
    return "\n\n".join(parts)


def write(folder: Path, target: Path) -> str:
    """The whole page as text."""
    home = target.parent
    opening = f"""# Gallery

Every failure here really happens, on real data, and every cure really cures. Each script trains twice, without and with
the mitigation (`--compare`: every variant), prints one table, draws one plot, and leaves one TensorBoard run a variant
under one folder:

```bash
make demo                                      # the three main studies, a few minutes
python examples/cnn20.py --compare --seeds 5   # every variant of one study
make cases                                     # everything below, under an hour
tensorboard --logdir runs                      # what to look at: below
```

All scripts share their options (`--seed`, `--seeds`, `--compare`, `--quick`, `--logdir`; those that train also
`--max_epochs`, `--fast_dev_run`, `--accelerator`, `--diagnose`); `--help` tells the others. The data need no network:
scikit-learn's digits and Python's own documentation. `--data-dir` takes MNIST or CIFAR-10 from a folder (the plain
files), `--text` any UTF-8 text. The figures are for comparing variants, not for comparing with the literature: the
images are 8x8, and the text is a third of a megabyte.

Looking for a script to copy? `examples/quickstart/` holds five of at most 90 lines: a Trainer (`trainer.py`), a plain
loop (`plain_loop.py`), Fabric (`fabric_loop.py`), LightningCLI with YAML (`cli.py`), and two optimizers over one net
(`two_optimizers.py`).

This page is written by `make gallery` from `{os.path.relpath(folder, EXAMPLES.parent)}`.

**How to read the tables.** A row is a variant. The study's own metrics come first, mean ± standard deviation over the
seeds; "(3 of 5)" means that only so many runs got that far. The rest are medians: *first* and *last layer* are gradient
norms at the first step, input first; *decades a layer* is the slope between them on a log scale (0 is even, positive
shrinks towards the input); *largest norm* is before clipping; *clip rate* is the share of steps that were clipped.
*Diverged* counts runs that failed: a loss that is not finite, or a result no better than guessing. In the plots the
left side is over depth, the right side over time. *Has to show* is the bar of a study; one that was missed stays."""
    parts = [opening, "## Side by side in TensorBoard", pictures(folder, home)]
    return "\n\n".join([*parts, *(section(page, folder, home) for page in PAGES)]) + "\n"


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=EXAMPLES / "results", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=EXAMPLES / "README.md", metavar="FILE")
    args = parser.parse_args(argv)
    if not any(args.results.glob("*.json")):
        raise UsageError(f"{args.results} holds no recorded results: run `make cases` first")
    if not args.out.parent.is_dir():
        raise UsageError(f"--out {args.out}: there is no folder {args.out.parent}")
    for path in args.results.glob("*.json"):
        if path.name != SCREENSHOTS:
            load(path)[0].plot(path.with_suffix(".png"))
    args.out.write_text(write(args.results, args.out), encoding="utf-8")
    print(f"wrote {args.out}")
    return args.out


if __name__ == "__main__":
    studies.run(main)
