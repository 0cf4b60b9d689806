"""Several of our callbacks on one Trainer: one pipeline, one measurement, one order of things."""

import copy
import itertools
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradguard import (
    AdaptiveGradientClipping,
    AutoClip,
    GradGuard,
    GradientNormMonitor,
    NonFiniteGuard,
    NormClip,
    ZClip,
)
from lightning_gradguard.measurement.layout import Layout
from tests.models import Pair, Regression, batches, same, weights


def roles():
    return [GradientNormMonitor(), AdaptiveGradientClipping(NormClip(0.5)), NonFiniteGuard()]


ORDERS = [*itertools.permutations(range(3)), None]


@pytest.mark.filterwarnings("ignore:step 3 was skipped")
class TestAnyOrder:
    def fitted(self, make_trainer, order):
        torch.manual_seed(0)
        callbacks = [GradGuard(clip=NormClip(0.5))] if order is None else [roles()[index] for index in order]
        model = Regression({3: math.nan})
        make_trainer(callbacks=callbacks).fit(model, batches())
        return callbacks, weights(model)

    @pytest.mark.parametrize("order", ORDERS, ids=str)
    def test_gives_the_same_records_and_weights(self, make_trainer, order):
        reference_callbacks, reference = self.fitted(make_trainer, (0, 1, 2))
        callbacks, trained = self.fitted(make_trainer, order)
        assert same(trained, reference)
        lines = [record.to_json() for record in reference_callbacks[0].records]
        assert [[record.to_json() for record in c.records] for c in callbacks] == [lines] * len(callbacks)
        assert [r.verdict for r in callbacks[0].records].count("skipped") == 1

    @pytest.mark.parametrize("order", ORDERS, ids=str)
    def test_measures_once_per_optimizer_step(self, make_trainer, order, monkeypatch):
        calls = []
        real = Layout.measure
        monkeypatch.setattr(Layout, "measure", lambda *given: calls.append(1) or real(*given))
        self.fitted(make_trainer, order)
        assert len(calls) == 8


def test_watching_changes_no_bit(make_trainer):
    trained = []
    for callbacks in ([], [GradGuard()]):
        torch.manual_seed(0)
        model = Regression(optimizer=lambda params: torch.optim.AdamW(params, lr=0.01))
        make_trainer(callbacks=callbacks, max_epochs=2).fit(model, batches())
        trained.append(weights(model))
    assert same(*trained)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [GradGuard(clip=NormClip(1.0)), AdaptiveGradientClipping(ZClip())],
            "GradGuard and AdaptiveGradientClipping would both tame",
        ),
        ([NonFiniteGuard(), GradGuard()], "NonFiniteGuard and GradGuard would both survive"),
        ([GradientNormMonitor(), GradGuard()], "GradientNormMonitor and GradGuard would both see"),
    ],
    ids=["clipping", "guard", "monitor"],
)
def test_two_callbacks_for_one_role_are_refused_by_name(make_trainer, callbacks, message):
    with pytest.raises(MisconfigurationException, match=message):
        make_trainer(callbacks=callbacks).fit(Regression(), batches())


@pytest.mark.parametrize(
    "callback", [AdaptiveGradientClipping(ZClip()), GradGuard(clip=ZClip())], ids=lambda c: type(c).__name__
)
def test_clipping_beside_the_trainers_own_is_refused_and_says_which_to_remove(make_trainer, callback):
    trainer = make_trainer(callbacks=[callback], gradient_clip_val=1.0)
    with pytest.raises(
        MisconfigurationException,
        match=r"Trainer\(gradient_clip_val=1.0\) and .* remove gradient_clip_val .* the library",
    ):
        trainer.fit(Regression(), batches())


def test_watching_beside_the_trainers_own_clipping_is_fine(make_trainer):
    monitor = GradientNormMonitor()
    make_trainer(callbacks=[monitor], gradient_clip_val=0.1).fit(Regression(), batches())
    assert all(record.total_norm > 0.1 for record in monitor.records)


def test_accumulation_makes_one_record_of_the_accumulated_gradient(make_trainer):
    monitor = GradientNormMonitor()
    make_trainer(callbacks=[monitor], accumulate_grad_batches=3).fit(Regression(), batches(8))
    assert len(monitor.records) == 3  # two whole windows, and the rest of the epoch


def test_three_small_batches_accumulated_measure_as_one_large_one(make_trainer):
    totals = []
    for options, data in (({}, batches(1, 12)), ({"accumulate_grad_batches": 3}, batches(3, 4))):
        torch.manual_seed(0)
        monitor = GradientNormMonitor()
        make_trainer(callbacks=[monitor], **options).fit(Regression(), data)
        totals.append(monitor.records[0].total_norm)
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


class TestTwoOptimizersByHand:
    def test_each_has_its_own_records_statistics_and_parameters(self, make_trainer):
        guard = GradGuard(clip={0: ZClip(), 1: AutoClip()})
        make_trainer(callbacks=[guard]).fit(Pair(), batches())
        first = [r for r in guard.records if r.optimizer == 0]
        second = [r for r in guard.records if r.optimizer == 1]
        assert len(first) == len(second) == 8
        assert first[0].layers == ("generator",)
        assert second[0].layers == ("critic",)
        assert [r.step for r in first] == [r.step for r in second] == list(range(8))
        parts = [pipeline.clipper.parts[0] for pipeline in guard._session.pipelines]
        assert [type(part.policy).__name__ for part in parts] == ["ZClip", "AutoClip"]

    @pytest.mark.filterwarnings("ignore:step 2 was skipped")
    def test_a_bad_step_of_one_does_not_stop_the_other(self, make_trainer):
        guard = GradGuard()
        make_trainer(callbacks=[guard]).fit(Pair({2: math.nan}), batches())
        assert [(r.optimizer, r.step) for r in guard.records if r.verdict == "skipped"] == [(0, 2)]
        assert guard.records[-1].skipped_total == 0

    def test_one_policy_for_both_keeps_two_memories(self, make_trainer):
        clipping = AdaptiveGradientClipping(ZClip())
        make_trainer(callbacks=[clipping]).fit(Pair(), batches())
        states = [pipeline.clipper.parts[0].state for pipeline in clipping._session.pipelines]
        assert states[0] != states[1]

    def test_the_total_norm_carries_the_optimizer(self, make_trainer):
        trainer = make_trainer(callbacks=[GradGuard()])
        trainer.fit(Pair(), batches())
        assert {"grad_norm_total/opt0", "grad_norm_total/opt1"} <= set(trainer.callback_metrics)


def test_a_policy_for_an_optimizer_that_does_not_exist_is_refused_when_fit_starts(make_trainer):
    message = r"name 2: neither an optimizer \(indices 0 to 1\) nor a parameter group"
    with pytest.raises(MisconfigurationException, match=message):
        make_trainer(callbacks=[AdaptiveGradientClipping({2: ZClip()})]).fit(Pair(), batches())


def test_policies_by_parameter_group_name(make_trainer):
    def two_groups(params):
        params = list(params)
        return torch.optim.SGD(
            [{"params": params[:2], "name": "encoder"}, {"params": params[2:], "name": "head"}], lr=0.1
        )

    clipping = AdaptiveGradientClipping({"encoder": NormClip(1e-3), "head": None})
    make_trainer(callbacks=[clipping]).fit(Regression(optimizer=two_groups), batches())
    assert clipping.records[0].verdict == "clipped"
    assert 0.1 < clipping.records[0].coefficient < 1.0  # the head's gradient passed


class TestTheTotalNorm:
    def test_can_be_monitored_by_early_stopping(self, make_trainer):
        stopper = EarlyStopping("grad_norm_total", patience=0, check_on_train_epoch_end=True, stopping_threshold=1e9)
        trainer = make_trainer(callbacks=[GradGuard(), stopper], max_epochs=5)
        trainer.fit(Regression(), batches())
        assert trainer.current_epoch == 1

    def test_can_be_monitored_by_model_checkpoint(self, make_trainer, tmp_path):
        saver = ModelCheckpoint(tmp_path, monitor="grad_norm_total", save_on_train_epoch_end=True)
        make_trainer(callbacks=[saver, GradientNormMonitor()], enable_checkpointing=True).fit(Regression(), batches())
        assert float(saver.best_model_score) > 0

    @pytest.mark.parametrize("make", [GradGuard, GradientNormMonitor])
    def test_shows_in_the_progress_bar_if_asked(self, make, make_trainer):
        for options, shown in (({}, False), ({"prog_bar": True}, True)):
            trainer = make_trainer(callbacks=[make(**options)], enable_progress_bar=True)
            trainer.fit(Regression(), batches())
            assert ("grad_norm_total" in trainer.progress_bar_metrics) is shown
        assert trainer.progress_bar_metrics["grad_norm_total"] > 0

    def test_is_shown_or_not_and_nothing_between(self):
        with pytest.raises(TypeError, match="prog_bar must be True or False, got 'yes'"):
            GradGuard(prog_bar="yes")


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_training_steps_without_a_loss_are_no_steps(make_trainer):
    class Sometimes(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    guard = GradGuard()
    make_trainer(callbacks=[guard]).fit(Sometimes(), batches())
    assert len(guard.records) == 7


def test_no_optimizer_is_nothing_to_watch(make_trainer):
    guard = GradGuard(clip=ZClip())
    with pytest.warns(UserWarning, match="`LightningModule.configure_optimizers` returned `None`"):
        make_trainer(callbacks=[guard]).fit(Regression(optimizer=lambda params: None), batches())
    assert [(record.step, record.num_steps, record.layers) for record in guard.records] == [
        (step, 0, ()) for step in (0, 1, 2, 4)
    ], "the early records say that nothing steps, and nothing is measured"
    assert guard.records[0].unoptimized == ("net.0", "net.2")


def test_a_second_fit_starts_fresh(make_trainer):
    guard = GradGuard(clip=ZClip())
    for _ in range(2):
        make_trainer(callbacks=[guard]).fit(Regression(), batches())
    assert [record.step for record in guard.records] == list(range(8))


def test_outside_fit_the_callbacks_do_nothing(make_trainer):
    callbacks = roles()
    make_trainer(callbacks=callbacks).validate(Regression(), batches(), verbose=False)
    assert [callback.records for callback in callbacks] == [[], [], []]


def test_the_loss_of_a_record_is_without_the_loss_scale(make_trainer):
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    losses = []
    for plugins in ([], [scaled]):
        torch.manual_seed(0)
        guard = GradGuard()
        make_trainer(callbacks=[guard], plugins=plugins).fit(Regression(), batches(2))
        losses.append(guard.records[0].loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_an_optimizer_of_a_copy_of_the_model_is_warned_of_once_and_does_not_end_the_run(make_trainer):
    class Strange(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def training_step(self, batch, index):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(copy.deepcopy(self.net).parameters(), lr=0.1)

    guard = GradGuard()
    with pytest.warns(UserWarning, match="none of its 2 parameters") as told:
        make_trainer(callbacks=[guard]).fit(Strange(), DataLoader(torch.randn(40, 3), batch_size=4))
    assert sum("none of its 2 parameters" in str(warning.message) for warning in told) == 1
    assert "no-gradient" in [finding.rule for finding in guard.findings]
