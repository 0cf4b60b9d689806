"""A GAN whose two optimizers pull against each other until the loss is NaN, and what makes it learn.

Least-squares loss and plain SGD at 0.4 for both nets: a high rate (Adam at 2e-4 is the field's standard), at which
neither a careful initialization nor clipping is enough alone: both together are. Manual optimization, two optimizers,
one clipping policy each. Trains twice, with careful initialization, without and with clipping:

    python examples/gan.py
    python examples/gan.py --init normal --clip norm       # clipping does not rescue a careless initialization
    python examples/gan.py --guard                         # no clipping: the guard stops the run, weights stay finite
    python examples/gan.py --compare --seeds 5
    python examples/gan.py --net dense                     # fully connected, three times faster
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning as L
import torch
import torch.nn.functional as F
from harness import data, studies
from harness.report import Study, number
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_gradguard import (
    AdaptiveGradientClipping,
    AutoClip,
    ClipPolicy,
    GradientNormMonitor,
    NonFiniteGuard,
    NormClip,
    ZClip,
)

NOISE = 32


def generator(net: str, channels: int, side: int) -> nn.Module:
    """Noise ``[n, 32]`` to images ``[n, channels, side, side]`` in [-1, 1]."""
    if net == "dense":
        parts = [
            nn.Linear(NOISE, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
        ]
        return nn.Sequential(
            *parts, nn.Linear(128, channels * side**2), nn.Unflatten(1, (channels, side, side)), nn.Tanh()
        )
    small = side // 4
    return nn.Sequential(
        nn.Linear(NOISE, 32 * small**2), nn.Unflatten(1, (32, small, small)), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, channels, 4, stride=2, padding=1), nn.Tanh(),
    )  # fmt: skip


def discriminator(net: str, channels: int, side: int) -> nn.Module:
    """Images to one score each, ``[n, 1]``: near 1 for real ones."""
    if net == "dense":
        parts = [nn.Linear(channels * side**2, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2)]
        return nn.Sequential(nn.Flatten(), *parts, nn.Linear(128, 1))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 1),
    )  # fmt: skip


class GAN(L.LightningModule):
    """Learns to draw the training images.

    Least-squares loss without the paper's factor 1/2, as common code has it: at the same rate a step twice as long.

    Args:
        images: what to draw; its held-out part is what the drawings are compared with.
        quality: scores drawings, see :class:`Quality`.
        net: ``"conv"`` or ``"dense"``.
        init: ``"xavier"``, ``"normal"`` (N(0, 1), careless), or ``"torch"`` (the layers' default).
        optimizer: ``"sgd"`` or ``"adam"`` (with beta1 = 0.5, as is usual for GANs).
        lr: of both optimizers.
    """

    def __init__(
        self,
        images: data.Images,
        quality: Quality,
        *,
        net: str = "conv",
        init: str = "xavier",
        optimizer: str = "sgd",
        lr: float = 0.4,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters(ignore=["images", "quality"])
        self.generator = generator(net, images.channels, images.side)
        self.discriminator = discriminator(net, images.channels, images.side)
        self.apply(self._initialize)
        self.quality = quality

    def _initialize(self, layer: nn.Module) -> None:
        if self.hparams.init == "torch" or not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            return
        if self.hparams.init == "xavier":
            nn.init.xavier_normal_(layer.weight)
        else:
            nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        (real,) = batch
        for_discriminator, for_generator = self.optimizers()
        fake = self(torch.randn(len(real), NOISE, device=self.device))

        d_loss = ((self.discriminator(real) - 1) ** 2).mean() + (self.discriminator(fake.detach()) ** 2).mean()
        for_discriminator.zero_grad()
        self.manual_backward(d_loss)
        for_discriminator.step()

        g_loss = ((self.discriminator(fake) - 1) ** 2).mean()
        for_generator.zero_grad()
        self.manual_backward(g_loss)
        for_generator.step()

        self.log_dict({"train/discriminator_loss": d_loss, "train/generator_loss": g_loss})
        return {"loss": d_loss.detach() + g_loss.detach()}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        noise = torch.randn(1000, NOISE, generator=torch.Generator().manual_seed(0)).to(self.device)
        self.log_dict({f"quality/{name}": value for name, value in self.quality(self(noise), real).items()})

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        def make(net: nn.Module) -> torch.optim.Optimizer:
            if self.hparams.optimizer == "adam":
                return torch.optim.Adam(net.parameters(), self.hparams.lr, betas=(0.5, 0.999))
            return torch.optim.SGD(net.parameters(), self.hparams.lr)

        return [make(self.discriminator), make(self.generator)]


class Quality(nn.Module):
    """How good drawings are, judged in the 32 features of a classifier that was trained on the real images.

    Fréchet distance (0 is the same distribution), how many of the ten classes have at least 2 % of the drawings, and
    with the k = 5 nearest neighbours in pixel space: precision (share of drawings that lie among real ones), recall
    (share of real ones that lie among drawings) and coverage (share of real ones with a drawing near).
    """

    def __init__(self, images: data.Images, epochs: int = 15) -> None:
        super().__init__()
        with torch.random.fork_rng():  # one ruler for all runs, whatever their seed
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(images.channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(32 * (images.side // 4) ** 2, 32), nn.ReLU(),
            )  # fmt: skip
            self.features.num_features = 32  # read by torchmetrics
            self.head = nn.Linear(32, 10)
            optimizer = torch.optim.Adam(self.parameters(), 2e-3)
            for _ in range(epochs):
                for x, y in data.batches(images.train_x, images.train_y, size=64, shuffle=True):
                    optimizer.zero_grad()
                    F.cross_entropy(self.head(self.features(x)), y).backward()
                    optimizer.step()
        self.requires_grad_(False)
        self.accuracy = float((self.classes(images.test_x) == images.test_y).float().mean())

    def classes(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).argmax(dim=1)

    def frechet(self, fake: Tensor, real: Tensor) -> Tensor:
        distance = FrechetInceptionDistance(feature=self.features).to(real.device)
        distance.update(real, real=True)
        distance.update(fake, real=False)
        return distance.compute()

    def forward(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        share = torch.bincount(self.classes(fake), minlength=10) / len(fake)
        real = real[: len(fake)]
        flat_real, flat_fake = real.flatten(1), fake[: len(real)].flatten(1)  # as many of each: the radii compare
        between = torch.cdist(flat_real, flat_fake)
        real_radius = torch.cdist(flat_real, flat_real).kthvalue(6, dim=1).values  # the nearest is itself
        fake_radius = torch.cdist(flat_fake, flat_fake).kthvalue(6, dim=1).values
        return {
            "frechet": self.frechet(fake, real),
            "classes": (share >= 0.02).sum().float(),
            "precision": (between <= real_radius[:, None]).any(dim=0).float().mean(),
            "recall": (between <= fake_radius[None, :]).any(dim=1).float().mean(),
            "coverage": (between.min(dim=1).values <= real_radius).float().mean(),
        }

    def ruler(self, images: data.Images) -> dict[str, float]:
        """Distance of the held-out images from other real ones, a Gaussian fit of the pixels, half the classes."""
        flat = images.train_x.flatten(1).double()
        factor = torch.linalg.cholesky(flat.T.cov() + 1e-9 * torch.eye(flat.shape[1]).double())
        normal = torch.randn(1000, flat.shape[1], generator=torch.Generator().manual_seed(0)).double()
        fit = (flat.mean(dim=0) + normal @ factor.T).float().view(-1, *images.train_x.shape[1:])
        known = {"real": images.train_x, "Gaussian fit": fit, "five digits": images.train_x[images.train_y < 5]}
        return {name: float(self.frechet(x[:1000], images.test_x[:1000])) for name, x in known.items()}


CLIPS: dict[str, Callable[[float | None], ClipPolicy | None]] = {
    "none": lambda max_norm: None,
    "norm": lambda max_norm: NormClip(1.0 if max_norm is None else max_norm),
    "zclip": lambda max_norm: ZClip(max_norm=max_norm),
    "autoclip": lambda max_norm: AutoClip(max_norm=max_norm),
}


def every_variant() -> dict[str, dict[str, object]]:
    """The 2 x 2 of initialization and clipping, the adaptive policies with and without a ceiling, the guard alone."""
    made: dict[str, dict[str, object]] = {}
    for init, name in (("xavier", "Xavier"), ("normal", "N(0, 1)")):
        made[f"{name}, no clipping"] = {"init": init}
        made[f"{name}, norm 1"] = {"init": init, "clip": "norm"}
    made["Xavier, ZClip alone"] = {"init": "xavier", "clip": "zclip"}
    made["Xavier, ZClip, ceiling 1"] = {"init": "xavier", "clip": "zclip", "max_norm": 1.0}
    made["Xavier, AutoClip, ceiling 1"] = {"init": "xavier", "clip": "autoclip", "max_norm": 1.0}
    made["Xavier, guard alone"] = {"init": "xavier", "guard": True}
    return made


def main(argv: Sequence[str] | None = None) -> Study:
    parser = studies.parser(__doc__, max_epochs=71, quick="the fully connected nets for 25 epochs", data_dir=True)
    parser.add_argument("--net", choices=["conv", "dense"], help="default: conv")
    parser.add_argument("--init", choices=["xavier", "normal", "torch"], default="xavier")
    parser.add_argument("--clip", choices=list(CLIPS), help="default: norm")
    parser.add_argument("--max-norm", type=float, help="ceiling of the gradient norm (norm: 1; adaptive: none)")
    parser.add_argument(
        "--guard", action="store_true", help="skip steps that are not finite, and stop after 20 in a row"
    )
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--lr", type=float, help="default: 0.4 (dense: 0.2, Adam: 2e-4)")
    args = studies.parse(parser, argv, quick_epochs=25)
    net = args.net or ("dense" if args.quick else "conv")
    lr = args.lr or (2e-4 if args.optimizer == "adam" else 0.4 if net == "conv" else 0.2)
    clip = args.clip or ("none" if args.guard else "norm")
    if args.max_norm is not None and clip == "none":
        raise data.UsageError("--max-norm does nothing without --clip")
    if args.compare and (args.clip or args.guard or args.max_norm is not None):
        raise data.UsageError("--compare brings its own variants: leave out --clip, --max-norm and --guard")
    try:
        CLIPS[clip](args.max_norm)
    except ValueError as error:  # the policy says what is wrong with its ceiling
        raise data.UsageError(str(error)) from error
    variants: dict[str, dict[str, object]] = {"no clipping": {"init": args.init}}
    if clip != "none" or args.guard:
        name = " + ".join([clip] * (clip != "none") + ["guard"] * args.guard)
        variants[name] = {"init": args.init, "clip": clip, "max_norm": args.max_norm, "guard": args.guard}
    if args.compare:
        variants = every_variant()

    images = data.images(args.data_dir).centered()
    quality = Quality(images)
    ruler = quality.ruler(images)
    known = ", ".join(f"{name} {number(value)}" for name, value in ruler.items())
    keys = {
        "frechet": "Fréchet distance",
        "classes": "classes",
        "coverage": "coverage",
        "precision": "precision",
        "recall": "recall",
    }
    study = Study(
        name="gan" if net == "conv" else "gan_dense",
        question=f"A GAN ({net}), {args.optimizer.upper()} {lr:g} for both nets: does it learn?",
        metrics={f"quality/{key}": label for key, label in keys.items()},
        source=f"{images.source}; judge: a classifier, test accuracy {quality.accuracy:.1%}; Fréchet distance: {known}",
        command=args.command,
        reference=ruler,
        depth_of="generator layer",
    )
    with studies.Bench(study, args, len(variants) * args.seeds) as bench:
        for name, options in variants.items():
            for seed in bench.seeds:
                L.seed_everything(seed, verbose=False)
                policy = CLIPS[str(options.get("clip", "none"))](options.get("max_norm"))
                training = bench.begin(name, seed, stop_at_nan=not options.get("guard"))
                trainer = L.Trainer(
                    callbacks=[
                        *([NonFiniteGuard(patience=20)] if options.get("guard") else []),
                        *([AdaptiveGradientClipping(policy)] if policy else []),
                        GradientNormMonitor(rules=training.rules, sinks=[training.memory]),
                        *training.callbacks,
                    ],
                    check_val_every_n_epoch=args.max_epochs,
                    **training.quiet,
                )
                training.fit(
                    trainer,
                    GAN(images, quality, net=net, init=options["init"], optimizer=args.optimizer, lr=lr),
                    data.batches(images.train_x, size=64, shuffle=True, drop_last=True),
                    data.batches(images.test_x, size=len(images.test_x)),
                    depth=lambda layer: layer.startswith("generator"),
                    optimizer=1,
                    hparams={"lr": lr, "net": net} | options,
                )
    return study.finish(args)


if __name__ == "__main__":
    studies.run(main)
