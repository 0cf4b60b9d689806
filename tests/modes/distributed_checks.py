"""What is checked inside processes that train together; each check runs on every rank and asserts by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

from lightning_gradguard import (
    AutoClip,
    ClipPolicy,
    GradGuard,
    GradientPipeline,
    NonFiniteGradientError,
    NormClip,
    StepRecord,
    ValueClip,
    ZClip,
)
from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.chain import Chain
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.quantile import QuantileClip
from tests.modes.modes import (
    MODES,
    Mode,
    ShardedProblem,
    ddp,
    fsdp,
    model_parallel,
    quiet_trainer,
    replicated_problem,
    whole_weights,
)
from tests.modes.training import Problem, Twin, batches, examples, largest_deviation, make_net

POLICIES: dict[str, ClipPolicy] = {
    "NormClip": NormClip(0.5),
    "ValueClip": ValueClip(0.05),
    "AutoClip": AutoClip(),
    "AutoClip by value": AutoClip(by="value"),
    "ZClip": ZClip(z=0.1, warmup=2),
    "QuantileClip": QuantileClip(),
    "AGC": AGC(0.05),
    "AdaGC": AdaGC(warmup=2),
    "MaxClip": MaxClip(),
    "Chain": Chain([AGC(0.05), NormClip(0.5)]),
    "Chain, scaled first": Chain([NormClip(0.5), AGC(0.05)]),
}

# all-reduces of one step that is watched and clipped but not logged
COLLECTIVES = {
    "watching": (None, 1),
    "NormClip": (NormClip(0.5), 1),
    "AutoClip": (AutoClip(), 1),
    "ZClip": (ZClip(), 1),
    "AdaGC": (AdaGC(), 1),
    "ValueClip": (ValueClip(0.05), 3),  # the third for what is left of each tensor, in steps that were clipped
    "AGC": (AGC(0.05), 2),
}


def every_policy_as_on_one_process(folder: str, mode: Mode) -> dict[str, float]:
    found = {}
    for name, policy in POLICIES.items():
        outcome = mode.train(folder, clip=policy)
        assert "clipped" in {record.verdict for record in outcome.records}, name
        found[name] = largest_deviation(outcome.weights, Twin(policy=policy).weights)
    return found


Options = Callable[[], Mapping[str, Any]]


def fit(folder: str, module: Problem, callbacks: list[Any], options: Options) -> pl.Trainer:
    trainer = quiet_trainer(folder, callbacks, **options())
    trainer.fit(module, batches())
    return trainer


@contextmanager
def counted_all_reduces() -> Iterator[list[str]]:
    """Counts the all-reduces that are asked for in Python; those of DDP and FSDP are not."""
    calls: list[str] = []
    plain = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(f"{tuple(tensor.shape)}")
        return plain(tensor, *args, **kwargs)

    dist.all_reduce = counting
    try:
        yield calls
    finally:
        dist.all_reduce = plain


def collectives_of_a_step(folder: str, problem: Callable[..., Problem], options: Options) -> dict[str, int]:
    found = {}
    for name, (policy, _) in COLLECTIVES.items():

        class Counts(pl.Callback):
            """Stands around our callback, which comes after it and before the module's own hook."""

            def __init__(self) -> None:
                self.calls: list[int] = []

            def on_before_optimizer_step(self, *_: Any) -> None:
                self.calls.append(len(calls))

            def on_before_zero_grad(self, *_: Any) -> None:
                self.calls.append(len(calls))

        counts = Counts()
        with counted_all_reduces() as calls:
            guard = GradGuard(clip=policy, log_every_n_steps=1000, rules=[])
            fit(folder, problem(), [counts, guard], options)
        before, after = counts.calls[1::2], counts.calls[2::2]  # zero_grad, step, zero_grad, step, ...
        # The first step makes a record, which may have more to measure; so does the last, which is not among them.
        steps = {late - early for early, late in [*zip(before, after, strict=False)][1:]}
        assert len(steps) == 1, steps
        found[name] = steps.pop()
    return found


def spoil_one_shard(module: Problem) -> None:
    """A NaN into the last process's piece of one gradient only, at the third step."""
    parameter = module.net.second.weight
    if module.trainer.global_step == 2 and dist.get_rank() == dist.get_world_size() - 1:
        piece = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        piece.view(-1)[0] = float("nan")


class SpoiledShard(ShardedProblem):
    def on_after_backward(self) -> None:
        spoil_one_shard(self)


class SpoiledSlice(Problem):
    def on_after_backward(self) -> None:
        spoil_one_shard(self)


def a_nan_in_one_shard(folder: str, problem: Callable[..., Problem], options: Options, action: Any) -> Any:
    watch, module = GradGuard(on_nonfinite=action, log_every_n_steps=1), problem()
    try:
        trainer = fit(folder, module, [watch], options)
    except NonFiniteGradientError as error:
        assert action == "raise"
        return "net.second" in str(error)
    bad = next(record for record in watch.records if record.verdict != "ok")
    assert (bad.step, bad.verdict, bad.nonfinite_layers) == (2, "skipped", ("net.second",))
    if action == "skip":
        assert largest_deviation(whole_weights(trainer.strategy.model, module.net), Twin(bad=[2]).weights) < 1e-5
    return [record.verdict for record in watch.records]


def sliced(problem: Callable[..., Problem]) -> Problem:
    return problem(share=(dist.get_rank(), dist.get_world_size()))


def a_nan_on_one_rank_under_ddp(folder: str, action: Any) -> Any:
    watch, module = GradGuard(on_nonfinite=action, log_every_n_steps=1), replicated_problem(bad=[2])
    try:
        fit(folder, module, [watch], ddp)
    except NonFiniteGradientError as error:
        return f"raised at {str(error).split(';')[-1][:9]}", fingerprint(module)
    return [record.verdict for record in watch.records], fingerprint(module)


def fingerprint(module: Problem) -> float:
    return float(sum(parameter.detach().double().sum() for parameter in module.net.parameters()))


def ddp_with(folder: str, strategy: Mapping[str, Any], **trainer: Any) -> float:
    watch, module = GradGuard(clip=NormClip(0.5), log_every_n_steps=1), replicated_problem(bad=[2])
    fit(folder, module, [watch], lambda: {**ddp(**strategy), **trainer})
    accumulate = trainer.get("accumulate_grad_batches", 1)
    twin = Twin(clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5), bad=[2], accumulate=accumulate)
    deviation = largest_deviation({n: p.detach() for n, p in module.net.named_parameters()}, twin.weights)
    assert deviation < 1e-5, deviation
    return fingerprint(module)


class Hooked(pl.Callback):
    """Registers a communication hook; Lightning's own option does so on GPUs only."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def on_fit_start(self, trainer: Any, *_: Any) -> None:
        trainer.strategy.model.register_comm_hook(None, self.hook)


def keep_apart(state, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations, and wants no strings
    """Averages nothing, as local SGD between its averaging steps."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def a_compressing_hook(folder: str) -> float:
    watch, module = GradGuard(clip=NormClip(0.5), log_every_n_steps=1), replicated_problem(bad=[2])
    fit(folder, module, [Hooked(default_hooks.fp16_compress_hook), watch], ddp)
    twin = Twin(clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5), bad=[2])
    assert 0.0 < largest_deviation({n: p.detach() for n, p in module.net.named_parameters()}, twin.weights) < 1e-2
    return fingerprint(module)


def a_hook_that_keeps_processes_apart(folder: str) -> list[str]:
    watch, module = GradGuard(log_every_n_steps=1), replicated_problem(bad=[3])
    fit(folder, module, [Hooked(keep_apart), watch], ddp)
    return [record.verdict for record in watch.records]


def lightnings_own_norm_clipping_is_refused_under_fsdp(folder: str) -> bool:
    try:
        fit(folder, replicated_problem(), [], lambda: {**fsdp(), "gradient_clip_val": 0.5})
    except MisconfigurationException as error:
        return "clip" in str(error)
    return False


def unwrapped_flat_parameters(folder: str) -> Any:
    """``use_orig_params=False``: layers are gone, the total and clipping are right."""

    class Flat(Problem):
        def configure_optimizers(self) -> Any:
            return self.make_optimizer(self.trainer.model.parameters())

    module, watch = sliced(Flat), GradGuard(clip=NormClip(0.5), log_every_n_steps=1)
    trainer = fit(folder, module, [watch], lambda: fsdp(use_orig_params=False))
    twin = Twin(clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5))
    return largest_deviation(whole_weights(trainer.strategy.model, module.net), twin.weights), len(
        watch.records[0].layers
    )


def other_norms_of_sharded_layers(folder: str, problem: Callable[..., Problem], options: Options) -> float:
    from lightning_gradguard import GradientNormMonitor

    worst = 0.0
    for p in (1.0, float("inf")):
        watch = GradientNormMonitor(log_every_n_steps=1, norm_type=p, group_by="parameter")
        fit(folder, problem(), [watch], options)
        net = make_net()
        inputs, targets = examples(0)
        (net(inputs) - targets).square().mean().backward()
        expected = [float(torch.linalg.vector_norm(w.grad.double(), p)) for w in net.parameters()]
        found = watch.records[0].layer_norms
        worst = max(worst, *(abs(a / b - 1.0) for a, b in zip(found, expected, strict=True)))
    return worst


class Huge(ShardedProblem):
    """Gradients near 1e30: finite, though their squares are not."""

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        return self.loss(batch_idx) * 1e30


def gradients_whose_norm_overflows(folder: str) -> float:
    module, watch = Huge(), GradGuard(clip=NormClip(0.5), log_every_n_steps=1)
    trainer = fit(folder, module, [watch], partial(model_parallel, 1))
    assert {record.verdict for record in watch.records} == {"clipped"}
    twin = Twin(clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5))
    return largest_deviation(whole_weights(trainer.strategy.model, module.net), twin.weights)


def gradients_left_as_partial_sums(folder: str) -> tuple[float, float]:
    """Sequence parallelism leaves the gradient of a replicated gain as partial sums over the processes."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))

    def train(sharded: bool) -> tuple[StepRecord | None, dict[str, Tensor]]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.LayerNorm(6))
        if sharded:
            parallelize_module(net, mesh, {"0": SequenceParallel()})
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pipeline = GradientPipeline(net, optimizer, clip=NormClip(0.5), on_nonfinite="skip", log_every_n_steps=1)
        inputs = torch.randn(4, 8, 6)
        if sharded:
            inputs = inputs.chunk(dist.get_world_size(), 1)[dist.get_rank()]
        output = net(inputs)
        output = output.to_local() if isinstance(output, DTensor) else output
        (output.square() * torch.arange(6)).sum().backward()
        record = pipeline.before_step()
        optimizer.step()
        weights = {n: p.detach() for n, p in net.named_parameters()}
        return record, {n: w.full_tensor() if isinstance(w, DTensor) else w for n, w in weights.items()}

    (one, alone), (many, together) = train(False), train(True)
    return abs(many.total_norm / one.total_norm - 1.0), largest_deviation(together, alone)


_FSDP2 = {"problem": ShardedProblem, "options": partial(model_parallel, 1)}
_TENSOR = {"problem": ShardedProblem, "options": partial(model_parallel, 2)}
_FSDP1 = {"problem": replicated_problem, "options": fsdp}
_SHARDED = {"fsdp1": _FSDP1, "fsdp2": _FSDP2, "tp": _TENSOR}

CHECKS: dict[str, Callable[[str], Any]] = {
    **{f"policies {m}": partial(every_policy_as_on_one_process, mode=MODES[m]) for m in ("ddp", *_SHARDED)},
    **{f"collectives {m}": partial(collectives_of_a_step, **how) for m, how in _SHARDED.items()},
    "collectives ddp": partial(collectives_of_a_step, problem=replicated_problem, options=ddp),
    **{
        f"one shard {action} fsdp2": partial(
            a_nan_in_one_shard, problem=SpoiledShard, options=partial(model_parallel, 1), action=action
        )
        for action in ("skip", "stop", "raise")
    },
    **{
        f"one shard {action} fsdp1": partial(
            a_nan_in_one_shard, problem=partial(sliced, SpoiledSlice), options=fsdp, action=action
        )
        for action in ("skip", "raise")
    },
    **{
        f"one rank {action}": partial(a_nan_on_one_rank_under_ddp, action=action)
        for action in ("skip", "rollback", "stop", "raise")
    },
    "static graph": partial(ddp_with, strategy={"static_graph": True}),
    "bucket views": partial(ddp_with, strategy={"gradient_as_bucket_view": True}),
    "accumulation": partial(ddp_with, strategy={}, accumulate_grad_batches=2),
    "unused parameters": partial(ddp_with, strategy={"find_unused_parameters": True}),
    "compressed": a_compressing_hook,
    "apart": a_hook_that_keeps_processes_apart,
    "refused": lightnings_own_norm_clipping_is_refused_under_fsdp,
    "flat": unwrapped_flat_parameters,
    "other norms fsdp2": partial(other_norms_of_sharded_layers, **_FSDP2),
    "other norms tp": partial(other_norms_of_sharded_layers, **_TENSOR),
    "overflow": gradients_whose_norm_overflows,
    "partial sums": gradients_left_as_partial_sums,
}
