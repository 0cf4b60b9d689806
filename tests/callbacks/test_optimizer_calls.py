"""An optimizer that asks for gradients again within one step: refused with a guard, said once without."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lightning_gradguard import GradGuard, GradientNormMonitor, NonFiniteGuard, NormClip
from tests.callbacks.test_optimizers import Net, batches


class Ascends(torch.optim.SGD):
    """Steps uphill, asks for gradients there, and steps down from where it was: under no name that tells so."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = [parameter for group in self.param_groups for parameter in group["params"]]
        with torch.enable_grad():
            closure()
        before = [parameter.clone() for parameter in params]
        torch._foreach_add_(params, [parameter.grad for parameter in params], alpha=1e-3)
        with torch.enable_grad():
            loss = closure()
        torch._foreach_copy_(params, before)
        super().step()
        return loss


class Wrapped(torch.optim.Optimizer):
    """The same, as a wrapper of another optimizer."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {})
        self.optimizer = torch.optim.SGD(self.param_groups[0]["params"], **options)

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
        return self.optimizer.step(closure)


class Twice(Net):
    def __init__(self, optimizer: Any = Ascends) -> None:
        super().__init__()
        self.make = optimizer

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=1e-3)


def line_search(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(params, lr=lr, max_iter=3)


@pytest.mark.parametrize("make", [Ascends, Wrapped])
@pytest.mark.parametrize("action", ["skip", "raise"])
def test_a_guard_refuses_it_when_the_second_call_comes(make_trainer, action, make):
    with pytest.raises(MisconfigurationException, match=f"NonFiniteGuard: {make.__name__} asks for gradients several"):
        make_trainer(callbacks=[NonFiniteGuard(action)]).fit(Twice(make), batches(3))


@pytest.mark.parametrize("make", [Ascends, Wrapped, line_search])
def test_without_a_guard_it_is_said_once_and_nothing_changes(make_trainer, make):
    weights = []
    for callbacks in ([GradientNormMonitor(log_every_n_steps=1)], []):
        module = Twice(make)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            make_trainer(callbacks=callbacks).fit(module, batches(3))
        assert len([w for w in told if "several times within one step" in str(w.message)]) == len(callbacks)
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_where_warnings_are_errors_the_run_goes_on(make_trainer):
    monitor = GradientNormMonitor(log_every_n_steps=1)
    make_trainer(callbacks=[monitor]).fit(Twice(), batches(3))
    assert [record.step for record in monitor.records] == [0, 1, 2, 2]  # the last one ends the run
    assert sum(record.num_steps for record in monitor.records) == 6


def test_each_of_its_gradients_is_clipped(make_trainer):
    class Notes(Twice):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.got.append(float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])))

        def on_train_batch_end(self, *ignored: Any) -> None:
            pass

    module = Notes()
    make_trainer(callbacks=[GradGuard(clip=NormClip(0.5), on_nonfinite=None)]).fit(module, batches(3))
    assert module.got == pytest.approx([0.5] * 6, rel=1e-4)


def test_torch_has_its_hooks_back_after_the_fit_however_it_ends(make_trainer):
    hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    make_trainer(callbacks=[GradientNormMonitor()]).fit(Net(), batches(1))
    with pytest.raises(MisconfigurationException):
        make_trainer(callbacks=[NonFiniteGuard("skip")]).fit(Twice(), batches(1))
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == hooks


def with_compiled_step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    return optimizer


class Compiled(Net):
    def configure_optimizers(self) -> Any:
        return with_compiled_step(super().configure_optimizers())


class CompiledLater(Net):
    def on_train_epoch_start(self) -> None:
        with_compiled_step(self.trainer.optimizers[0])


@pytest.mark.parametrize("compiled", [Compiled, CompiledLater])
def test_a_compiled_step_is_watched_clipped_and_guarded_like_any_other(make_trainer, compiled):
    found = []
    for make in (compiled, Net):
        module, guard = make(), GradGuard(clip=NormClip(0.1), log_every_n_steps=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_trainer(callbacks=[guard]).fit(module, batches(4, bad=(2,)))
        found.append(([r.verdict for r in guard.records], [r.total_norm for r in guard.records][:2], module.got))
    assert found[0] == found[1]
    assert found[0][0] == ["clipped", "clipped", "skipped", "clipped"]


class CompiledByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.all_of_it = torch.compile(self.by_hand, backend="eager")

    def by_hand(self, batch: Any) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.net(batch[0]).square().mean())
        self.optimizers().step()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.all_of_it(batch)


def test_a_compiled_function_that_runs_backward_and_steps_is_watched(make_trainer):
    weights = []
    for callbacks in ([], [GradGuard(log_every_n_steps=1)]):
        torch.manual_seed(0)
        module = CompiledByHand()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_trainer(callbacks=callbacks).fit(module, batches(4))
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(map(torch.equal, *weights))
    assert len(callbacks[0].records) == 4
