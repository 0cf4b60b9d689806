"""Gradients that vanish in time: a sigmoid RNN forgets, gates remember.

The adding problem: of 30 numbers two are marked, and their sum is wanted at the end. Who always answers the mean has an
error of 1/6; below 0.01 it is solved. How far back a network can learn shows in the gradient of its last state with
respect to the input at every time step, before and after training. Trains twice, a sigmoid RNN and an LSTM:

    python examples/vanishing_rnn.py
    python examples/vanishing_rnn.py --cell gru
    python examples/vanishing_rnn.py --compare --seeds 5     # sigmoid, tanh, LSTM, GRU, LSTM with open forget gates
    python examples/vanishing_rnn.py --stacked --seeds 5     # layer by layer: five stacked layers, before training
    python examples/vanishing_rnn.py --powers --seeds 5      # why: powers of one matrix, 0.9, 1, 1.1 and 1.5 to the 100
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from harness import data, studies
from harness.report import Run, Study
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_gradguard import AdaptiveGradientClipping, GradientNormMonitor, NormClip
from lightning_gradguard.probes.recurrence import TemporalProbe

CELLS = ["sigmoid", "tanh", "lstm", "gru", "lstm, open gates"]


class AddingProblem(IterableDataset):
    """Fresh batches for ever: numbers and marks ``[64, length, 2]``, and the sum of the two marked numbers."""

    def __init__(self, length: int, batches: int) -> None:
        self.length, self.batches = length, batches

    def __iter__(self) -> Iterator[list[Tensor]]:
        for _ in range(self.batches):
            numbers = torch.rand(64, self.length)
            order = torch.rand(64, self.length).argsort(dim=1)
            marks = (order < 2).float()  # where the two smallest of a random order lie: two different places
            yield [torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=1, keepdim=True)]


class SigmoidRNN(nn.Module):
    """What ``nn.RNN`` does not offer: h_t = sigmoid(W x_t + U h_{t-1} + b)."""

    def __init__(self, inputs: int, hidden: int, num_layers: int = 1) -> None:
        super().__init__()
        sizes = [inputs] + [hidden] * (num_layers - 1)
        self.inputs = nn.ModuleList(nn.Linear(size, hidden) for size in sizes)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in sizes)
        for weight in self.parameters():  # as nn.RNN has it
            nn.init.uniform_(weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        for from_input, from_hidden in zip(self.inputs, self.hidden, strict=True):
            driven, h, states = from_input(x), x.new_zeros(len(x), from_hidden.out_features), []
            for t in range(x.shape[1]):
                h = torch.sigmoid(driven[:, t] + from_hidden(h))
                states.append(h)
            x = torch.stack(states, dim=1)
        return x, None


def make_cell(name: str, inputs: int, hidden: int, length: int, num_layers: int = 1) -> nn.Module:
    if name == "sigmoid":
        return SigmoidRNN(inputs, hidden, num_layers)
    kind = {"tanh": nn.RNN, "gru": nn.GRU}.get(name, nn.LSTM)
    made = kind(inputs, hidden, num_layers, batch_first=True)
    if (
        name == "lstm, open gates"
    ):  # chrono initialization: remember for up to ``length`` steps (Tallec & Ollivier 2018)
        with torch.no_grad():
            forget = torch.log(torch.empty(hidden).uniform_(1, length - 1))
            made.bias_ih_l0[:hidden], made.bias_ih_l0[hidden : 2 * hidden] = -forget, forget
            made.bias_hh_l0[: 2 * hidden] = 0
    return made


class Memory(L.LightningModule):
    """Reads a sequence, and answers from the last hidden state.

    Args:
        cell: one of ``CELLS``.
        length: of the sequences.
        hidden: number of units.
        lr: learning rate of Adam.
    """

    def __init__(self, *, cell: str = "lstm", length: int = 30, hidden: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rnn = make_cell(cell, 2, hidden, length)
        self.head = nn.Linear(hidden, 1)
        self.error = torchmetrics.MeanSquaredError()

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.head(states[:, -1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train/mse", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.error.update(self(x), y)
        self.log("test/mse", self.error)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def reach_in_time(rnn: nn.Module, x: Tensor) -> dict[str, float]:
    """Norm of the gradient of the last state with respect to the input at each time step, in float64.

    ``TemporalProbe`` of the library measures it for torch's own modules; a Python loop over a cell it cannot see.
    """
    if isinstance(rnn, nn.RNNBase):
        probe = TemporalProbe(rnn, max_sequences=len(x))
        probe.start(step=0)
        rnn(x)
        probe.stop()
        norms = next(iter((probe.take() or {}).values()))
    else:
        x = x.double().requires_grad_()
        twin = SigmoidRNN(x.shape[2], rnn.hidden[0].out_features).double()
        twin.load_state_dict(rnn.state_dict())
        last = twin(x)[0][:, -1]
        direction = torch.randn(last.shape[1], generator=torch.Generator().manual_seed(0)).double()
        (gradient,) = torch.autograd.grad((last * direction).sum(), x)
        norms = torch.linalg.vector_norm(gradient.transpose(0, 1).flatten(1), dim=1).tolist()
    return {f"t={index}": norm for index, norm in enumerate(norms, start=1)}


def per_step(reach: dict[str, float]) -> float:
    """By what factor the gradient shrinks on its way one step back, from the last input to the first."""
    norms = list(reach.values())
    return (norms[0] / norms[-1]) ** (1 / (len(norms) - 1))


def train(args: studies.Options, cells: list[str]) -> Study:
    study = Study(
        name="vanishing_rnn",
        question=f"Two numbers of {args.length}, added at the end: who remembers?",
        metrics={"test/mse": "error", "solved": "solved", "before": "per step back, before", "after": "after training"},
        source="adding problem: fresh random batches; always the mean: 0.167; solved: below 0.01",
        command=args.command,
        depth_of="time step",
    )
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        test = [torch.cat(parts) for parts in zip(*AddingProblem(args.length, 16), strict=True)]
    with studies.Bench(study, args, len(cells) * args.seeds) as bench:
        for cell in cells:
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                module = Memory(cell=cell, length=args.length, lr=args.lr)
                before = reach_in_time(module.rnn, test[0][:64])

                def finish(run: Run, module: Memory = module, before: dict[str, float] = before) -> None:
                    run.depth, run.depth_after = before, reach_in_time(module.rnn, test[0][:64])
                    run.metrics |= {"solved": float(run.metrics["test/mse"] < 0.01)}
                    run.metrics |= {"before": per_step(run.depth), "after": per_step(run.depth_after)}

                training = bench.begin(cell, seed)
                trainer = L.Trainer(
                    callbacks=[
                        AdaptiveGradientClipping(NormClip(1.0)),
                        GradientNormMonitor(rules=training.rules, sinks=[training.memory]),
                        *training.callbacks,
                    ],
                    **training.quiet,
                )
                training.fit(
                    trainer,
                    module,
                    DataLoader(AddingProblem(args.length, 100), batch_size=None),
                    data.batches(*test, size=1024),
                    hparams={"cell": cell, "length": args.length, "lr": args.lr},
                    finish=finish,
                )
    return study.finish(args)


def stacked(args: studies.Options) -> Study:
    """Five stacked layers before training: the gradient of each layer's weights."""
    study = Study(
        name="vanishing_rnn_layers",
        question=f"Five stacked recurrent layers, {args.length} steps, before training: which layers get a gradient?",
        metrics={"ratio": "first / last layer"},
        source="adding problem, one batch, float64",
        command=args.command,
    )
    for cell in CELLS[:4]:
        for seed in range(args.seed, args.seed + args.seeds):
            torch.manual_seed(seed)
            rnn = make_cell(cell, 2, 64, args.length, num_layers=5).double()
            head = nn.Linear(64, 1).double()
            x, y = next(iter(AddingProblem(args.length, 1)))
            F.mse_loss(head(rnn(x.double())[0][:, -1]), y.double()).backward()
            depth: dict[str, float] = {}
            for name, weight in rnn.named_parameters():
                layer = name.split(".")[1] if "." in name else name.rpartition("_l")[2]
                depth[layer] = math.hypot(depth.get(layer, 0.0), float(weight.grad.norm()))
            depth = {layer: depth[layer] for layer in sorted(depth)}
            study.runs.append(Run(cell, seed, {"ratio": depth["0"] / depth["4"]}, depth=depth))
    return study.finish(args)


def powers(args: studies.Options) -> Study:
    """A linear RNN: its gradient after k steps is the k-th power of one matrix."""
    study = Study(
        name="vanishing_rnn_powers",
        question="A gradient that goes back 100 steps through one 64 x 64 matrix W: what is left of it?",
        metrics={"left": "norm after 100 steps", "step": "factor of the last steps"},
        source="W with normal entries, scaled to a spectral radius, or orthogonal; float64",
        command=args.command,
        depth_of="step back",
    )
    for name, radius in (("radius 0.9", 0.9), ("orthogonal", None), ("radius 1.1", 1.1), ("radius 1.5", 1.5)):
        for seed in range(args.seed, args.seed + args.seeds):
            torch.manual_seed(seed)
            w = torch.randn(64, 64, dtype=torch.float64)
            w = torch.linalg.qr(w).Q if radius is None else w * radius / torch.linalg.eigvals(w).abs().max()
            g = F.normalize(torch.randn(64, dtype=torch.float64), dim=0)
            depth = {}
            for k in range(1, 101):
                g = w.T @ g
                depth[f"{k}"] = float(g.norm())
            step = (depth["100"] / depth["80"]) ** (1 / 20)
            study.runs.append(Run(name, seed, {"left": depth["100"], "step": step}, depth=depth))
    return study.finish(args)


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=15, quick="8 epochs (of 100 batches) instead of 15")
    parser.add_argument("--cell", choices=CELLS[1:], help="beside the sigmoid RNN (default: lstm)")
    parser.add_argument("--length", type=int, default=30, help="how far back the first number lies (default: 30)")
    parser.add_argument("--lr", type=float, default=3e-3, help="of Adam (default: 0.003)")
    parser.add_argument("--stacked", action="store_true", help="layer by layer instead of step by step; no training")
    parser.add_argument("--powers", action="store_true", help="powers of one matrix; no training")
    args = studies.parse(parser, argv, quick_epochs=8)
    if bool(args.stacked) + bool(args.powers) + bool(args.compare) + bool(args.cell) > 1:
        raise data.UsageError("--cell, --compare, --stacked and --powers are different questions: choose one")
    if args.length < 3:
        raise data.UsageError(f"--length must be at least 3, got {args.length}")
    if args.stacked or args.powers:
        return stacked(args) if args.stacked else powers(args)
    return train(args, CELLS if args.compare else ["sigmoid", args.cell or "lstm"])


if __name__ == "__main__":
    studies.run(main)
