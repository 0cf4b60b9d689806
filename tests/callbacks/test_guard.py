"""NonFiniteGuard in a real fit: what is skipped, stopped, raised, and what a checkpoint holds afterwards."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_gradguard import GradGuard, NonFiniteGradientError, NonFiniteGuard
from tests.lightning_versions import ON_EXCEPTION
from tests.models import Regression, batches, same, weights


def finite(path):
    checkpoint = torch.load(path, weights_only=True)
    return all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_a_skip_is_announced_once_with_its_layers(make_trainer):
    guard = NonFiniteGuard()
    with pytest.warns(UserWarning, match=r"step 2 was skipped: gradients of net\.0, net\.2 hold nan") as warned:
        make_trainer(callbacks=[guard]).fit(Regression({2: math.nan, 4: math.nan}), batches())
    assert len([w for w in warned if "was skipped" in str(w.message)]) == 1
    assert guard.records[-1].skipped_total == 2


@pytest.mark.filterwarnings("ignore:step 2 was skipped", "ignore:`training_step` returned `None`")
def test_without_the_bad_batch_training_would_have_gone_the_same_way(make_trainer):
    class Without(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    guarded = Regression({2: math.nan})
    make_trainer(callbacks=[NonFiniteGuard()]).fit(guarded, batches())
    torch.manual_seed(0)
    without = Without()
    make_trainer().fit(without, batches())
    assert same(weights(guarded), weights(without))


@pytest.mark.filterwarnings("ignore:step 2 was skipped")
class TestStop:
    def test_ends_training_in_order_and_no_checkpoint_holds_a_nan(self, make_trainer, tmp_path):
        saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(callbacks=[saver, NonFiniteGuard("stop")], max_epochs=3, enable_checkpointing=True)
        model = Regression({2: math.nan})
        trainer.fit(model, batches())
        assert trainer.global_step == 3
        saved = sorted(tmp_path.glob("*.ckpt"))
        assert len(saved) >= 3
        assert all(finite(path) for path in saved)

    def test_honours_min_steps_by_skipping_until_then(self, make_trainer):
        guard = NonFiniteGuard("stop")
        trainer = make_trainer(callbacks=[guard], min_steps=6, min_epochs=0, max_epochs=3)
        trainer.fit(Regression({2: math.nan, 3: math.nan}), batches())
        assert trainer.global_step == 6
        assert guard.records[-1].skipped_total == 2

    def test_honours_min_epochs(self, make_trainer):
        trainer = make_trainer(callbacks=[NonFiniteGuard("stop")], min_epochs=2, max_epochs=3)
        trainer.fit(Regression({2: math.nan}), batches())
        assert trainer.current_epoch == 2


class TestRaise:
    @pytest.mark.filterwarnings(
        "ignore:.*(without a model|no last checkpoint)"
    )  # of OnExceptionCheckpoint, in Lightning 2.5
    def test_names_step_optimizer_and_layers_and_a_checkpoint_on_exception_is_finite(self, make_trainer, tmp_path):
        saver = ModelCheckpoint(tmp_path, **ON_EXCEPTION) if ON_EXCEPTION else OnExceptionCheckpoint(tmp_path)
        trainer = make_trainer(callbacks=[NonFiniteGuard("raise"), saver], enable_checkpointing=True)
        with pytest.raises(NonFiniteGradientError, match=r"'net.0.weight' \(.*NaN.*; step 2, optimizer 0"):
            trainer.fit(Regression({2: math.nan}), batches())
        saved = list(tmp_path.glob("*.ckpt"))
        assert saved
        assert all(finite(path) for path in saved)

    def test_patience_raises_after_so_many_in_a_row(self, make_trainer):
        guard = GradGuard(patience=3)
        with (
            pytest.warns(UserWarning, match="step 4 was skipped"),
            pytest.raises(NonFiniteGradientError, match=r"step 6.*bad step 3 in a row"),
        ):
            make_trainer(callbacks=[guard]).fit(Regression(dict.fromkeys((4, 5, 6), math.inf)), batches())


def test_without_a_guard_weights_are_lost_so_the_tests_above_can_fail(make_trainer):
    model = Regression({2: math.nan})
    make_trainer().fit(model, batches())
    assert not all(weight.isfinite().all() for weight in weights(model))
