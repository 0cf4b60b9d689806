"""The modes of training that we speak of, each as a function that trains the problem in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytorch_lightning
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_gradguard import ClipPolicy, GradGuard, GradientPipeline, MemorySink, NonFiniteGuard, StepRecord
from lightning_gradguard.guard.guard import Action, Guard
from lightning_gradguard.guard.recovery import Recovery
from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.incident.bundle import IncidentFolder
from tests.modes.training import (
    NUM_BATCHES,
    ManualProblem,
    Problem,
    Training,
    batches,
    examples,
    make_net,
    sgd,
    whole,
)


@dataclass(frozen=True)
class Outcome:
    """What a training left behind."""

    weights: dict[str, Tensor]
    records: list[StepRecord]


# train(folder, clip=None, guard=None, bad=(), stop_after=None, resume=False) -> Outcome. `guard` are the arguments of
# NonFiniteGuard. The run ends after so many steps and writes `folder/half.ckpt`, or goes on from there.
Train = Callable[..., Outcome]


@dataclass(frozen=True)
class Mode:
    """One row of the support table.

    Attributes:
        title: how the table calls it.
        train: trains the problem in this mode.
        processes: how many together.
        own_loop: whether there is no LightningModule around the net.
        optimizer: what the plain loop steps with, to compare with.
        tolerance: how far weights and norms may lie from those of the plain float32 loop, relative.
        accumulate: batches a step.
        refused: capabilities that are refused when fit starts, each with words of the error.
        not_run: capabilities that have no test.
    """

    title: str
    train: Train
    processes: int = 1
    own_loop: bool = False
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd
    tolerance: float = 1e-5
    accumulate: int = 1
    refused: Mapping[str, str] = field(default_factory=dict)
    not_run: Collection[str] = ()


def quiet_trainer(folder: str, callbacks: list[Any], **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    make = options.pop("trainer_class", pl.Trainer)
    return make(callbacks=callbacks, **{**defaults, **options})


class SaveAt(pl.Callback):
    """Writes a checkpoint in the middle of an epoch, as ``ModelCheckpoint(every_n_train_steps=...)`` does."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and not os.path.exists(self.path):
            trainer.save_checkpoint(self.path)


def with_trainer(
    folder: str,
    *,
    clip: ClipPolicy | None = None,
    guard: Mapping[str, Any] | None = None,
    bad: Collection[int] = (),
    stop_after: int | None = None,
    resume: bool = False,
    problem: Callable[..., Any] = Problem,
    options: Callable[[], Mapping[str, Any]] = dict,
) -> Outcome:
    """Trains with a Trainer and our callbacks, in a mode given by the module and by options for the Trainer."""
    half = os.path.join(folder, "half.ckpt")
    watch = GradGuard(clip=clip, on_nonfinite=None, log_every_n_steps=1)
    callbacks: list[Any] = [watch] if guard is None else [watch, NonFiniteGuard(**guard)]
    ends = {}
    if stop_after is not None:
        callbacks, ends = [*callbacks, SaveAt(stop_after, half)], {"max_steps": stop_after}
    trainer = quiet_trainer(folder, callbacks, **{**options(), **ends})
    module = problem(bad=bad)
    trainer.fit(module, batches(), ckpt_path=half if resume else None)
    return Outcome(whole_weights(trainer.strategy.model, module.net), watch.records)


def whole_weights(model: nn.Module, net: nn.Module) -> dict[str, Tensor]:
    """The net's weights as whole tensors, whatever the strategy made of them."""
    sharded = isinstance(model, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(model) if sharded else nullcontext():
        return {
            name.replace("_fsdp_wrapped_module.", ""): (w.full_tensor() if isinstance(w, DTensor) else w).clone()
            for name, w in whole(net).items()
        }


# One process


def on_cpu(scaler_scale: float, **options: Any) -> Mapping[str, Any]:
    """16-mixed with a live loss scaler, which Lightning offers on CPU through its plugin only."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scaler_scale))]}


def fused_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01, fused=True)


def double_problem(**options: Any) -> Problem:
    # Double from the start: Lightning loads a checkpoint before it converts the module, which would round the weights.
    return Problem(net=make_net().double(), **options)


def compiled_problem(**options: Any) -> Problem:
    return Problem(net=torch.compile(make_net(), backend="eager"), **options)


class OtherProblem(Training, pytorch_lightning.LightningModule):
    """The training in the other package."""


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.01, max_iter=3)


class DeepSpeedStrategy(pl.strategies.SingleDeviceStrategy):
    """The name and the flag by which DeepSpeed's strategy is known; DeepSpeed itself is not installed here."""

    handles_gradient_accumulation = True


def with_deepspeed(folder: str, **options: Any) -> Outcome:
    return with_trainer(folder, options=lambda: {"strategy": DeepSpeedStrategy("cpu")}, **options)


# A loop of one's own


def with_raw_loop(
    folder: str,
    *,
    clip: ClipPolicy | None = None,
    guard: Mapping[str, Any] | None = None,
    bad: Collection[int] = (),
    stop_after: int | None = None,
    resume: bool = False,
    fabric: Callable[[], Fabric] | None = None,
    scaler: bool = False,
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd,
) -> Outcome:
    """Trains with a pipeline in a plain loop, or in one of Fabric's."""
    training = Problem(bad=bad)
    plain, sink = optimizer(training.net.parameters()), MemorySink()
    live = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaler else None
    lightning = fabric() if fabric else None
    survival = _survival(training.net, plain, **guard) if guard is not None else {}
    pipeline = GradientPipeline(training.net, plain, clip=clip, sinks=[sink], log_every_n_steps=1, **survival)
    box: BlackBox | None = survival.get("incidents")
    stepping: Any = plain
    if lightning:
        training.net, stepping = lightning.setup(training.net, plain)
        live = getattr(lightning.strategy.precision, "scaler", None)
    half, start = os.path.join(folder, "half.ckpt"), 0
    if resume:
        saved = torch.load(half, weights_only=True)
        training.net.load_state_dict(saved["net"])
        plain.load_state_dict(saved["optimizer"])
        pipeline.load_state_dict(saved["pipeline"])
        if live is not None:
            live.load_state_dict(saved["scaler"])
        start = stop_after_first_half(1)
    for index in range(start, NUM_BATCHES if stop_after is None else stop_after):
        plain.zero_grad()
        if box is not None:
            box.before_batch(examples(index)[0], index)
        with nullcontext() if lightning or live is None else torch.autocast("cpu", torch.float16):
            loss = training.loss(index)
        if lightning:
            lightning.backward(loss)
        else:
            (loss if live is None else live.scale(loss)).backward()
        pipeline.before_step(scaler=live)
        if box is not None:
            box.after_step()
        if lightning or live is None:
            stepping.step()
        else:
            live.step(plain)
            live.update()
    if stop_after is not None:
        state = {"net": training.net.state_dict(), "optimizer": plain.state_dict(), "pipeline": pipeline.state_dict()}
        torch.save(state | ({"scaler": live.state_dict()} if live is not None else {}), half)
    net = training.net.module if lightning else training.net
    return Outcome(whole(net), sink.records)


def _survival(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    action: Action,
    incident_dir: str | None = None,
    loss_scale_floor: float = 1.0,
    **recovery: int,
) -> dict[str, Any]:
    """What NonFiniteGuard puts together for a Trainer, put together by hand."""
    return {
        "on_nonfinite": Guard(action, loss_scale_floor=loss_scale_floor),
        "recovery": Recovery(net, [optimizer], rollback=action == "rollback", **recovery),
        "incidents": None if incident_dir is None else BlackBox(IncidentFolder(incident_dir), net),
    }


def stop_after_first_half(accumulate: int) -> int:
    """After how many steps a run is cut in two, in the middle of an epoch."""
    return -(-NUM_BATCHES // accumulate) // 2


def fabric_on_cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def fabric_with_scaler() -> Fabric:
    from lightning.fabric.plugins.precision import MixedPrecision as FabricMixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return Fabric(accelerator="cpu", devices=1, plugins=[FabricMixedPrecision("16-mixed", "cpu", scaler)])


# Several processes


class FSDPOnCPU(FSDPStrategy):
    """FSDP1 with gloo: Lightning's own asks for a GPU, torch does not."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, sharding_strategy=self.sharding_strategy, device_id=torch.device("cpu"), **self.kwargs
        )

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        dist.barrier()


def replicated_problem(**options: Any) -> Problem:
    """Each process takes its share of a batch, and the NaN falls into the last share only."""
    world = dist.get_world_size()
    return Problem(share=(dist.get_rank(), world), bad_share=world - 1, **options)


class ShardedProblem(Problem):
    """The problem with its net sharded over the mesh of ``ModelParallelStrategy``: by rows, by tensor, or both."""

    def configure_model(self) -> None:
        mesh = self.device_mesh
        data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
        if tensor.size() > 1:
            parallelize_module(self.net, tensor, {"first": ColwiseParallel(), "second": RowwiseParallel()})
        if data.size() > 1:
            for layer in (self.net.first, self.net.second, self.net.head):
                fully_shard(layer, mesh=data)
            fully_shard(self.net, mesh=data)
        self.share, self.bad_share = (data.get_local_rank(), data.size()), data.size() - 1


def ddp(**strategy: Any) -> Mapping[str, Any]:
    world = dist.get_world_size()
    return {"strategy": DDPStrategy(process_group_backend="gloo", **strategy), "devices": world}


def fsdp(**strategy: Any) -> Mapping[str, Any]:
    wrap = {"auto_wrap_policy": {nn.Linear}, "process_group_backend": "gloo", "state_dict_type": "sharded"}
    return {"strategy": FSDPOnCPU(**wrap, **strategy), "devices": dist.get_world_size()}


def model_parallel(tensor: int) -> Mapping[str, Any]:
    world = dist.get_world_size()
    strategy = ModelParallelStrategy(
        data_parallel_size=world // tensor, tensor_parallel_size=tensor, process_group_backend="gloo"
    )
    return {"strategy": strategy, "devices": world}


def _trainer(problem: Callable[..., Any] = Problem, **options: Any) -> Train:
    return partial(with_trainer, problem=problem, options=partial(dict, **options))


def _scaled(problem: Callable[..., Any] = Problem) -> Train:
    return partial(with_trainer, problem=problem, options=partial(on_cpu, 2.0**10))


_HALF = 5e-2  # 8 bits of mantissa through six steps
_DEEPSPEED = dict.fromkeys(("clip by norm", "clip by value", "unit-wise", "skip", "rollback", "incident"), "DeepSpeed")
_LBFGS = dict.fromkeys(("skip", "rollback", "incident"), "LBFGS")

MODES: dict[str, Mode] = {
    "fp32": Mode("automatic optimization, 32-true", _trainer()),
    "accumulation": Mode(
        "`accumulate_grad_batches`, last window cut short", _trainer(accumulate_grad_batches=4), accumulate=4
    ),
    "manual": Mode("manual optimization", _trainer(ManualProblem)),
    "64-true": Mode("64-true", _trainer(double_problem, precision="64-true")),
    "bf16-mixed": Mode("bf16-mixed", _trainer(precision="bf16-mixed"), tolerance=_HALF),
    "bf16-true": Mode("bf16-true", _trainer(precision="bf16-true"), tolerance=_HALF),
    "16-true": Mode("16-true", _trainer(precision="16-true"), tolerance=_HALF),
    "16-mixed": Mode("16-mixed with a live loss scaler", _scaled(), tolerance=_HALF),
    "16-mixed-fused": Mode(
        "16-mixed, fused optimizer", _scaled(partial(Problem, optimizer=fused_sgd)), tolerance=_HALF
    ),
    "compile": Mode("`torch.compile`d net", _trainer(compiled_problem)),
    "pytorch_lightning": Mode(
        "`pytorch_lightning.Trainer`", _trainer(OtherProblem, trainer_class=pytorch_lightning.Trainer)
    ),
    "raw": Mode("plain PyTorch loop", with_raw_loop, own_loop=True),
    "raw-scaler": Mode(
        "plain PyTorch loop, fp16 autocast, scaler", partial(with_raw_loop, scaler=True), tolerance=_HALF, own_loop=True
    ),
    "fabric": Mode("Fabric, 32-true", partial(with_raw_loop, fabric=fabric_on_cpu), own_loop=True),
    "fabric-scaler": Mode(
        "Fabric, 16-mixed with a live loss scaler",
        partial(with_raw_loop, fabric=fabric_with_scaler),
        tolerance=_HALF,
        own_loop=True,
    ),
    "ddp": Mode("DDP, 2 processes", partial(with_trainer, problem=replicated_problem, options=ddp), processes=2),
    "fsdp1": Mode(
        "FSDP (1), 2 processes",
        partial(with_trainer, problem=replicated_problem, options=fsdp),
        processes=2,
    ),
    "fsdp2": Mode(
        "FSDP2, 2 processes",
        partial(with_trainer, problem=ShardedProblem, options=partial(model_parallel, 1)),
        processes=2,
    ),
    "tp": Mode(
        "tensor parallel, 2 processes",
        partial(with_trainer, problem=ShardedProblem, options=partial(model_parallel, 2)),
        processes=2,
    ),
    "fsdp1-4": Mode(
        "FSDP (1), 4 processes",
        partial(with_trainer, problem=replicated_problem, options=fsdp),
        processes=4,
    ),
    "2d": Mode(
        "FSDP2 × tensor parallel, 2 × 2 processes",
        partial(with_trainer, problem=ShardedProblem, options=partial(model_parallel, 2)),
        processes=4,
    ),
    "lbfgs": Mode("LBFGS", _trainer(partial(Problem, optimizer=lbfgs)), optimizer=lbfgs, refused=_LBFGS),
    "deepspeed": Mode("DeepSpeed", with_deepspeed, refused=_DEEPSPEED, not_run=("see", "resume")),
}
