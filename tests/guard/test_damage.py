"""What a bad step leaves behind in a real fit: nothing; and what brings the last good state back."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_gradguard import GradGuard, NonFiniteGradientError, NonFiniteGuard
from lightning_gradguard.spikes import SpikeRule
from tests.guard.models import Norms, all_finite, fill, half_precision, numbered, state
from tests.lightning_versions import ON_EXCEPTION
from tests.models import Pair, Regression, batches, same, weights

ALL_GONE = pytest.mark.filterwarnings(
    "ignore:step . was",
    "ignore:step .. was",
    "ignore:weights were not finite",
    "ignore:weights are not finite",
    "ignore:.*fit.ckpt_path=",  # of OnExceptionCheckpoint
)

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
    "fused adamw": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
}


def watch_states(model, states):
    """Notes parameters and buffers after every batch."""
    model.on_train_batch_end = lambda *args: states.append(state(model))
    return model


@ALL_GONE
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_dropped_step_changes_neither_weights_nor_running_statistics(make_trainer, optimizer, value):
    states = []
    model = watch_states(Norms({3: fill(value)}, optimizer), states)
    make_trainer(callbacks=[NonFiniteGuard()]).fit(model, numbered())
    assert all(map(all_finite, states))
    assert same(states[3], states[2])
    assert not same(states[4], states[3])


@ALL_GONE
def test_without_the_guard_the_running_statistics_are_lost_so_the_test_above_can_fail(make_trainer):
    model = Norms({3: fill(math.nan)})
    make_trainer().fit(model, numbered())
    assert not model.net[1].running_mean.isfinite().all()


@ALL_GONE
def test_a_batch_that_spoils_only_buffers_is_dropped_as_well(make_trainer):
    def huge(x):
        return torch.where(torch.arange(len(x)).view(-1, 1) == 0, 3e25, x)

    guard = NonFiniteGuard()
    states = []
    model = watch_states(Norms({3: huge}), states)
    make_trainer(callbacks=[guard]).fit(model, numbered())
    bad = next(record for record in guard.records if record.step == 3)
    assert (bad.verdict, bad.cause) == ("skipped", "buffer")
    assert same(states[3], states[2])
    assert all_finite(states[-1])


@ALL_GONE
def test_a_fused_optimizer_that_leaves_bad_steps_out_by_itself_ends_at_the_same_weights(make_trainer):
    ends, steps = [], []
    for on_device in (True, False):
        torch.manual_seed(0)
        model = Norms({2: fill(math.nan), 3: fill(math.inf), 6: fill(math.nan)}, OPTIMIZERS["fused adamw"])
        guard = NonFiniteGuard(on_device=on_device)
        make_trainer(callbacks=[guard]).fit(model, numbered(9))
        ends.append(state(model))
        steps.append([record.step for record in guard.records if record.verdict == "skipped"])
    assert same(*ends)
    assert all_finite(ends[0])
    assert steps == [[2, 3, 6]] * 2


@ALL_GONE
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_lr_on_skip": True}, "hold_lr_on_skip needs to know of a bad step at once"),
        ({"action": "rollback"}, "on_device=True drops steps without asking the host, and action 'rollback' needs it"),
    ],
    ids=["hold_lr_on_skip", "rollback"],
)
def test_what_cannot_be_dropped_on_the_device_is_refused_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        NonFiniteGuard(**options, on_device=True)


@ALL_GONE
def test_accumulation_drops_the_window_and_puts_statistics_back_to_before_it(make_trainer):
    states = []
    model = watch_states(Norms({4: fill(math.nan)}), states)
    make_trainer(callbacks=[NonFiniteGuard()], accumulate_grad_batches=3).fit(model, numbered(9))
    assert same(states[5], states[2])
    assert not same(states[8], states[5])
    assert all_finite(states[-1])


class TestRollback:
    @ALL_GONE
    def test_goes_back_after_k_bad_steps_in_a_row(self, make_trainer):
        states = []
        model = watch_states(Norms(dict.fromkeys((3, 4, 5), fill(math.nan))), states)
        guard = NonFiniteGuard("rollback", rollback_after=3, snapshot_every_n_steps=2)
        make_trainer(callbacks=[guard]).fit(model, numbered())
        assert [record.verdict for record in guard.records] == ["ok"] * 3 + ["skipped", "skipped", "rolled_back"] + [
            "ok"
        ] * 2
        assert same(states[4], states[2])
        # The second snapshot was made at the second good step, of the weights that it had not moved yet.
        assert same(states[5][:-3], states[0][:-3])
        assert all_finite(states[-1])

    @ALL_GONE
    @pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_goes_back_at_once_if_a_parameter_is_not_finite(self, make_trainer, optimizer):
        class Breaking(Norms):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                if batch_idx == 4:
                    with torch.no_grad():
                        self.net[0].weight[0, 0] = math.nan

        guard = NonFiniteGuard("rollback", rollback_after=10, snapshot_every_n_steps=1)
        model = Breaking({}, optimizer)
        make_trainer(callbacks=[guard]).fit(model, numbered())
        assert [record.verdict for record in guard.records] == ["ok"] * 5 + ["rolled_back"] + ["ok"] * 2
        assert all_finite(state(model))

    @ALL_GONE
    def test_skipping_cannot_help_there_and_says_so(self, make_trainer):
        class Breaking(Norms):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                if batch_idx == 1:
                    with torch.no_grad():
                        self.net[0].weight[0, 0] = math.nan

        with pytest.raises(NonFiniteGradientError, match="A parameter is not finite, so dropping steps cannot help"):
            make_trainer(callbacks=[NonFiniteGuard(patience=3)]).fit(Breaking(), numbered())

    @ALL_GONE
    def test_the_learning_rate_goes_on(self, make_trainer):
        rates = []

        class Scheduled(Regression):
            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
                scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

            def on_train_batch_end(self, *args):
                rates.append(self.optimizers().param_groups[0]["lr"])

        model = Scheduled(dict.fromkeys((3, 4), math.nan))
        guard = NonFiniteGuard("rollback", rollback_after=2, snapshot_every_n_steps=1)
        make_trainer(callbacks=[guard]).fit(model, batches())
        assert "rolled_back" in {record.verdict for record in guard.records}
        assert rates == [0.5**n for n in range(1, 9)]

    @ALL_GONE
    def test_a_run_that_does_not_recover_ends(self, make_trainer):
        model = Norms(dict.fromkeys(range(2, 8), fill(math.nan)))
        guard = NonFiniteGuard("rollback", patience=5, rollback_after=2)
        with pytest.raises(NonFiniteGradientError, match="bad step 5 in a row"):
            make_trainer(callbacks=[guard]).fit(model, numbered())
        assert all_finite(state(model))

    @ALL_GONE
    def test_with_two_optimizers_both_go_back(self, make_trainer):
        model = Pair(dict.fromkeys((3, 4), math.nan))
        guard = NonFiniteGuard("rollback", rollback_after=2)
        initial = weights(model)
        make_trainer(callbacks=[guard], max_steps=9).fit(model, batches())
        rolled = [(record.step, record.optimizer) for record in guard.records if record.verdict == "rolled_back"]
        assert rolled == [(4, 0)]
        assert same(weights(model)[:2], initial[:2])

    def test_a_checkpoint_loaded_before_the_fit_is_the_first_snapshot(self, make_trainer, tmp_path):
        first = make_trainer(enable_checkpointing=False)
        first.fit(Norms(), numbered())
        first.save_checkpoint(tmp_path / "half.ckpt")
        saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
        torch.manual_seed(9)
        model = Norms(dict.fromkeys(range(8), fill(math.nan)))
        guard = NonFiniteGuard("rollback", rollback_after=1)
        with pytest.warns(UserWarning, match="step 8 was rolled back"):
            make_trainer(callbacks=[guard], max_epochs=2).fit(model, numbered(), ckpt_path=tmp_path / "half.ckpt")
        assert same([model.state_dict()[name] for name in saved], list(saved.values()))


class Exploding(Regression):
    """Finite gradients, and a learning rate at batch 3 with which the update overflows."""

    def training_step(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 3e38 if batch_idx == 3 else 0.01
        return super().training_step(batch, batch_idx) * (1e3 if batch_idx == 3 else 1.0)


class TestCheckpoints:
    """No checkpoint with a NaN in it, whatever goes wrong and whenever it is written."""

    @staticmethod
    def savers(tmp_path):
        return [
            ModelCheckpoint(tmp_path / "steps", save_last=True, every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(tmp_path / "thin", every_n_train_steps=2, save_top_k=-1, save_weights_only=True),
            ModelCheckpoint(tmp_path / "exception", every_n_epochs=1, **ON_EXCEPTION),
            OnExceptionCheckpoint(tmp_path / "other"),
        ]

    @staticmethod
    def assert_finite(tmp_path, at_least):
        paths = list(tmp_path.rglob("*.ckpt"))
        assert len(paths) >= at_least
        for path in paths:
            for value in torch.load(path, weights_only=True)["state_dict"].values():
                assert value.isfinite().all(), path

    @ALL_GONE
    @pytest.mark.parametrize("action", ["skip", "rollback", "stop", "raise"])
    def test_with_a_nan_batch(self, make_trainer, tmp_path, action):
        callbacks = [*self.savers(tmp_path), NonFiniteGuard(action)]
        trainer = make_trainer(callbacks=callbacks, enable_checkpointing=True)
        try:
            trainer.fit(Norms({3: fill(math.nan)}), numbered())
        except NonFiniteGradientError:
            assert action == "raise"
        self.assert_finite(tmp_path, at_least=6)

    @ALL_GONE
    def test_when_finite_gradients_give_weights_that_are_not(self, make_trainer, tmp_path):
        trainer = make_trainer(callbacks=[*self.savers(tmp_path), NonFiniteGuard()], enable_checkpointing=True)
        with pytest.raises(NonFiniteGradientError, match="weights are not finite after step 4: no checkpoint was"):
            trainer.fit(Exploding(), batches())
        self.assert_finite(tmp_path, at_least=5)

    @ALL_GONE
    def test_then_a_rollback_comes_before_the_checkpoint(self, make_trainer, tmp_path):
        guard = NonFiniteGuard("rollback", snapshot_every_n_steps=1)
        trainer = make_trainer(callbacks=[*self.savers(tmp_path), guard], enable_checkpointing=True)
        with pytest.warns(UserWarning, match="weights were not finite when a checkpoint was due: rolled back before"):
            trainer.fit(Exploding(), batches())
        assert trainer.global_step == 8
        self.assert_finite(tmp_path, at_least=14)

    @ALL_GONE
    def test_with_a_nan_in_a_parameter_and_an_exception(self, make_trainer, tmp_path):
        class Failing(Norms):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                if batch_idx == 3:
                    with torch.no_grad():
                        self.net[0].weight.fill_(math.nan)
                    raise KeyError("the user's own trouble")

        trainer = make_trainer(callbacks=[*self.savers(tmp_path), NonFiniteGuard()], enable_checkpointing=True)
        with (
            pytest.raises(KeyError, match="own trouble"),
            pytest.warns(UserWarning, match="weights are not finite after step 4: no checkpoint was written"),
        ):
            trainer.fit(Failing(), numbered())
        self.assert_finite(tmp_path, at_least=6)

    @pytest.mark.filterwarnings("ignore:hold_lr_on_skip=True has no effect")
    def test_trainer_and_module_are_as_they_were_after_the_fit(self, make_trainer, tmp_path):
        trainer = make_trainer(callbacks=[NonFiniteGuard(hold_lr_on_skip=True)])
        model = Norms()
        trainer.fit(model, numbered())
        assert "save_checkpoint" not in trainer.__dict__
        assert "lr_scheduler_step" not in model.__dict__
        with torch.no_grad():
            model.net[0].weight.fill_(math.nan)
        with pytest.raises(NonFiniteGradientError, match="no checkpoint was written"):
            trainer.save_checkpoint(tmp_path / "by-hand.ckpt")
        assert not (tmp_path / "by-hand.ckpt").exists()

    @ALL_GONE
    def test_a_second_fit_after_an_exception_guards_once(self, make_trainer):
        trainer = make_trainer(callbacks=[NonFiniteGuard("raise")])
        for _ in range(2):
            with pytest.raises(NonFiniteGradientError):
                trainer.fit(Norms({1: fill(math.nan)}), numbered())
            assert "save_checkpoint" not in trainer.__dict__


class TestSchedules:
    @staticmethod
    def rates(make_trainer, guard, interval="step", plugin=None, bad=math.nan):
        rates = []

        class Scheduled(Regression):
            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
                scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

            def on_train_batch_start(self, *args):
                rates.append(round(math.log2(1e-3 / self.optimizers().param_groups[0]["lr"])))

        options = {} if plugin is None else {"plugins": plugin}
        make_trainer(callbacks=[guard], max_epochs=2, **options).fit(Scheduled({2: bad, 3: bad}), batches(4))
        return rates

    @ALL_GONE
    def test_go_on_by_default_as_lightnings_do(self, make_trainer):
        assert self.rates(make_trainer, NonFiniteGuard()) == list(range(8))

    @ALL_GONE
    def test_wait_where_it_is_asked_for(self, make_trainer):
        assert self.rates(make_trainer, NonFiniteGuard(hold_lr_on_skip=True)) == [0, 1, 2, 2, 2, 3, 4, 4]

    @ALL_GONE
    @pytest.mark.filterwarnings("ignore:hold_lr_on_skip=True has no effect")
    def test_by_epoch_they_do_not_wait(self, make_trainer):
        assert self.rates(make_trainer, NonFiniteGuard(hold_lr_on_skip=True), "epoch") == [0] * 4 + [1] * 4

    def test_wait_for_steps_that_the_loss_scaler_drops_too(self, make_trainer):
        guard = NonFiniteGuard(hold_lr_on_skip=True)
        assert self.rates(make_trainer, guard, plugin=half_precision(), bad=math.inf) == [0, 1, 2, 2, 2, 3, 4, 4]


class TestSpikes:
    @ALL_GONE
    def test_a_ruinous_batch_is_dropped_like_a_nan(self, make_trainer):
        rule = SpikeRule(warmup=8)
        model = Regression({12: 1e6})
        before = []
        model.on_train_batch_end = lambda *args: before.append(weights(model))
        guard = NonFiniteGuard(spikes=rule)
        make_trainer(callbacks=[guard], max_epochs=1).fit(model, batches(16))
        bad = next(record for record in guard.records if record.step == 12)
        assert (bad.verdict, bad.cause, bad.findings[-1].rule) == ("skipped", "spike", "spike")
        assert "gradient norm" in bad.findings[-1].message
        assert "loss" in bad.findings[-1].message
        assert same(before[12], before[11])
        assert {record.verdict for record in guard.records if record.step != 12} == {"ok"}

    def test_reporting_only_makes_a_record_and_drops_nothing(self, make_trainer):
        guard = NonFiniteGuard(spikes=SpikeRule(warmup=8, drop=False))
        trainer = make_trainer(callbacks=[GradGuard(on_nonfinite=None, log_every_n_steps=1000), guard])
        trainer.fit(Regression({12: 1e6}), batches(16))
        bad = next(record for record in guard.records if record.step == 12)
        assert bad.verdict == "ok"
        assert bad.findings[-1].rule == "spike"

    def test_the_loss_alone_can_be_a_spike(self, make_trainer):
        class Offset(Regression):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) + (1e4 if batch_idx == 12 else 0.0)

        guard = NonFiniteGuard(spikes=SpikeRule(warmup=8))
        with pytest.warns(UserWarning, match=r"step 12 was skipped: loss 1e\+04 is"):
            make_trainer(callbacks=[guard]).fit(Offset(), batches(16))

    def test_the_loss_is_compared_without_the_loss_scale(self, make_trainer):
        growing = torch.amp.GradScaler("cpu", init_scale=1.0, growth_factor=1024.0, growth_interval=10)
        guard = NonFiniteGuard(spikes=SpikeRule(warmup=8), loss_scale_floor=1e-9)
        plugin = MixedPrecision("16-mixed", "cpu", growing)
        make_trainer(callbacks=[guard], plugins=plugin).fit(Regression(), batches(16))
        assert max(record.loss_scale for record in guard.records) == 1024.0
        assert "spike" not in {record.cause for record in guard.records}

    def test_is_off_by_default(self, make_trainer):
        guard = NonFiniteGuard()
        make_trainer(callbacks=[guard]).fit(Regression({12: 1e6}), batches(16))
        assert {record.verdict for record in guard.records} == {"ok"}

    def test_what_is_usual_survives_a_resume(self, make_trainer, tmp_path):
        guard = NonFiniteGuard(spikes=SpikeRule(warmup=8))
        trainer = make_trainer(callbacks=[guard])
        trainer.fit(Regression(), batches(16))
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        guard = NonFiniteGuard(spikes=SpikeRule(warmup=8))
        with pytest.warns(UserWarning, match="step 16 was skipped: gradient norm"):
            make_trainer(callbacks=[guard], max_epochs=2).fit(
                Regression({0: 1e6}), batches(16), ckpt_path=tmp_path / "half.ckpt"
            )


class Sam(torch.optim.SGD):
    """The shape of a SAM optimizer as it is commonly written."""

    def first_step(self):
        """Climbs."""

    def second_step(self):
        """Descends."""


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (lambda params: torch.optim.LBFGS(params), "LBFGS evaluates the loss many times in one step"),
        (lambda params: Sam(params, lr=0.1), r"Sam steps twice in one step \(first_step, second_step\)"),
    ],
    ids=["lbfgs", "sam"],
)
def test_optimizers_whose_step_cannot_be_dropped_half_way_are_refused(make_trainer, optimizer, reason):
    with pytest.raises(Exception, match=f"NonFiniteGuard: optimizer 0: {reason}") as caught:
        make_trainer(callbacks=[NonFiniteGuard()]).fit(Regression(optimizer=optimizer), batches())
    assert type(caught.value).__name__ == "MisconfigurationException"
    make_trainer(callbacks=[GradGuard(on_nonfinite=None)]).fit(Regression(optimizer=optimizer), batches())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rollback_after": 0}, ValueError, "rollback_after must be at least 1, got 0"),
        ({"snapshot_every_n_steps": 1.5}, TypeError, "snapshot_every_n_steps must be an int, got float: 1.5"),
        ({"max_incidents": 0}, ValueError, "max_incidents must be at least 1"),
        ({"max_bytes": -1}, ValueError, "max_bytes must be at least 1"),
        ({"spikes": SpikeRule}, TypeError, "spikes must be a SpikeRule or None"),
        ({"action": "retry"}, ValueError, "action must be one of"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        NonFiniteGuard(**arguments)
