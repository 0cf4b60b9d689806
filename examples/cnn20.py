"""A 20-layer CNN that does not learn at all, and what cures it: initialization, normalization, residual connections.

The layout is He et al.'s for CIFAR-10 (6n + 2 layers), with their optimizer: SGD 0.1, momentum 0.9, weight decay 1e-4.
Trains twice, without (PyTorch's default initialization, plain layers) and with the cure:

    python examples/cnn20.py
    python examples/cnn20.py --norm none --init he --residual     # which part of the cure does it?
    python examples/cnn20.py --compare --seeds 5                  # all eight combinations, and sigmoid
    python examples/cnn20.py --sweep                              # 6, 8, 10 and 20 layers: where does it stop learning?
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from harness import data, studies
from harness.report import Study
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_gradguard import AdaptiveGradientClipping, AutoClip, GradientNormMonitor, NormClip, ZClip

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}


class Block(nn.Module):
    """Two 3x3 convolutions, with a way around them if ``residual``."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, activation: str, norm: bool, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        self.residual, self.stride, self.more = residual, stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        if self.residual:  # He et al.'s option A: skip pixels, and zeros for the channels that are new
            y = y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return self.activation(y)


class CNN(L.LightningModule):
    """Classifies images with 6n + 2 layers: a convolution, three stages of n blocks, and a linear layer.

    Args:
        channels: of the images.
        depth: number of layers with weights, 6n + 2 (or any even number: the blocks are shared out).
        init: ``"torch"`` (the default of the layers), ``"xavier"``, ``"he"`` or ``"small"``, N(0, 0.01²).
        norm: batch normalization after every convolution.
        residual: identity connections around every block.
        activation: a key of ``ACTIVATIONS``.
        lr: largest learning rate.
        schedule: ``"onecycle"`` or ``"constant"``.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int = 20,
        init: str = "torch",
        norm: bool = False,
        residual: bool = False,
        activation: str = "relu",
        lr: float = 0.1,
        schedule: str = "onecycle",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        blocks = [(depth - 2) // 6 + (stage < (depth - 2) // 2 % 3) for stage in range(3)]
        options = {"activation": activation, "norm": norm, "residual": residual}
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        layers, width = [], 8
        for stage, (outputs, count) in enumerate(zip((8, 16, 32), blocks, strict=True)):
            for index in range(count):
                layers.append(Block(width, outputs, 2 if stage and not index else 1, **options))
                width = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)
        self.apply(self._initialize)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def _initialize(self, layer: nn.Module) -> None:
        if self.hparams.init == "torch" or not isinstance(layer, nn.Conv2d | nn.Linear):
            return
        if self.hparams.init == "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif self.hparams.init == "xavier":
            nn.init.xavier_normal_(layer.weight)
        else:
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.activation(self.stem_norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.accuracy.update(self(x), y)
        self.log("test/accuracy", self.accuracy)

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9, weight_decay=1e-4)
        if self.hparams.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


WITHOUT = {"init": "torch", "norm": False, "residual": False}
CLIPS = {"none": None, "norm": NormClip(1.0), "zclip": ZClip(), "autoclip": AutoClip()}


def every_variant() -> dict[str, dict[str, object]]:
    """The 2 x 2 x 2 of initialization, normalization and residual connections, and two of its neighbours."""
    made = {}
    for residual in (False, True):
        for norm in (False, True):
            for init in ("torch", "he"):
                parts = [name for name, on in (("He", init == "he"), ("BatchNorm", norm), ("residual", residual)) if on]
                made[" + ".join(parts) or "plain"] = {"init": init, "norm": norm, "residual": residual}
    made["plain, Xavier"] = WITHOUT | {"init": "xavier"}
    made["plain, N(0, 0.01²)"] = WITHOUT | {"init": "small", "lr": 0.05}
    made["plain, sigmoid"] = WITHOUT | {"activation": "sigmoid"}
    made["sigmoid, BatchNorm + Xavier"] = {"init": "xavier", "norm": True, "activation": "sigmoid"}
    return made


def depth_sweep() -> dict[str, dict[str, object]]:
    """From which depth on the plain network does not learn at all, and the same depths cured."""
    made = {}
    for depth in (6, 8, 10, 20):
        made[f"{depth} layers, plain"] = WITHOUT | {"depth": depth, "schedule": "constant"}
        made[f"{depth} layers, BatchNorm + He"] = {"init": "he", "norm": True, "depth": depth, "schedule": "constant"}
    return made


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=20, quick="6 epochs instead of 20", data_dir=True)
    parser.add_argument("--init", choices=["torch", "xavier", "he", "small"], help="default: he")
    parser.add_argument("--norm", choices=["none", "batch"], help="default: batch")
    parser.add_argument("--residual", action="store_true")
    parser.add_argument("--activation", choices=list(ACTIVATIONS), default="relu")
    parser.add_argument("--clip", choices=list(CLIPS), default="none", help="no cure here, and seen to be none")
    parser.add_argument("--depth", type=int, help="layers with weights, even (default: 20)")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--sweep", action="store_true", help="6, 8, 10 and 20 layers, 30 epochs, constant rate")
    args = studies.parse(parser, argv, quick_epochs=6)
    chose = args.init or args.norm or args.residual
    if (args.compare or args.sweep) and (chose or (args.compare and args.sweep)):
        raise data.UsageError("--compare and --sweep bring their own variants: leave out the other switches")
    if args.sweep and args.depth is not None:
        raise data.UsageError("--sweep brings its own depths: leave out --depth")
    args.depth = 20 if args.depth is None else args.depth
    if args.depth < 4 or args.depth % 2:
        raise data.UsageError(
            f"--depth must be even and at least 4 (two layers a block, and two more), got {args.depth}"
        )
    if args.sweep and args.max_epochs == 20:
        args.max_epochs = 30
    cure = {"init": args.init or "he", "norm": (args.norm or "batch") == "batch", "residual": args.residual}
    variants = {"plain": WITHOUT, "cured" if not chose else "chosen": cure}
    if args.compare:
        variants = every_variant()
    elif args.sweep:
        variants = depth_sweep()

    images = data.images(args.data_dir).standardized()
    study = Study(
        name="cnn20_depth" if args.sweep else "cnn20",
        question="From how many layers on does a plain CNN not learn?" if args.sweep
        else f"A CNN of {args.depth} layers, {args.activation}, SGD {args.lr:g}: does it learn?",
        metrics={"test/accuracy": "test accuracy", "train/loss_epoch": "training loss"},
        source=images.source,
        command=args.command,
        depth_of="convolution",
    )  # fmt: skip
    policy = CLIPS[args.clip]
    with studies.Bench(study, args, len(variants) * args.seeds) as bench:
        for name, options in variants.items():
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                settings = {"depth": args.depth, "activation": args.activation, "lr": args.lr} | options
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
                    CNN(images.channels, **settings),
                    data.batches(images.train_x, images.train_y, size=64, shuffle=True, drop_last=True),
                    data.batches(images.test_x, images.test_y, size=450),
                    depth=lambda layer: layer == "stem" or "conv" in layer,
                    diverged=lambda metrics: metrics["test/accuracy"] < 0.2,
                    hparams=settings,
                )
    return study.finish(args)


if __name__ == "__main__":
    studies.run(main)
