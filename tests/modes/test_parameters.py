"""Every kind of parameter that an optimizer may hold, in a real Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from lightning_gradguard import GradGuard, NormClip, StepRecord, ValueClip
from lightning_gradguard.clip.agc import AGC
from tests.modes.modes import quiet_trainer
from tests.modes.training import Problem, batches, make_net

PLAIN = ("net.first", "net.second", "net.head")


def watch(tmp_path: Any, module: Problem, *callbacks: Any, clip: Any = None, **options: Any) -> list[StepRecord]:
    guard = GradGuard(clip=clip, log_every_n_steps=1)
    quiet_trainer(str(tmp_path), [guard, *callbacks], **options).fit(module, batches())
    return guard.records


class CompiledPart(Problem):
    def __init__(self) -> None:
        super().__init__(net=torch.compile(make_net(), backend="eager"))


class CompiledInPlace(Problem):
    def __init__(self) -> None:
        super().__init__()
        self.net.compile(backend="eager")


def compiled_whole() -> Any:
    return torch.compile(Problem(), backend="eager")


@pytest.mark.parametrize("make", [CompiledPart, CompiledInPlace, compiled_whole])
def test_compiled_modules_keep_the_names_that_the_user_gave(make: Any, tmp_path: Any) -> None:
    records = watch(tmp_path, make(), clip=NormClip(0.5))
    assert records[0].layers == PLAIN and records[0].verdict == "clipped"


def test_a_tied_weight_is_counted_once(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 1))
    net[1].weight = net[0].weight
    record = watch(tmp_path, Problem(net=net))[0]
    assert record.layers == ("net.0", "net.2")
    assert record.total_norm == pytest.approx(sum(norm**2 for norm in record.layer_norms) ** 0.5, rel=1e-6)


def test_a_frozen_layer_has_no_norm_until_it_is_unfrozen(tmp_path: Any) -> None:
    class Thaw(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.net.first)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.net.first, optimizer)

    module = Problem(optimizer=lambda params: torch.optim.SGD([p for p in params if p.requires_grad], lr=0.01))
    records = watch(tmp_path, module, Thaw(), max_epochs=2)
    assert records[0].layers == ("net.second", "net.head")
    assert records[-1].layers == PLAIN and records[-1].layer_norms[0] > 0.0


def test_a_layer_frozen_by_hand_shows_no_gradient_and_not_a_zero(tmp_path: Any) -> None:
    class Switch(Problem):
        def on_train_batch_start(self, batch: int, batch_idx: int) -> None:
            self.net.first.requires_grad_(batch_idx >= 3)

    records = watch(tmp_path, Switch())
    assert [record.layer_norms[0] is None for record in records] == [True] * 3 + [False] * 3


def test_lazy_layers_are_watched_once_they_have_a_shape(tmp_path: Any) -> None:
    net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1))
    net(torch.zeros(1, 6))
    assert watch(tmp_path, Problem(net=net))[0].layers == ("net.0", "net.2")


class Words(nn.Module):
    """An embedding with sparse gradients, read at the signs of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 1, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table((inputs > 0).long()).sum(1)


@pytest.mark.parametrize("clip", [NormClip(0.5), ValueClip(0.05), AGC(0.05)], ids=lambda c: type(c).__name__)
def test_sparse_embeddings_are_measured_and_clipped(clip: Any, tmp_path: Any) -> None:
    module = Problem(net=Words(), optimizer=lambda params: torch.optim.SGD(params, lr=0.01))
    first = watch(tmp_path, module, clip=clip)[0]
    assert first.verdict == "clipped" and 0.0 < first.post_clip_norm < first.total_norm


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.randn(6, 1, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.complex64) @ self.phases).abs()

    @property
    def dtype(self) -> torch.dtype:
        return torch.complex64


class Complex(Problem):
    def loss(self, index: int) -> Tensor:
        from tests.modes.training import examples

        inputs, targets = examples(index)
        return (self.net(inputs) - targets).square().mean()


@pytest.mark.parametrize("clip", [NormClip(0.5), ValueClip(0.05), AGC(0.05)], ids=lambda c: type(c).__name__)
def test_complex_parameters_are_measured_and_clipped(clip: Any, tmp_path: Any) -> None:
    first = watch(tmp_path, Complex(net=Waves()), clip=clip)[0]
    assert first.verdict == "clipped" and 0.0 < first.post_clip_norm < first.total_norm


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8).bfloat16()
        self.head = nn.Linear(8, 1).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.first(inputs).bfloat16()).double()).float()


def test_parameters_of_several_dtypes_share_one_total(tmp_path: Any) -> None:
    module = Problem(net=Mixed(), optimizer=lambda params: torch.optim.SGD(params, lr=0.01, foreach=False))
    record = watch(tmp_path, module)[0]
    assert record.total_norm == pytest.approx(sum(norm**2 for norm in record.layer_norms) ** 0.5, rel=1e-6)


def test_parameter_groups_may_each_have_a_policy(tmp_path: Any) -> None:
    def grouped(params: Any) -> torch.optim.Optimizer:
        first, *rest = params
        groups = [{"params": [first], "name": "body"}, {"params": rest, "name": "head"}]
        return torch.optim.SGD(groups, lr=0.01)

    module = Problem(optimizer=grouped)
    records = watch(tmp_path, module, clip={"body": NormClip(0.1), "head": None})
    assert {record.verdict for record in records} == {"clipped"}
    assert float(module.net.first.weight.grad.norm()) == pytest.approx(0.1, rel=1e-4)
    assert float(module.net.second.weight.grad.norm()) > 0.1


def test_parameters_that_the_optimizer_does_not_hold_are_left_alone(tmp_path: Any) -> None:
    module = Problem(optimizer=lambda params: torch.optim.SGD(list(params)[2:], lr=0.01))
    records = watch(tmp_path, module, clip=NormClip(1e-3))
    assert records[0].layers == ("net.second", "net.head")
    assert float(module.net.first.weight.grad.norm()) > 1.0


def test_without_an_optimizer_there_is_nothing_to_do(tmp_path: Any) -> None:
    with pytest.warns(UserWarning, match="no optimizer"):
        records = watch(tmp_path, Problem(optimizer=lambda params: None))
    assert [(record.step, record.num_steps, record.total_norm) for record in records] == [
        (step, 0, 0.0) for step in (0, 1, 2, 4)
    ], "nothing steps, and the early records say so"
