"""A NaN that arrives as an exception, in a real fit."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.distributions import Independent, LowRankMultivariateNormal, Normal

from lightning_gradguard import GradGuard, NonFiniteGuard
from tests.guard.models import Norms, all_finite, fill, half_precision, numbered, state
from tests.models import Pair, batches, same

SAYS_SO = pytest.mark.filterwarnings(
    "ignore:step .* was", "ignore:.* after its step was", "ignore:Anomaly Detection has been enabled"
)


class Validating(Norms):
    """As a model with ``torch.distributions`` does, raises where what it computes is not finite; or another thing."""

    error = None
    where = "training_step"

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.where == "training_step":
            if self.error is not None and batch_idx in self.error:
                raise self.error[batch_idx]
            torch.distributions.Normal(loss, 1.0)
        return loss

    def backward(self, loss, *args, **kwargs):
        super().backward(loss, *args, **kwargs)
        if self.where == "backward" and not loss.isfinite():
            raise RuntimeError("gradients are wrong")

    def on_before_optimizer_step(self, optimizer):
        if self.where == "optimizer" and not self.trainer.callback_metrics["loss"].isfinite():
            raise RuntimeError("Loss is NaN, training stopped")


def spoiled(*bad, where="training_step"):
    torch.manual_seed(0)
    model = Validating(dict.fromkeys(bad, fill(math.nan)))
    model.where = where
    return model


def fit(make_trainer, model, guard, loader=None, **options):
    states = []
    model.on_train_batch_end = lambda *args: states.append(state(model))
    trainer = make_trainer(callbacks=[guard], **options)
    trainer.fit(model, loader or numbered())
    return trainer, states


@pytest.mark.parametrize("where", ["training_step", "backward", "optimizer"])
def test_it_is_dropped_counted_announced_and_the_training_goes_on(make_trainer, where):
    model, guard = spoiled(3, where=where), GradGuard(log_every_n_steps=1)
    with pytest.warns(UserWarning) as said:
        trainer, states = fit(make_trainer, model, guard)
    assert any("step 3 was skipped: " in str(one.message) for one in said)
    assert any("after its step was dropped" in str(one.message) for one in said) == (where == "optimizer")
    bad = guard.records[3]
    assert (bad.step, bad.verdict, bad.skipped_total) == (3, "skipped", 1)
    assert guard.records[-1].skipped_total == 1
    assert same(states[3], states[2])
    assert not same(states[4], states[3])
    assert all_finite(states[-1])
    assert trainer.global_step == 8
    assert model._current_fx_name is None
    loop = trainer.fit_loop.epoch_loop
    assert "run" not in {**loop.automatic_optimization.__dict__, **loop.manual_optimization.__dict__}


def test_it_says_what_was_not_finite_and_where(make_trainer, tmp_path):
    class Batch(Validating):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                batch[0][1, 2] = math.nan
            return super().training_step(batch, batch_idx)

    guard = NonFiniteGuard(incident_dir=tmp_path / "incidents")
    with pytest.warns(UserWarning, match=r"ValueError, and batch\[0\] holds 1 NaN at \[1, 2\].* Saved to"):
        fit(make_trainer, Batch(), guard)
    assert (tmp_path / "incidents" / "step-000003-opt0" / "report.md").exists()
    assert guard.records[3].cause == "exception"


@SAYS_SO
def test_it_ends_at_the_weights_of_a_run_that_met_a_nan_gradient_there(make_trainer):
    ends = []
    for where in ("training_step", "nowhere"):
        _, states = fit(make_trainer, spoiled(3, where=where), NonFiniteGuard())
        ends.append(states[-1])
    assert same(*ends)


@SAYS_SO
@pytest.mark.parametrize("bad", [3, 4, 5])
def test_accumulation_drops_the_whole_window_once(make_trainer, bad):
    guard = NonFiniteGuard()
    _, states = fit(make_trainer, spoiled(bad), guard, numbered(9), accumulate_grad_batches=3)
    assert same(states[5], states[2])
    assert not same(states[8], states[5])
    assert [record.verdict for record in guard.records] == ["ok", "skipped", "ok"]


@SAYS_SO
def test_a_live_loss_scaler_goes_on(make_trainer):
    for where in ("training_step", "backward", "optimizer"):
        _, states = fit(make_trainer, spoiled(3, where=where), NonFiniteGuard(), plugins=half_precision())
        assert not same(states[5], states[3])
        assert all_finite(states[-1])


@SAYS_SO
def test_the_anomaly_mode_of_autograd_ends_no_run(make_trainer):
    class Root(Norms):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + (loss * 0.0).sqrt() if batch_idx == 3 else loss

    _, states = fit(make_trainer, Root(), NonFiniteGuard(), detect_anomaly=True)
    assert same(states[3], states[2])


@SAYS_SO
def test_rollback_and_stop_do_as_with_any_other_fault(make_trainer):
    rolled = NonFiniteGuard("rollback", rollback_after=2)
    fit(make_trainer, spoiled(3, 4), rolled)
    assert [record.verdict for record in rolled.records][3:5] == ["skipped", "rolled_back"]
    assert len(fit(make_trainer, spoiled(3), NonFiniteGuard("stop"))[1]) == 4


@SAYS_SO
def test_raise_and_patience_let_the_models_own_error_through_with_a_note(make_trainer):
    with pytest.raises(ValueError, match="Expected parameter loc") as caught:
        fit(make_trainer, spoiled(3), NonFiniteGuard("raise"))
    assert "the step ended in an exception: " in caught.value.__notes__[0]
    assert "step 3, optimizer 0" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="Expected parameter loc") as caught:
        fit(make_trainer, spoiled(2, 3, 4), NonFiniteGuard(patience=3))
    assert "This was bad step 3 in a row (patience)" in caught.value.__notes__[0]


def test_the_users_own_exception_passes_untouched(make_trainer):
    model, own = spoiled(), ValueError("the user's own trouble")
    model.error = {3: own}
    guard = NonFiniteGuard()
    with pytest.raises(ValueError, match="own trouble") as caught:
        fit(make_trainer, model, guard)
    assert caught.value is own
    assert not hasattr(own, "__notes__")
    assert {record.verdict for record in guard.records} == {"ok"}


def test_under_manual_optimization_it_goes_on_its_way_with_a_note(make_trainer):
    class Raising(Pair):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                torch.distributions.Normal(batch * math.nan, 1.0)
            super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="Expected parameter loc") as caught:
        make_trainer(callbacks=[NonFiniteGuard()]).fit(Raising(), batches())
    assert "Under manual optimization half a step may have been taken" in caught.value.__notes__[0]


class Fussy(torch.optim.SGD):
    """Moves a weight, and raises at its fourth step with a NaN in a variable."""

    steps = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.steps += 1
        if self.steps == 4:
            quotient = torch.tensor(math.nan)
            raise FloatingPointError(f"{quotient}")
        return loss


@SAYS_SO
def test_an_optimizer_that_raises_half_way_ends_the_run_unless_there_is_a_way_back(make_trainer):
    def model():
        return Norms(optimizer=lambda params: Fussy(params, lr=0.01))

    with pytest.raises(FloatingPointError) as caught:
        fit(make_trainer, model(), NonFiniteGuard())
    assert "The optimizer has begun its step" in caught.value.__notes__[0]
    guard = NonFiniteGuard("rollback", snapshot_every_n_steps=1)
    _, states = fit(make_trainer, model(), guard)
    assert len(states) == 8


@SAYS_SO
def test_probes_are_off_the_model_after_it(make_trainer):
    model = spoiled(0)
    seen = []
    model.on_train_batch_end = lambda *args: seen.append(any(m._forward_hooks for m in model.modules()))
    make_trainer(callbacks=[GradGuard()]).fit(model, numbered(3))
    assert isinstance(model.net[0], nn.Linear)
    assert seen == [False] * 3


class Prior(Norms):
    """As probabilistic models do, it has a parameter of a distribution; the update of batch 3 overflows it."""

    def __init__(self):
        super().__init__(optimizer=lambda params: torch.optim.SGD(params, lr=0.01))
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def training_step(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 3e38 if batch_idx == 3 else 0.01
        prior = torch.distributions.Normal(0.0, self.scale)
        return super().training_step(batch, batch_idx) - 10.0 * prior.log_prob(torch.ones(1)).sum()


@SAYS_SO
def test_a_parameter_of_a_distribution_that_overflowed_is_named_and_rolled_back(make_trainer):
    model, guard = Prior(), NonFiniteGuard("rollback", snapshot_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"step 4 was rolled back: ValueError, and the weight 'scale' holds 1 Inf"):
        make_trainer(callbacks=[guard]).fit(model, numbered())
    assert [record.verdict for record in guard.records][4] == "rolled_back"
    assert all_finite(model.state_dict().values())


class NeedsGradients(torch.optim.Optimizer):
    """As Adai and AdamS of pytorch_optimizer: averages over all parameters, and fails where none has a gradient."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr, "steps": 0})

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["steps"] += 1
            present = [p for p in group["params"] if p.grad is not None]
            mean = sum(float(p.grad.square().sum()) for p in present) / sum(p.numel() for p in present)
            with torch.no_grad():
                for parameter in present:
                    parameter.add_(parameter.grad, alpha=-group["lr"] / (1.0 + mean))
        return loss


@SAYS_SO
@pytest.mark.parametrize("action", ["skip", "rollback"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_optimizer_that_fails_without_gradients_does_not_end_a_run_whose_step_was_dropped(
    make_trainer, action, accumulate
):
    model, guard = Norms({4: fill(math.nan)}), NonFiniteGuard(action)
    model.configure_optimizers = lambda: NeedsGradients(model.parameters())
    trainer, states = fit(make_trainer, model, guard, accumulate_grad_batches=accumulate)
    verdicts = [record.verdict for record in guard.records]
    bad = 4 // accumulate
    assert verdicts == ["ok"] * bad + ["skipped"] + ["ok"] * (8 // accumulate - bad - 1)
    assert trainer.global_step == 8 // accumulate
    assert trainer.optimizers[0].param_groups[0]["steps"] == 8 // accumulate - 1
    assert all_finite(states[-1])


@SAYS_SO
@pytest.mark.parametrize("function", [torch.linalg.svdvals, torch.linalg.pinv, torch.linalg.eig])
def test_a_matrix_without_a_name_is_told_by_torchs_own_words(make_trainer, function):
    model, guard = spoiled(), NonFiniteGuard()
    plain = model.training_step

    def training_step(batch, batch_idx):
        if batch_idx == 3:
            function(torch.full((3, 3), math.nan))
        return plain(batch, batch_idx)

    model.training_step = training_step
    with pytest.warns(UserWarning, match="the matrix that torch.linalg was given"):
        fit(make_trainer, model, guard)
    assert [record.verdict for record in guard.records].count("skipped") == 1


class Hooked(Norms):
    """Has a hook of its own after ours that cannot do without gradients, or that looks at the loss."""

    def __init__(self, bad, raises):
        super().__init__(bad)
        self.raises = raises

    def on_before_optimizer_step(self, optimizer):
        if self.raises is None:
            [parameter.grad.norm() for parameter in self.parameters()]
        elif not self.trainer.callback_metrics["loss"].isfinite():
            raise self.raises


@pytest.mark.parametrize(
    "raises", [None, ValueError("loss is not finite")], ids=["wants gradients", "looks at the loss"]
)
@pytest.mark.parametrize("action", ["skip", "rollback"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_hook_that_raises_after_a_dropped_step_neither_ends_the_run_nor_makes_a_second_record(
    make_trainer, accumulate, action, raises
):
    model, guard = Hooked({5: fill(math.nan)}, raises), GradGuard(on_nonfinite=action, log_every_n_steps=1)
    with pytest.warns(UserWarning) as said:
        trainer, states = fit(make_trainer, model, guard, accumulate_grad_batches=accumulate)
    bad = 5 // accumulate
    skipped = [record.step for record in guard.records if record.verdict == "skipped"]
    assert (skipped, [record.step for record in guard.records]) == ([bad], list(range(8 // accumulate)))
    assert guard.records[-1].skipped_total == 1
    assert trainer.global_step == 8 // accumulate
    assert all_finite(states[-1])
    assert sum("for want of the gradients" in str(one.message) for one in said) == (raises is None)


def test_a_hook_that_raises_after_an_overflow_keeps_the_loss_scaler_from_nothing(make_trainer):
    model = Hooked(dict.fromkeys((2, 5), fill(math.nan)), ValueError("loss is not finite"))
    guard = GradGuard(log_every_n_steps=1)
    trainer, _ = fit(make_trainer, model, guard, plugins=[half_precision(2.0**10)])
    assert [record.step for record in guard.records if record.verdict == "overflow"] == [2, 5]
    assert len(guard.records) == trainer.global_step == 8
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**8


def test_a_hook_that_fails_for_want_of_gradients_is_told_of_once(make_trainer):
    model, guard = Hooked(dict.fromkeys((2, 5), fill(math.nan)), None), GradGuard(log_every_n_steps=1)
    with pytest.warns(UserWarning) as said:
        fit(make_trainer, model, guard)
    assert sum("for want of the gradients" in str(one.message) for one in said) == 1
    assert [record.step for record in guard.records if record.verdict == "skipped"] == [2, 5]


def test_a_hook_that_always_fails_ends_the_run_as_without_us(make_trainer):
    model = Hooked({}, None)
    model.extra = nn.Parameter(torch.ones(1))  # has never a gradient
    with pytest.raises(AttributeError, match="NoneType"):
        fit(make_trainer, model, GradGuard())


def cholesky_of_a_nan(batch):
    torch.linalg.cholesky(batch.T @ batch * math.nan)


def no_matrix_for_cholesky(batch):
    torch.linalg.cholesky(-batch.T @ batch)


def shapes_that_do_not_fit(batch):
    torch.full((3, 3), math.nan).sum()
    return batch @ torch.ones(3, 3)


@SAYS_SO
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_nan_that_nothing_holds_is_found_where_incidents_are_saved(make_trainer, tmp_path, accumulate):
    model, guard = spoiled(), NonFiniteGuard(incident_dir=tmp_path)
    raise_at(model, 3, cholesky_of_a_nan)
    with pytest.warns(UserWarning, match="what torch.linalg.cholesky was given holds 16 NaN"):
        _, states = fit(make_trainer, model, guard, accumulate_grad_batches=accumulate)
    assert [record.cause for record in guard.records if record.cause] == ["exception"]
    assert len(list(tmp_path.iterdir())) == 1
    assert all_finite(states[-1])


@pytest.mark.parametrize("own", [no_matrix_for_cholesky, shapes_that_do_not_fit])
def test_an_error_of_a_function_that_was_given_no_nan_passes_untouched(make_trainer, tmp_path, own):
    model, guard = spoiled(), NonFiniteGuard(incident_dir=tmp_path)
    raise_at(model, 3, own)
    with pytest.raises(RuntimeError) as caught:
        fit(make_trainer, model, guard)
    assert not hasattr(caught.value, "__notes__")
    assert not list(tmp_path.iterdir())


def raise_at(model, index, function):
    plain = model.training_step

    def training_step(batch, batch_idx):
        if batch_idx == index:
            function(batch[0])
        return plain(batch, batch_idx)

    model.training_step = training_step


@SAYS_SO
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_callback_that_raises_after_a_bad_step_is_not_blamed_on_what_is_left_of_that(make_trainer, action):
    class Own(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 5:
                raise RuntimeError("the callback's own trouble")

    model, guard = Norms({3: fill(math.nan), 4: fill(math.nan)}), GradGuard(on_nonfinite=action, log_every_n_steps=1)
    with pytest.raises(RuntimeError, match="own trouble") as caught:
        make_trainer(callbacks=[guard, Own()]).fit(model, numbered())
    assert not hasattr(caught.value, "__notes__")
    assert [record.cause for record in guard.records if record.cause] == ["nan", "nan"]


def plan_of_a_robot(hidden):  # mees/calvin: mean and deviation of a plan
    return Independent(Normal(hidden, 1.0), 1).rsample().sum()


def covariance_of_a_segmentation(hidden):  # biomedia-mira/stochastic_segmentation_networks
    noise = LowRankMultivariateNormal(torch.zeros(4), hidden[:4, :1], torch.ones(4))
    return noise.rsample().sum()


def density_of_a_mixture(hidden):  # ldeecke/gmm-torch: a part of a tensor, in the middle of an expression
    var = torch.stack([hidden.T @ hidden + torch.eye(hidden.shape[1])])[None]
    return 2 * torch.log(torch.diagonal(torch.linalg.cholesky(var[0, 0]))).sum()


def next_word(hidden):  # a policy or a language model that samples
    probabilities = hidden.softmax(-1)
    return torch.multinomial(probabilities, 1).sum() + hidden.sum()


class Ranger(torch.optim.SGD):
    """Calls its closure first, by itself, as the optimizer of sktime/pytorch-forecasting does."""

    def step(self, closure=None):
        _ = closure()
        super().step()


@SAYS_SO
@pytest.mark.parametrize(
    "head", [plan_of_a_robot, covariance_of_a_segmentation, density_of_a_mixture, next_word], ids=lambda f: f.__name__
)
def test_models_of_public_reports_go_on_past_a_batch_of_nan(make_trainer, head):
    class Reported(Norms):
        def training_step(self, batch, batch_idx):
            hidden = self.net(batch[0] * (math.nan if batch_idx == 3 else 1.0))
            return super().training_step(batch, batch_idx) + 0.0 * head(hidden).nan_to_num()

    model, guard = Reported(optimizer=lambda params: Ranger(params, lr=0.01)), GradGuard(log_every_n_steps=1)
    trainer, states = fit(make_trainer, model, guard)
    assert [(record.step, record.cause) for record in guard.records if record.cause] == [(3, "exception")]
    assert same(states[3], states[2])
    assert all_finite(states[-1])
    assert trainer.global_step == 8


@pytest.mark.parametrize("where", ["on_train_batch_start", "on_train_batch_end", "validation_step"])
def test_what_is_raised_outside_of_the_step_passes_untouched(make_trainer, where):
    def validate(*args):
        Normal(torch.tensor(math.nan), 1.0)

    model = Norms()
    setattr(model, where, validate)
    loaders = {"val_dataloaders": numbered(2)} if where == "validation_step" else {}
    with pytest.raises(ValueError, match="Expected parameter loc") as caught:
        make_trainer(callbacks=[NonFiniteGuard()]).fit(model, numbered(), **loaders)
    assert not hasattr(caught.value, "__notes__")


def test_a_loader_that_fails_after_a_bad_batch_passes_untouched(make_trainer):
    class Failing(torch.utils.data.IterableDataset):
        def __iter__(self):
            for index, batch in enumerate(numbered()):
                if index == 6:  # it is fetched one ahead
                    raise OSError("the disk is gone")
                yield batch

    guard = NonFiniteGuard()
    loader = torch.utils.data.DataLoader(Failing(), batch_size=None)
    with pytest.warns(UserWarning, match="step 4 was skipped"), pytest.raises(OSError, match="disk") as caught:
        make_trainer(callbacks=[guard]).fit(Norms({4: fill(math.nan)}), loader)
    assert not hasattr(caught.value, "__notes__")
