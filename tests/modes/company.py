"""Who shares a model with whom, and what a guard does there: checks that run on each of two processes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from lightning_gradguard import GradGuard, GradientPipeline, NonFiniteGradientError, NonFiniteGuard, NormClip
from lightning_gradguard.guard.guard import Guard
from lightning_gradguard.guard.recovery import Recovery
from tests.modes.distributed_checks import Hooked, keep_apart
from tests.modes.modes import ddp, fsdp, quiet_trainer
from tests.modes.training import Problem, batches, examples


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def each_trains_a_model_of_its_own(folder: str) -> list[str]:
    """As many steps as it likes, and a NaN of its own."""
    rank, model = dist.get_rank(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pipeline = GradientPipeline(model, optimizer, on_nonfinite="rollback", log_every_n_steps=1)
    verdicts = []
    for index in range(3 + 2 * rank):
        optimizer.zero_grad()
        loss = model(examples(index)[0]).square().mean() * (torch.nan if index == 2 and rank else 1.0)
        loss.backward()
        record = pipeline.before_step(loss=loss)
        assert record is not None
        verdicts.append(record.verdict)
        optimizer.step()
    return verdicts


def the_state_in_shards_goes_back(folder: str) -> list[int]:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # importing it warns

    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)
    recovery = Recovery(model, [optimizer], rollback=True, rollback_after=1, snapshot_every_n_steps=1)
    pipeline = GradientPipeline(model, optimizer, on_nonfinite=Guard("rollback"), recovery=recovery)
    steps = []
    for index in range(4):
        optimizer.zero_grad()
        (model(examples(index)[0]).square().mean() * (torch.nan if index == 3 else 1.0)).backward()
        pipeline.before_step()
        optimizer.step()
        steps.append(int(max(state["step"] for state in optimizer.optim.state.values())))
    return steps


def inside_of_join_it_is_refused(folder: str) -> str:
    model = DistributedDataParallel(net(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pipeline = GradientPipeline(model, optimizer, on_nonfinite="skip", clip=NormClip(1.0))
    try:
        with Join([model]):
            model(examples(0)[0]).square().mean().backward()
            pipeline.before_step()
    except RuntimeError as error:
        return str(error)
    return "went through"


class LateHook(Hooked):
    def on_fit_start(self, trainer: Any, *_: Any) -> None:
        """Not yet."""

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        trainer.strategy.model.register_comm_hook(None, self.hook)


class BadInput(Problem):
    """The last process has a NaN in its third batch."""

    def loss(self, index: int) -> Tensor:
        inputs, targets = examples(index)
        if index == 2 and dist.get_rank() == dist.get_world_size() - 1:
            inputs[3, 2] = torch.nan
        return (self.net(inputs) - targets).square().mean()


def a_hook_that_comes_late(folder: str) -> list[str]:
    watch = GradGuard(on_nonfinite="rollback", log_every_n_steps=1, probe_every_n_steps=None)
    quiet_trainer(folder, [LateHook(keep_apart), watch], **ddp()).fit(BadInput(), batches())
    return [record.verdict for record in watch.records]


class TalksInItsStep(BadInput):
    def loss(self, index: int) -> Tensor:
        mean = super().loss(index)
        together = mean.detach().nan_to_num()
        dist.all_reduce(together)
        return mean + 0.0 * together


def a_step_that_talks_is_not_run_by_one_alone(folder: str) -> Any:
    guard = NonFiniteGuard(incident_dir=Path(folder, "incidents"))
    quiet_trainer(folder, [guard], accumulate_grad_batches=2, **ddp()).fit(TalksInItsStep(), batches())
    dist.barrier()
    bundles = sorted(Path(folder, "incidents").glob("step-*"))
    reports = [json.loads((bundle / "report.json").read_text())["not_localised"] for bundle in bundles]
    return [bundle.name for bundle in bundles], ["talks to other processes" in why for why in reports]


class LossIsNaN(Problem):
    """A loss of NaN on the last process, with finite gradients."""

    def loss(self, index: int) -> Tensor:
        loss = super().loss(index)
        bad = index == 2 and dist.get_rank() == dist.get_world_size() - 1
        return loss + torch.nan if bad else loss


class Counted(pl.Callback):
    """Counts the all-reduces that anybody asks for in Python, from the second step on."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            self.plain, dist.all_reduce = dist.all_reduce, self._count

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            dist.all_reduce = self.plain

    def _count(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.plain(*args, **kwargs)


def a_nan_loss_of_one_is_heard_without_an_all_reduce(folder: str) -> Any:
    counted, watch = Counted(), GradGuard(on_nonfinite="skip", log_every_n_steps=1000, probe_every_n_steps=None)
    quiet_trainer(folder, [counted, watch], **ddp()).fit(LossIsNaN(), batches())
    return counted.calls, [(record.verdict, record.cause) for record in watch.records if record.cause]


def a_nan_loss_is_called_one_by_who_saves_it_and_by_the_error(folder: str) -> Any:
    saving = NonFiniteGuard(incident_dir=Path(folder, "incidents"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(folder, [saving], **fsdp()).fit(LossIsNaN(), batches())
    announced = [str(each.message) for each in caught if "step 2 was skipped" in str(each.message)]
    try:
        quiet_trainer(folder, [NonFiniteGuard("raise")], **ddp()).fit(LossIsNaN(), batches())
    except NonFiniteGradientError as error:
        return announced, str(error)


class BackwardIsNaN(Problem):
    """A loss that is fine on every process, with gradients of NaN on the last one: the slope of a root at zero."""

    def loss(self, index: int) -> Tensor:
        loss = super().loss(index)
        bad = index == 2 and dist.get_rank() == dist.get_world_size() - 1
        return loss + (0.0 * loss).sqrt() if bad else loss


def a_nan_loss_that_the_device_drops_is_heard_of_alike(folder: str) -> Any:
    """The host learns of it later, at the same step on every process, and asks the others whose loss it was."""
    told = []
    for model in (LossIsNaN(), BackwardIsNaN()):
        model.configure_optimizers = lambda model=model: torch.optim.AdamW(model.parameters(), fused=True)
        guard = NonFiniteGuard(on_device=True)
        quiet_trainer(folder, [guard], log_every_n_steps=1000, **ddp()).fit(model, batches())
        told.append([(record.step, record.verdict, record.cause) for record in guard.records if record.cause])
    return told


COMPANY = {
    function.__name__: function
    for function in (
        each_trains_a_model_of_its_own,
        the_state_in_shards_goes_back,
        a_hook_that_comes_late,
        a_step_that_talks_is_not_run_by_one_alone,
        a_nan_loss_of_one_is_heard_without_an_all_reduce,
        a_nan_loss_is_called_one_by_who_saves_it_and_by_the_error,
        a_nan_loss_that_the_device_drops_is_heard_of_alike,
        inside_of_join_it_is_refused,
    )
}
