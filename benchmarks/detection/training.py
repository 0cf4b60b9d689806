"""The loop that every run goes through: plain PyTorch, a pipeline per optimizer, instruments, rules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.guard.guard import NonFiniteGradientError
from lightning_gradguard.pipeline import GradientPipeline
from lightning_gradguard.probes.probes import Instruments
from lightning_gradguard.record import StepRecord
from lightning_gradguard.sinks import MemorySink

from .setup import Setup
from .tasks import batches, build, loss_of

RECORD_EVERY = 5
PROBE_EVERY = 10
PATIENCE = 6  # bad steps in a row that end a run


class Watcher(ABC):
    """Somebody else's rule set, shown the raw run; it gets the gradients before anybody clips them."""

    @abstractmethod
    def before_forward(self, net: nn.Module) -> None: ...

    @abstractmethod
    def after_backward(self, net: nn.Module, step: int, loss: float, x: Tensor, y: Tensor) -> None: ...


@dataclass
class Outcome:
    """What came of a run."""

    records: list[StepRecord] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    diverged: bool = False
    broken: bool = False  # some step was not finite

    @property
    def first_loss(self) -> float:
        return self.losses[0]

    @property
    def final_loss(self) -> float:
        last = sorted(self.losses[-8:])
        return math.inf if self.diverged else last[len(last) // 2]


def optimizers_of(setup: Setup, net: nn.Module) -> list[torch.optim.Optimizer]:
    if setup.arch == "gan":
        pairs = [(net.discriminator, setup.lr_second or setup.lr), (net.generator, setup.lr)]
        return [_optimizer(setup, list(part.parameters()), lr) for part, lr in pairs]  # type: ignore[union-attr]
    return [_optimizer(setup, list(net.parameters()), setup.lr)]


def _optimizer(setup: Setup, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if setup.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=setup.momentum, weight_decay=setup.weight_decay)
    if setup.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr)
    beta1 = 0.5 if setup.arch == "gan" else 0.9
    kind = torch.optim.AdamW if setup.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, betas=(beta1, 0.999), weight_decay=setup.weight_decay)


def factor(setup: Setup, step: int) -> float:
    """The schedule, as a factor on the learning rate."""
    at = step / setup.steps
    if setup.schedule == "warmup":
        return min(1.0, (step + 1) / (0.6 * setup.steps))
    if setup.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * at))
    if setup.schedule == "restarts":
        return 0.5 * (1 + math.cos(math.pi * (3 * at % 1.0))) + 0.001
    if setup.schedule == "step":
        return 0.1 ** int(3 * at)
    return 1.0


def train(setup: Setup, seed: int, watch: Watcher | None = None) -> Outcome:
    """Trains one set-up and returns its records; the same seed gives the same run."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    net = build(setup)
    if setup.dtype == "float16-pure":
        net.half()
    for name, parameter in net.named_parameters():
        if any(name.startswith(prefix) for prefix in setup.frozen):
            parameter.requires_grad_(False)
    optimizers = optimizers_of(setup, net)
    records = MemorySink()
    watching = Instruments(net, PROBE_EVERY)
    clip = AutoClip() if setup.adaptive else NormClip(setup.clip) if setup.clip else None
    pipelines = [
        GradientPipeline(
            net,
            o,
            clip=clip,
            on_nonfinite="skip",
            patience=PATIENCE,
            sinks=[records],
            optimizer_index=i,
            num_optimizers=len(optimizers),
            instruments=watching,
        )
        for i, o in enumerate(optimizers)
    ]
    outcome = _Run(setup, net, optimizers, pipelines, watching, generator).go(watch)
    outcome.records = records.records
    return outcome


class _Run:
    def __init__(
        self,
        setup: Setup,
        net: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        pipelines: list[GradientPipeline],
        instruments: Instruments,
        generator: torch.Generator,
    ) -> None:
        self.setup, self.net, self.optimizers, self.pipelines = setup, net, optimizers, pipelines
        self.instruments, self.generator = instruments, generator
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if setup.scaler else None
        self.out = Outcome()

    def go(self, watch: Watcher | None) -> Outcome:
        stream = batches(self.setup, self.generator)
        for step in range(self.setup.steps):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group.setdefault("base_lr", group["lr"])
                    group["lr"] = group["base_lr"] * factor(self.setup, step)
            x, y = self.batch = next(stream)
            self.watch = watch if step % RECORD_EVERY == 0 or self.out.broken else None
            if self.watch is not None:
                self.watch.before_forward(self.net)
            self.instruments.before_forward(step)
            try:
                loss = self._gan_step(x, step) if self.setup.arch == "gan" else self._step(x, y, step)
            except NonFiniteGradientError:
                self.out.diverged = True
                break
            self.out.losses.append(loss)
            self.out.broken = self.out.broken or not math.isfinite(loss)
        return self.out

    def _step(self, x: Tensor, y: Tensor, step: int) -> float:
        setup = self.setup
        half = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(setup.dtype)
        with torch.autocast("cpu", dtype=half) if half else nullcontext():
            loss = loss_of(setup)(self.net, x, y) * setup.sign * setup.loss_scale
        self.instruments.after_forward(loss)
        self._update(0, loss, step)
        return float(loss.detach()) / setup.loss_scale

    def _update(self, index: int, loss: Tensor, step: int) -> None:
        optimizer, pipeline = self.optimizers[index], self.pipelines[index]
        optimizer.zero_grad()
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.watch is not None and index == len(self.optimizers) - 1:
            self.watch.after_backward(self.net, step, float(loss.detach()), *self.batch)
        pipeline.before_step(step=step, log=step % RECORD_EVERY == 0, scaler=self.scaler)
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        pipeline.after_step()

    def _gan_step(self, x: Tensor, step: int) -> float:
        setup, net = self.setup, self.net
        noise = torch.randn(len(x), 16, generator=self.generator)
        fake = net.generator(noise)  # type: ignore[operator]
        real, faked = net.discriminator(x.tanh()), net.discriminator(fake.detach())  # type: ignore[operator]
        loss = _critic(setup, real, faked)
        self.instruments.after_forward(loss)
        self._update(0, loss, step)
        if setup.extra == "detached-generator":
            fake = fake.detach()
        judged = net.discriminator(fake)  # type: ignore[operator]
        generator_loss = _deceiver(setup, judged)
        self.instruments.after_forward(generator_loss)
        self._update(1, generator_loss, step)
        return float(loss.detach() + generator_loss.detach())


def _critic(setup: Setup, real: Tensor, fake: Tensor) -> Tensor:
    if "least-squares" in setup.extra:
        return ((real - 1).square().mean() + fake.square().mean()) / 2
    return nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()


def _deceiver(setup: Setup, judged: Tensor) -> Tensor:
    if "least-squares" in setup.extra:
        return (judged - 1).square().mean() / 2
    if setup.extra == "saturating":
        return -nn.functional.softplus(judged).mean()
    return nn.functional.softplus(-judged).mean()
