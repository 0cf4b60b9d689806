"""Writes the gallery, ``examples/README.md``, from the recorded results: make gallery.

Words are here, figures are not: every table and plot comes from a record, with its command, date and machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bars
import studies
from data import UsageError
from report import Study, load

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """What is said of a study, beside what was recorded of it.

    Attributes:
        title: of its section.
        records: names of its records, in the order of the page.
        why: what happens, and what cures it.
        look: what to look at in TensorBoard.
        not_held: what one often hears, and what was seen instead.
    """

    title: str
    records: tuple[str, ...]
    why: str
    look: str = ""
    not_held: tuple[str, ...] = field(default=())


PAGES = [
    Page(
        "A language model that explodes",
        ("lstm_language_model",),
        "Learning rate 20 with plain SGD and the initialization are those of PyTorch's own word_language_model "
        "example. Without clipping the loss spikes within the first steps and the state of the LSTM saturates. "
        "With clipping it learns.",
        "`grad_norm_total/pre_clip` beside `post_clip` and `threshold`, and `gradguard/clipped_fraction`: a fixed "
        "norm clips rarely, AutoClip at the 10th percentile nearly always, and both learn.",
        (
            "It never ends in NaN: saturation keeps an LSTM finite. The failure is spikes and divergence.",
            "How badly it fails is a matter of the seed. Some runs recover; none gets near one with a fixed norm.",
            "ZClip gains less than a fixed norm here: the explosion begins while it still learns what is normal.",
            "A saturated LSTM is full of subnormal numbers: until they were flushed to zero, failing runs took "
            "ten times as long as good ones.",
        ),
    ),
    Page(
        "A CNN of 20 layers that does not learn",
        ("cnn20", "cnn20_depth"),
        "He et al.'s 6n + 2 layout and optimizer, with PyTorch's default initialization and no normalization: the "
        "loss stays at ln 10, for the gradient of the first convolution is many decades below that of the last.",
        "The *Gradient flow* tab, with `plain` and a cured run side by side: a slope from top to bottom against "
        "an even field.",
        (
            "He initialization alone is no cure at this learning rate; batch normalization alone is, and so are "
            "residual connections alone.",
            "The ratio of first to last layer does not tell: `plain, Xavier` and `plain, N(0, 0.01²)` have an "
            "even profile and do not learn either, because all of it is too small.",
        ),
    ),
    Page(
        "A GAN that ends in NaN",
        ("gan", "gan_dense"),
        "Two optimizers pull against each other, with manual optimization and one clipping policy each. At this "
        "rate the run is over after a handful of steps. Careful initialization does not save it, clipping does "
        "not save a careless initialization: it takes both. The guard alone does not make it learn, but it stops "
        "the run with finite weights.",
        "`grad_norm_total/pre_clip/opt0` (discriminator) and `/opt1` (generator): which one starts?",
        (
            "SGD at 0.4 is high. With Adam at 2e-4, the field's standard, nothing of this happens: `--optimizer adam`.",
            "A threshold that is learned from the history alone learns the explosion, which begins in the first "
            "steps: ZClip needs a ceiling here.",
        ),
    ),
    Page(
        "Gradients that vanish in time",
        ("vanishing_rnn", "vanishing_rnn_layers", "vanishing_rnn_powers"),
        "In the adding problem the first of two numbers may lie 30 steps back. A sigmoid RNN gets no gradient "
        "from there. The reason is in the powers of one matrix.",
        not_held=(
            "Gates do not prevent vanishing at the start: LSTM and GRU lose as much a step as a tanh RNN. "
            "Training opens them; a forget gate that is open from the start has it from the start.",
        ),
    ),
    Page(
        "Activations and initializations",
        ("activations", "activations_matched"),
        "The same fully connected network; only the activation and the initialization change.",
        not_held=(
            "ReLU with the framework's default initialization does not learn at depth 10 either, just like sigmoid.",
            "tanh with Xavier initialization does not vanish.",
            "SiLU and Leaky ReLU are no cure for depth without the matching initialization.",
        ),
    ),
    Page(
        "The scale of the weights",
        ("init_scale", "init_scale_scalar", "init_scale_sigmoid"),
        "What reaches the first layer is decided before training begins.",
        not_held=(
            "The simulation with one unit a layer that is often shown takes the derivative at the wrong index: "
            "its gradient at layer 0 is exactly 0, whatever the weights. Corrected, it never explodes at scale "
            "1.5.",
            "Ten sigmoid layers with N(0, 1) lose one order of magnitude, not many. It is the small "
            "initializations that vanish.",
        ),
    ),
    Page(
        "Clipping by value turns the gradient",
        ("clipping_direction",),
        "Cosine between the raw gradient and what each kind of clipping makes of it, on the same steps of one "
        "run; and what training with each kind comes to.",
        not_held=("The turn costs little here: clipping by value trains nearly as well, or as well.",),
    ),
    Page(
        "Residual connections against plain depth",
        ("residual_depth",),
        "Fully connected ReLU layers with PyTorch's default initialization.",
        not_held=("Residual connections alone explode at depth 50: they need a normalization, or a smaller scale.",),
    ),
    Page(
        "Rare bad batches",
        ("bad_batches",),
        "One batch in 50 was never divided by 255. Without clipping the first one ends the run. A fixed threshold "
        "that survives it clips most of the healthy steps too; ZClip clips the bad ones.",
        "`grad_norm_total/pre_clip` on a log axis: a comb with a tooth every 50 steps, and `threshold` below it.",
    ),
]


def section(page: Page, folder: Path, home: Path) -> str:
    """One study of the gallery; records that are missing are said to be missing."""
    parts = [f"## {page.title}", page.why]
    for name in page.records:
        path = folder / f"{name}.json"
        if not path.is_file():
            parts.append(f"*{name}: not recorded yet; `python examples/cases.py --only {name}` does it.*")
            continue
        study, about = load(path)
        plot = os.path.relpath(path.with_suffix(".png"), home)
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
    if page.not_held:
        parts.append("**What did not hold:**\n\n" + "\n".join(f"- {line}" for line in page.not_held))
    return "\n\n".join(part for part in parts if part)


def seeds_of(study: Study) -> str:
    count = len({run.seed for run in study.runs})
    return f"{count} seeds: metrics are mean ± standard deviation, the rest medians." if count > 1 else "One seed."


def verdict(study: Study) -> str:
    """What the study had to show, and whether it did."""
    found = bars.of(study)
    if not found:
        return ""
    lines = [f"| {bar.says} | {measured} | {'yes' if holds else '**no**'} |" for bar, measured, holds in found]
    return "\n".join(["| has to show | measured | holds |", "| --- | ---: | --- |", *lines])


def write(folder: Path, target: Path) -> str:
    """The whole page as text."""
    opening = f"""# Gallery

Every failure here really happens, on real data, and every cure really cures. Each script trains twice, without and with
the mitigation, prints one table, draws one plot, and leaves one TensorBoard run a variant under one folder:

```bash
python examples/demo.py                        # the three main studies in a minute: make demo
python examples/cnn20.py --compare --seeds 5   # every variant of one study
python examples/cases.py                       # everything below: make cases
tensorboard --logdir runs                      # what to look at: below
```

All scripts share their options (`--seed`, `--seeds`, `--compare`, `--quick`, `--max_epochs`, `--fast_dev_run`,
`--accelerator`, `--logdir`, `--diagnose`); `--help` tells the others. The data need no network: scikit-learn's digits
and Python's own documentation. `--data-dir` takes MNIST or CIFAR-10 from a folder (the plain files), `--text` any UTF-8
text. The figures are for comparing variants, not for comparing with the literature: the images are 8x8, and the text is
a third of a megabyte.
This page is written by `make gallery` from `{os.path.relpath(folder, HERE.parent)}`."""
    return "\n\n".join([opening, *(section(page, folder, target.parent) for page in PAGES)]) + "\n"


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=HERE / "README.md", metavar="FILE")
    args = parser.parse_args(argv)
    if not any(args.results.glob("*.json")):
        raise UsageError(f"{args.results} holds no recorded results: run `make cases` first")
    args.out.write_text(write(args.results, args.out), encoding="utf-8")
    print(f"wrote {args.out}")
    return args.out


if __name__ == "__main__":
    studies.run(main)
