"""The three main studies in a few minutes: a CNN that does not learn, a language model that explodes, a GAN that ends
in NaN, each trained without and with its cure. One table in the end, and the curves in TensorBoard.

    python examples/demo.py
    python examples/demo.py --full          # at full length, with the convolutional GAN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cnn20
import gan
import lstm_language_model
from harness import studies
from harness.data import UsageError
from harness.report import Study, console, number
from rich import box
from rich.table import Table

# study, its options, whether it runs in quick mode, the variant that is cured, and what it is cured by
STUDIES = [
    (lstm_language_model, ["--mitigate", "autoclip"], False, "autoclip", "clipping at the 10th percentile"),
    (cnn20, [], True, "cured", "BatchNorm and He initialization"),
    (gan, [], True, "norm", "clipping at norm 1"),
]


def main(argv: Sequence[str] | None = None) -> list[Study]:
    parser = studies.parser(__doc__, max_epochs=None, quick="the language model for one epoch, too")
    parser.add_argument("--full", action="store_true", help="full length instead of quick mode")
    args = studies.parse(parser, argv)
    if args.full and args.quick:
        raise UsageError("--full and --quick contradict each other: choose one")
    if args.compare:
        raise UsageError("the demo shows without and with; --compare is an option of each study")
    common = ["--seed", str(args.seed), "--seeds", str(args.seeds), "--logdir", args.logdir]
    common += ["--record", args.record] if args.record else []
    table = Table(box=box.SIMPLE_HEAD, title="Without and with", title_justify="left")
    for heading in ("study", "measure", "without", "with", "cured by", "clip rate", "largest norm", "seconds"):
        table.add_column(heading, justify="left" if heading in ("study", "cured by") else "right", overflow="fold")
    made = []
    for script, options, short, cured, by in STUDIES:
        quick = args.quick or (short and not args.full)
        study = script.main([*common, *options, *["--quick"] * quick])
        without = study.variants()[0]
        key, label = next(iter(study.metrics.items()))
        rate = study.of(cured)[0].clip_rate
        table.add_row(
            study.name, label, *(outcome(study, variant, key) for variant in (without, cured)), by,
            "–" if rate is None else f"{rate:.0%}",
            " / ".join(f"{study.of(variant)[0].largest_norm or 0:.2g}" for variant in (without, cured)),
            f"{sum(run.seconds or 0 for run in study.runs):.0f}",
        )  # fmt: skip
        made.append(study)
    console().print(table)
    print(f"look at it: tensorboard --logdir {Path(args.logdir)}")
    return made


def outcome(study: Study, variant: str, key: str) -> str:
    """The mean, or the step at which it ended."""
    stopped = [run.stopped_at for run in study.of(variant) if run.stopped_at is not None]
    return f"NaN at step {min(stopped)}" if stopped else number(study.mean(variant, key))


if __name__ == "__main__":
    studies.run(main)
