"""What is written is looked at, and not only what is trained."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from lightning_gradguard import GradGuard, NonFiniteGradientError, NonFiniteGuard
from lightning_gradguard.callbacks.checkpoints import nonfinite_in
from tests.guard.models import Norms, all_finite, fill, numbered, state
from tests.models import Regression, batches

SAYS_SO = pytest.mark.filterwarnings("ignore:step .* was", "ignore:.*rolled back", "ignore:weights are not finite")


class Exploding(Regression):
    """Finite gradients, and a learning rate at one batch with which the update overflows."""

    def __init__(self, at=3, optimizer=None):
        super().__init__(**({"optimizer": optimizer} if optimizer else {}))
        self.at = at

    def training_step(self, batch, batch_idx):
        self.optimizers().param_groups[0]["lr"] = 3e38 if batch_idx == self.at else 0.01
        return super().training_step(batch, batch_idx) * (1e3 if batch_idx == self.at else 1.0)


def saver(tmp_path):
    return ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1)


def written(tmp_path):
    paths = sorted(tmp_path.glob("*.ckpt"))
    return [torch.load(path, weights_only=True) for path in paths]


@SAYS_SO
def test_averages_go_back_with_the_model(make_trainer, tmp_path):
    average = EMAWeightAveraging(decay=0.5)
    callbacks = [NonFiniteGuard("rollback", snapshot_every_n_steps=1), average, saver(tmp_path)]
    model = Exploding()
    make_trainer(callbacks=callbacks, enable_checkpointing=True).fit(model, batches())
    checkpoints = written(tmp_path)
    assert len(checkpoints) == 8
    for checkpoint in checkpoints:
        assert all_finite([*checkpoint["state_dict"].values(), *checkpoint["current_model_state"].values()])
    assert all_finite(state(model))


@SAYS_SO
def test_an_average_of_any_name_is_looked_at(make_trainer, tmp_path):
    class Mean(Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["my_mean"] = {"weights": torch.tensor([1.0, math.nan if trainer.global_step == 4 else 1.0])}

    trainer = make_trainer(callbacks=[NonFiniteGuard(), Mean(), saver(tmp_path)], enable_checkpointing=True)
    with pytest.raises(NonFiniteGradientError, match=r"not finite after step 4: my_mean\['weights'\]"):
        trainer.fit(Regression(), batches())
    assert len(written(tmp_path)) == 3


@SAYS_SO
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_the_state_of_an_optimizer_is_looked_at(make_trainer, tmp_path, action):
    class Fatal(Regression):
        def on_before_zero_grad(self, optimizer):
            if self.trainer.global_step == 3 and not self.done:
                self.done = True
                optimizer.state[next(self.parameters())]["exp_avg_sq"].fill_(math.inf)

        done = False

    model = Fatal(optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    guard = NonFiniteGuard(action, **({"snapshot_every_n_steps": 1} if action == "rollback" else {}))
    trainer = make_trainer(callbacks=[guard, saver(tmp_path)], enable_checkpointing=True)
    if action == "skip":
        with pytest.raises(NonFiniteGradientError, match="not finite after step 4: optimizer_states"):
            trainer.fit(model, batches())
    else:
        trainer.fit(model, batches())
    for checkpoint in written(tmp_path):
        moments = [s["exp_avg_sq"] for s in checkpoint["optimizer_states"][0]["state"].values()]
        assert all_finite(moments)


def test_a_checkpoint_by_hand_after_the_fit_is_looked_at_too(make_trainer, tmp_path):
    trainer = make_trainer(callbacks=[GradGuard()])
    with pytest.warns(UserWarning, match="the run ends like this: A parameter is not finite"):
        trainer.fit(Exploding(at=7), batches())
    for weights_only in (False, True):
        with pytest.raises(NonFiniteGradientError, match="state_dict"):
            trainer.save_checkpoint(tmp_path / "final.ckpt", weights_only=weights_only)
    assert not written(tmp_path)
    trainer.lightning_module.load_state_dict(Regression().state_dict())  # mended by hand
    trainer.save_checkpoint(tmp_path / "final.ckpt", weights_only=True)
    assert len(written(tmp_path)) == 1


@SAYS_SO
def test_a_healthy_run_writes_what_it_wrote_before(make_trainer, tmp_path):
    class Masked(Norms):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
            self.register_buffer("unset", torch.full((2,), math.nan))

    trainer = make_trainer(callbacks=[NonFiniteGuard(), saver(tmp_path)], enable_checkpointing=True)
    trainer.fit(Masked(), numbered())
    assert len(written(tmp_path)) == 8
    assert "save_checkpoint" not in {**trainer.__dict__, **trainer.strategy.__dict__}
    trainer.save_checkpoint(tmp_path / "by-hand.ckpt")


def test_a_best_score_of_infinity_is_no_fault():
    module = torch.nn.Linear(1, 1)
    checkpoint = {"state_dict": module.state_dict(), "callbacks": {"Stopper": {"best_score": torch.tensor(math.nan)}}}
    assert nonfinite_in(checkpoint, module, (), ()) == ()


@SAYS_SO
@pytest.mark.parametrize("bad", [0, 3])
def test_the_pass_in_which_weight_averaging_takes_its_statistics_leaves_a_bad_batch_out(make_trainer, bad):
    model = Norms({bad: fill(math.nan)})
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    make_trainer(callbacks=[NonFiniteGuard(), averaging], max_epochs=2).fit(model, numbered())
    assert all_finite(model.state_dict().values())
