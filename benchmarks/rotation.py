"""Many variants inside one fit: each step belongs to one of them, so that all see the same machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from benchmarks.workloads import Workload

# Steps that the run seems to have behind it: up to 64 more of them are recorded and probed than later on.
_BEGUN_AT = 1000

# A variant whose own writing must be done before the clock stops.
Flush = Callable[[pl.Trainer], None]


@dataclass
class Variant:
    """One way to train.

    Attributes:
        name: as in the table.
        callbacks: what the Trainer has on such a step.
        clip: whether ``gradient_clip_val=1.0`` is on.
        flush: waits for what the step wrote.
    """

    name: str
    callbacks: list[Callback] = field(default_factory=list)
    clip: bool = False
    flush: Flush | None = None


@dataclass(frozen=True)
class Step:
    """CPU seconds of one step: in hooks and clipping, and as a whole."""

    variant: str
    hooks_s: float
    whole_s: float


class Rotation:
    """Gives each training step to the next variant of a schedule, and takes its time.

    Between two variants comes a clipped step: every variant has one right before or after it to be compared with.

    Args:
        variants: all but clipping itself.
        clipping: the variant to compare with.
        rounds: how often each variant gets a step.
        on_step: told after each step, for progress.
    """

    def __init__(
        self, variants: Sequence[Variant], clipping: Variant, rounds: int, on_step: Callable[[], None] = lambda: None
    ) -> None:
        self.variants = [clipping, *variants]
        self.first, self.last = _First(self), _Last(self)
        self.steps: list[Step] = []
        self.on_step = on_step
        self._shuffle = random.Random(0)
        warm_up = list(self.variants)
        self.schedule = [*warm_up, *(v for _ in range(rounds) for v in self._round(variants, clipping))]
        self.num_warm_up = len(warm_up)
        self.position = 0
        self.since = self.hooks_s = self.step_since = 0.0

    def _round(self, variants: Sequence[Variant], clipping: Variant) -> list[Variant]:
        order = list(variants)
        self._shuffle.shuffle(order)
        pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
        return [variant for pair in pairs for variant in (pair[0], clipping, *pair[1:])]

    @property
    def now(self) -> Variant:
        return self.schedule[self.position]

    def install(self, trainer: pl.Trainer) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Workload)
        module.clip, module.clip_cpu_s = self.now.clip, 0.0
        trainer.callbacks = [self.first, *self.now.callbacks, self.last]  # type: ignore[attr-defined]
        self.hooks_s = 0.0

    @contextmanager
    def as_if_alone(self, trainer: pl.Trainer, variant: Variant) -> Any:
        ours, trainer.callbacks = trainer.callbacks, variant.callbacks  # type: ignore[attr-defined]
        yield
        trainer.callbacks = ours  # type: ignore[attr-defined]

    def for_all(self, hook: str, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        for variant in self.variants:
            with self.as_if_alone(trainer, variant):
                for callback in variant.callbacks:
                    getattr(callback, hook)(trainer, *args, **kwargs)

    def end_step(self, trainer: pl.Trainer) -> None:
        if self.now.flush is not None:
            self.now.flush(trainer)
        module: Any = trainer.lightning_module
        now = time.process_time()
        hooks_s = self.hooks_s + now - self.since + module.clip_cpu_s
        self.steps.append(Step(self.now.name, hooks_s, now - self.step_since))
        self.on_step()
        self.position += 1
        if self.position < len(self.schedule):
            self.install(trainer)
        else:
            trainer.should_stop, trainer.callbacks = True, [self.first]  # type: ignore[attr-defined]


class _First(Callback):
    """Starts the clock before the variant's callbacks, at every hook; runs once what all variants need at start."""

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.rotation.for_all("setup", trainer, pl_module, stage=stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.rotation.for_all("on_fit_start", trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.rotation.for_all("on_train_start", trainer, pl_module)
        trainer.fit_loop.epoch_loop._batches_that_stepped = _BEGUN_AT
        self.rotation.install(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.rotation.for_all("on_train_end", trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.rotation.for_all("teardown", trainer, pl_module, stage=stage)

    def on_train_batch_start(self, *args: Any) -> None:
        self.rotation.step_since = self.rotation.since = time.process_time()

    def _start(self, *args: Any) -> None:
        self.rotation.since = time.process_time()

    on_before_backward = on_after_backward = on_before_optimizer_step = on_train_batch_end = _start


class _Last(Callback):
    """Stops the clock after the variant's callbacks."""

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation

    def _stop(self, *args: Any) -> None:
        self.rotation.hooks_s += time.process_time() - self.rotation.since

    on_train_batch_start = on_before_backward = on_after_backward = on_before_optimizer_step = _stop

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.rotation.end_step(trainer)
