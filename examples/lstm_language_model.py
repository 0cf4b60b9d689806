"""An LSTM on real text at a high learning rate: without clipping it explodes, with clipping it learns.

Learning rate (20, plain SGD) and initialization are those of PyTorch's own word_language_model example: not rigged.
Trains twice, without and with the mitigation:

    python examples/lstm_language_model.py
    python examples/lstm_language_model.py --mitigate norm --max-norm 0.25 --seeds 5
    python examples/lstm_language_model.py --mitigate all --text tinyshakespeare.txt
    python examples/lstm_language_model.py --mitigate others      # the policies that ``all`` leaves out
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from harness import data, studies
from harness.report import Study
from torch import Tensor, nn
from torchmetrics.text import Perplexity

from lightning_gradguard import (
    AGC,
    AdaGC,
    AdaptiveGradientClipping,
    AutoClip,
    ClipPolicy,
    GradientNormMonitor,
    MaxClip,
    NormClip,
    QuantileClip,
    ValueClip,
    ZClip,
)


class LanguageModel(L.LightningModule):
    """Predicts the next character; the hidden state goes on from batch to batch (truncated backpropagation).

    Args:
        num_symbols: size of the alphabet.
        cell: ``"lstm"``, ``"gru"`` or ``"rnn"`` (tanh).
        lr: learning rate of plain SGD.
        embedding: size of a character's vector.
        hidden: number of hidden units.
    """

    def __init__(
        self, num_symbols: int, *, cell: str = "lstm", lr: float = 20.0, embedding: int = 64, hidden: int = 128
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(num_symbols, embedding)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell](embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_symbols)
        for weight in (self.embedding.weight, self.head.weight):  # as word_language_model has it
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        self.bits = torchmetrics.MeanMetric()
        self.perplexity = Perplexity()
        self._state: tuple[Tensor, ...] | Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(self.embedding(x), self._state)
        # gradients end here, 50 characters back; the memory itself goes on
        self._state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return self.head(out)

    def on_train_epoch_start(self) -> None:
        self._state = None

    def on_validation_epoch_start(self) -> None:
        self._state = None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/bits_per_character", loss / math.log(2))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.bits.update(F.cross_entropy(logits.flatten(0, 1), y.flatten()) / math.log(2))
        self.perplexity.update(logits, y)
        self.log("val/bits_per_character", self.bits)
        self.log("val/perplexity", self.perplexity)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x).flatten(0, 1), y.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def sequences(symbols: Tensor, batch: int, length: int) -> torch.utils.data.DataLoader:
    """The text as ``batch`` parallel streams, cut into pieces of ``length``; the target is the next character."""
    steps = (len(symbols) - 1) // (batch * length)
    if steps < 1:
        raise data.UsageError(f"the text is too short: {len(symbols)} characters, {batch * length + 1} are needed")

    def pieces(part: Tensor) -> Tensor:  # [steps * batch, length]: rows k*batch … belong to batch k
        return part[: steps * batch * length].view(batch, steps, length).transpose(0, 1).reshape(-1, length)

    return data.batches(pieces(symbols[:-1]), pieces(symbols[1:]), size=batch)


# what each mitigation needs, and the knob that turns it
POLICIES = {
    "norm": lambda args: NormClip(0.25 if args.max_norm is None else args.max_norm),
    "value": lambda args: ValueClip(0.01 if args.max_value is None else args.max_value),
    "zclip": lambda args: ZClip(**given(z=args.z, max_norm=args.max_norm)),
    "autoclip": lambda args: AutoClip(**given(percentile=args.percentile, max_norm=args.max_norm)),
    "quantile": lambda args: QuantileClip(**given(max_norm=args.max_norm)),
    "agc": lambda args: AGC(**given(ratio=args.ratio)),
    "adagc": lambda args: AdaGC(**given(ratio=args.ratio)),
    "maxclip": lambda args: MaxClip(**given(decay=args.decay)),
}
SETS = {
    "all": ("norm", "value", "zclip", "autoclip"),
    "others": ("quantile", "agc", "adagc", "maxclip"),
}
KNOBS = {
    "max_norm": ("norm", "zclip", "autoclip", "quantile"),
    "max_value": ("value",),
    "z": ("zclip",),
    "percentile": ("autoclip",),
    "ratio": ("agc", "adagc"),
    "decay": ("maxclip",),
}


def given(**options: float | None) -> dict[str, float]:
    """The options that the user set; the policy's own defaults hold for the rest."""
    return {name: value for name, value in options.items() if value is not None}


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=2, quick="one epoch instead of two")
    parser.add_argument(
        "--mitigate",
        choices=["none", *POLICIES, *SETS],
        help=f"one policy; all: {', '.join(SETS['all'])}; others: {', '.join(SETS['others'])} (default: zclip)",
    )
    parser.add_argument("--max-norm", type=float, help="ceiling of the gradient norm (norm: 0.25; adaptive: none)")
    parser.add_argument("--max-value", type=float, help="ceiling of each element (value: 0.01)")
    parser.add_argument("--z", type=float, help="zclip: how many deviations are a spike")
    parser.add_argument("--percentile", type=float, help="autoclip: which percentile of the norms seen so far")
    parser.add_argument("--ratio", type=float, help="agc: of a unit's gradient to its weights; adagc: to its past")
    parser.add_argument("--decay", type=float, help="maxclip: of the running maximum")
    parser.add_argument("--cell", choices=["lstm", "gru", "rnn"], default="lstm")
    parser.add_argument("--lr", type=float, default=20.0, help="of plain SGD (default: 20)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bptt", type=int, default=50, help="characters through which gradients flow")
    parser.add_argument("--text", metavar="FILE", help="any UTF-8 text instead of Python's documentation")
    args = studies.parse(parser, argv, quick_epochs=1)
    if args.compare and args.mitigate is not None:
        raise data.UsageError("--compare runs every policy: leave out --mitigate")
    for option in ("batch", "bptt"):
        if getattr(args, option) < 1:
            raise data.UsageError(f"--{option} must be at least 1, got {getattr(args, option)}")
    args.mitigate = args.mitigate or "zclip"
    chosen = POLICIES if args.compare else SETS.get(args.mitigate, [args.mitigate])
    for knob, needs in KNOBS.items():
        if getattr(args, knob) is not None and not set(needs) & set(chosen):
            raise data.UsageError(f"--{knob.replace('_', '-')} does nothing with --mitigate {args.mitigate}")
    variants: dict[str, ClipPolicy | None] = {"none": None}
    try:
        variants |= {name: POLICIES[name](args) for name in chosen if name != "none"}
    except ValueError as error:  # the policy says what is wrong with its knob
        raise data.UsageError(str(error)) from error

    text = data.text(args.text)
    loaders = sequences(text.train, args.batch, args.bptt), sequences(text.val, args.batch, args.bptt)
    study = Study(
        name="lstm_policies" if args.mitigate == "others" and not args.compare else "lstm_language_model",
        question=f"A character {args.cell.upper()} on real text, SGD at learning rate {args.lr:g}: "
        + ("does it learn with other policies?" if args.mitigate == "others" else "does it learn?"),
        metrics={"val/bits_per_character": "bits per character", "val/perplexity": "perplexity"},
        source=f"{text.source}; a model without memory needs {text.unigram_bits:.2f} bits",
        command=args.command,
    )
    with studies.Bench(study, args, len(variants) * args.seeds) as bench:
        for name, policy in variants.items():
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                model = LanguageModel(len(text.symbols), cell=args.cell, lr=args.lr)
                training = bench.begin(name, seed)
                trainer = L.Trainer(
                    callbacks=[
                        *([AdaptiveGradientClipping(policy)] if policy else []),
                        GradientNormMonitor(rules=training.rules, sinks=[training.memory]),
                        *training.callbacks,
                    ],
                    **training.quiet,
                )
                training.fit(
                    trainer,
                    model,
                    *loaders,
                    diverged=lambda metrics: metrics["val/bits_per_character"] > text.unigram_bits,
                    hparams={"lr": args.lr, "cell": args.cell},
                )
    return study.finish(args)


if __name__ == "__main__":
    studies.run(main)
