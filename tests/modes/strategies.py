"""Every way in which Lightning spreads a training over processes, on CPU, with its parameters put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.modes.training import Problem, quiet_trainer


class FSDPOnCPU(FSDPStrategy):
    """FSDP1 with gloo: Lightning's own asks for a GPU, torch does not."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, sharding_strategy=self.sharding_strategy, device_id=torch.device("cpu"), **self.kwargs
        )

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        dist.barrier()


class ShardedProblem(Problem):
    """The problem with its net sharded by the mesh of ``ModelParallelStrategy``: by rows, by tensor, or both."""

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if mesh["tensor_parallel"].size() > 1:
            plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
            parallelize_module(self.net, mesh["tensor_parallel"], plan)
        if mesh["data_parallel"].size() > 1:
            for layer in (self.net.first, self.net.second, self.net.head):
                fully_shard(layer, mesh=mesh["data_parallel"])
            fully_shard(self.net, mesh=mesh["data_parallel"])
        self.share = (mesh["data_parallel"].get_local_rank(), mesh["data_parallel"].size())


Fit = Callable[..., tuple[pl.Trainer, Problem]]


def fit_ddp(folder: str, callbacks: Sequence[pl.Callback], *, problem: type[Problem] = Problem, **options: Any) -> Any:
    strategy = DDPStrategy(process_group_backend="gloo", **options.pop("strategy", {}))
    module = problem(share=(dist.get_rank(), dist.get_world_size()), **options.pop("module", {}))
    return _fit(folder, callbacks, strategy, module, **options)


def fit_fsdp(folder: str, callbacks: Sequence[pl.Callback], **options: Any) -> Any:
    wrapped = {nn.Linear} if options.pop("wrap_layers", True) else set()
    strategy = FSDPOnCPU(auto_wrap_policy=wrapped, process_group_backend="gloo", **options.pop("strategy", {}))
    module = Problem(share=(dist.get_rank(), dist.get_world_size()), **options.pop("module", {}))
    return _fit(folder, callbacks, strategy, module, **options)


def fit_model_parallel(folder: str, callbacks: Sequence[pl.Callback], *, tensor: int, **options: Any) -> Any:
    strategy = ModelParallelStrategy(
        data_parallel_size=dist.get_world_size() // tensor,
        tensor_parallel_size=tensor,
        process_group_backend="gloo",
        **options.pop("strategy", {}),
    )
    return _fit(folder, callbacks, strategy, ShardedProblem(**options.pop("module", {})), **options)


def _fit(folder: str, callbacks: Sequence[pl.Callback], strategy: Any, module: Problem, **options: Any) -> Any:
    data, ckpt_path = options.pop("data"), options.pop("ckpt_path", None)
    trainer = quiet_trainer(folder, callbacks, strategy=strategy, devices=dist.get_world_size(), **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


def whole_weights(trainer: pl.Trainer, module: Problem) -> dict[str, Tensor]:
    """The net's weights as whole tensors, whatever the strategy made of them."""
    model = trainer.strategy.model
    gather = (
        FullyShardedDataParallel.summon_full_params(model)
        if isinstance(model, FullyShardedDataParallel)
        else nullcontext()
    )
    with gather:
        return {
            name.replace("_fsdp_wrapped_module.", ""): (
                parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            )
            .detach()
            .clone()
            for name, parameter in module.net.named_parameters()
        }
