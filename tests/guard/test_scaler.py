"""Under a loss scaler an overflow is the scaler's business, until the scale has nothing left to give."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_gradguard import GradGuard, NonFiniteGradientError, NonFiniteGuard, NormClip
from tests.guard.models import Norms, all_finite, fill, half_precision, numbered, state
from tests.models import Pair, Regression, batches, same, weights

OPTIMIZERS = {
    "not fused": lambda params: torch.optim.Adam(params, lr=0.01),
    "fused": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestWithScaler:
    def test_norms_are_in_real_units(self, make_trainer, optimizer):
        norms = []
        for scale in (1.0, 1024.0):
            torch.manual_seed(0)
            guard = GradGuard()
            make_trainer(callbacks=[guard], plugins=half_precision(scale)).fit(Regression({}, optimizer), batches())
            norms.append([record.total_norm for record in guard.records])
        assert norms[0] == pytest.approx(norms[1], rel=0.02)
        assert max(norms[0]) < 100

    def test_clipping_is_in_real_units(self, make_trainer, optimizer):
        guard = GradGuard(clip=NormClip(0.01))
        make_trainer(callbacks=[guard], plugins=half_precision()).fit(Regression({}, optimizer), batches())
        assert all(record.verdict == "clipped" for record in guard.records)
        assert all(record.post_clip_norm == pytest.approx(0.01, rel=1e-3) for record in guard.records)

    def test_watching_and_guarding_change_no_bit(self, make_trainer, optimizer):
        found = []
        for callbacks in ([], [GradGuard()]):
            torch.manual_seed(0)
            model = Regression({3: math.inf}, optimizer)
            make_trainer(callbacks=callbacks, plugins=half_precision()).fit(model, batches())
            found.append(weights(model))
        assert same(*found)

    @pytest.mark.parametrize("action", ["skip", "rollback", "stop", "raise"])
    def test_eleven_overflows_while_the_scale_calibrates_are_no_incident(
        self, make_trainer, tmp_path, optimizer, action
    ):
        guard = NonFiniteGuard(action, patience=2, incident_dir=tmp_path / "incidents")
        trainer = make_trainer(callbacks=[guard], plugins=half_precision(2.0**32), max_epochs=4)
        model = Regression({}, optimizer)
        trainer.fit(model, batches())
        verdicts = [record.verdict for record in guard.records]
        assert verdicts[:11] == ["overflow"] * 11
        assert set(verdicts[-8:]) == {"ok"}
        assert trainer.global_step == 32
        assert not (tmp_path / "incidents").exists()
        scales = [record.loss_scale for record in guard.records]
        assert scales[:4] == [2.0**32, 2.0**31, 2.0**30, 2.0**29]

    def test_an_overflow_moves_no_weight_and_halves_the_scale(self, make_trainer, optimizer):
        plugin = half_precision(1024.0)
        model = Regression(dict.fromkeys(range(8), math.inf), optimizer)
        before = weights(model)
        guard = NonFiniteGuard()
        make_trainer(callbacks=[guard], plugins=plugin).fit(model, batches())
        assert same(weights(model), before)
        assert plugin.scaler.get_scale() == 1024.0 / 2**8
        assert guard.records[-1].skipped_total == 8

    def test_overflows_that_go_on_at_the_floor_are_an_incident(self, make_trainer, optimizer):
        guard = NonFiniteGuard(patience=3)
        model = Regression(dict.fromkeys(range(8), math.nan), optimizer)
        before = weights(model)
        with (
            pytest.warns(UserWarning, match="step 2 was skipped"),
            pytest.raises(NonFiniteGradientError, match="bad step 3 in a row"),
        ):
            make_trainer(callbacks=[guard], plugins=half_precision(4.0)).fit(model, batches())
        assert [record.verdict for record in guard.records] == ["overflow"] * 2 + ["skipped"] * 3
        assert [record.loss_scale for record in guard.records] == [4.0, 2.0, 1.0, 0.5, 0.25]
        assert same(weights(model), before)

    @pytest.mark.filterwarnings("ignore:step 2 was skipped")
    def test_a_run_goes_on_after_bad_steps_at_the_floor(self, make_trainer, optimizer):
        guard = NonFiniteGuard()
        model = Regression({2: math.nan}, optimizer)
        make_trainer(callbacks=[guard], plugins=half_precision(1.0)).fit(model, batches())
        assert [record.verdict for record in guard.records].count("skipped") == 1
        assert all(weight.isfinite().all() for weight in weights(model))
        assert guard.records[-1].verdict == "ok"


@pytest.mark.parametrize("fused", [False, True], ids=["not fused", "fused"])
def test_two_optimizers_under_manual_optimization_are_each_unscaled_once(make_trainer, fused):
    class Two(Pair):
        def configure_optimizers(self):
            return [torch.optim.Adam(net.parameters(), lr=0.01, fused=fused) for net in (self.generator, self.critic)]

    norms = []
    for scale in (1.0, 4096.0):
        torch.manual_seed(0)
        guard = GradGuard()
        make_trainer(callbacks=[guard], plugins=half_precision(scale)).fit(Two(), batches())
        norms.append([(record.optimizer, record.total_norm) for record in guard.records])
    assert [optimizer for optimizer, _ in norms[0]] == [0, 1] * 8
    for (_, left), (_, right) in zip(*norms, strict=True):
        assert left == pytest.approx(right, rel=0.05)


def test_an_overflow_of_one_of_two_optimizers_leaves_the_other_alone(make_trainer):
    guard = GradGuard()
    model = Pair({3: math.inf})
    make_trainer(callbacks=[guard], plugins=half_precision()).fit(model, batches())
    verdicts = {(record.step, record.optimizer): record.verdict for record in guard.records}
    assert [key for key, verdict in verdicts.items() if verdict == "overflow"] == [(3, 0)]
    assert all(weight.isfinite().all() for weight in weights(model))


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_a_floor_that_is_not_positive_is_refused(floor):
    with pytest.raises(ValueError, match="loss_scale_floor must be positive"):
        NonFiniteGuard(loss_scale_floor=floor)


def test_a_forward_overflow_that_the_scaler_drops_spoils_no_running_statistics(make_trainer):
    states = []
    model = Norms({3: fill(math.inf)})
    model.on_train_batch_end = lambda *args: states.append(state(model))
    guard = NonFiniteGuard()
    make_trainer(callbacks=[guard], plugins=half_precision()).fit(model, numbered())
    assert [record.step for record in guard.records if record.verdict == "overflow"] == [3]
    assert same(states[3], states[2])
    assert all(map(all_finite, states))


def test_a_backward_overflow_that_the_scaler_drops_keeps_the_statistics_of_its_forward_pass(make_trainer):
    states = []
    model = Norms()
    model.on_train_batch_end = lambda *args: states.append(state(model))
    guard = NonFiniteGuard()
    make_trainer(callbacks=[guard], plugins=half_precision(2.0**40)).fit(model, numbered())
    assert guard.records[3].verdict == "overflow"
    num_parameters = len(list(model.parameters()))
    assert same(states[3][:num_parameters], states[2][:num_parameters])
    assert not same(states[3][num_parameters:], states[2][num_parameters:])
