"""Going back ends where it gets nowhere, and nothing that is broken is gone back to."""

from __future__ import annotations

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradguard import NonFiniteGradientError, NonFiniteGuard
from tests.guard.models import Norms, all_finite, fill, numbered, state
from tests.models import Regression, batches

ROLLS_BACK = pytest.mark.filterwarnings("ignore:step .* was", "ignore:weights were not finite")


class Rows(pl.LightningModule):
    """float16 and Adam's eps of 1e-8: rows without a gradient become 0/0 at every good step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.out(self.emb(batch)).float().square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def rows(num_batches=200):
    generator = torch.Generator().manual_seed(0)
    return DataLoader([torch.randint(0, 5, (3,), generator=generator) for _ in range(num_batches)], batch_size=None)


@ROLLS_BACK
@pytest.mark.parametrize("every", [1, 100])
def test_a_run_that_breaks_after_every_good_step_ends_and_says_what_breaks(make_trainer, every):
    guard = NonFiniteGuard("rollback", snapshot_every_n_steps=every)
    with (
        pytest.raises(
            NonFiniteGradientError, match=r"rolled back 5 times to the state of step .* 'emb.weight'"
        ) as caught,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "no snapshot was taken")
        make_trainer(callbacks=[guard], precision="16-true").fit(Rows(), rows())
    assert "(patience)" not in str(caught.value)
    assert len(guard.records) < 30


@ROLLS_BACK
def test_a_run_that_breaks_whenever_a_checkpoint_is_due_ends_as_well(make_trainer, tmp_path):
    savers = [ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)]
    trainer = make_trainer(
        callbacks=[*savers, NonFiniteGuard("rollback")], enable_checkpointing=True, precision="16-true"
    )
    with pytest.raises(NonFiniteGradientError, match=r"when a checkpoint was due\. It was rolled back 5 times"):
        trainer.fit(Rows(), rows())
    for path in tmp_path.rglob("*.ckpt"):
        assert all_finite(list(torch.load(path, weights_only=True)["state_dict"].values()))


@ROLLS_BACK
def test_bad_batches_far_from_each_other_do_not_end_it(make_trainer):
    bad = {first + i: fill(math.nan) for first in range(25, 250, 30) for i in range(3)}
    guard = NonFiniteGuard("rollback", snapshot_every_n_steps=10)
    model = Norms(bad)
    make_trainer(callbacks=[guard]).fit(model, numbered(250))
    assert sum(record.verdict == "rolled_back" for record in guard.records) == 8
    assert all_finite(state(model))


@ROLLS_BACK
def test_a_state_that_is_broken_is_no_snapshot(make_trainer):
    class Fatal(Regression):
        """The optimizer's state breaks at batch 4, a weight at batch 9."""

        def on_train_batch_end(self, outputs, batch, batch_idx):
            optimizer = self.optimizers().optimizer
            parameter = next(self.parameters())
            if batch_idx == 4:
                optimizer.state[parameter]["exp_avg_sq"].fill_(math.inf)
            if batch_idx == 9:
                parameter.data.fill_(math.nan)

    model = Fatal(optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    guard = NonFiniteGuard("rollback", snapshot_every_n_steps=3)
    with pytest.warns(UserWarning, match="no snapshot was taken at step 5: not finite is exp_avg_sq of .*go to step 2"):
        make_trainer(callbacks=[guard]).fit(model, batches(16))
    moments = [s["exp_avg_sq"] for s in model.optimizers().optimizer.state.values()]
    assert all_finite([*state(model), *moments])


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_weights_that_are_broken_from_the_start_are_said_at_once(make_trainer, action):
    model = Norms()
    with torch.no_grad():
        model.net[0].weight[0, 0] = math.nan
    with pytest.warns(UserWarning) as said, pytest.raises(NonFiniteGradientError) as caught:
        make_trainer(callbacks=[NonFiniteGuard(action, patience=4)]).fit(model, numbered())
    first = next(str(warning.message) for warning in said if "finite" in str(warning.message))
    assert first.startswith("not finite before the first step: 'net.0.weight'. No step can mend that")
    assert "Before the first step 'net.0.weight' was not finite" in str(caught.value)
    assert "use rollback" not in str(caught.value)


@ROLLS_BACK
def test_a_checkpoint_is_no_remedy_for_weights_that_were_broken_from_the_start(make_trainer, tmp_path):
    model = Norms()
    with torch.no_grad():
        model.net[0].weight[0, 0] = math.nan
    with pytest.warns(UserWarning, match="not finite before"), pytest.raises(NonFiniteGradientError) as caught:
        make_trainer(callbacks=[NonFiniteGuard("stop")], enable_checkpointing=True).fit(model, numbered())
    assert "Before the first step 'net.0.weight' was not finite" in str(caught.value)
    assert "rollback" not in str(caught.value)


def test_a_damaged_checkpoint_is_said_when_it_is_loaded(make_trainer, tmp_path):
    first = make_trainer()
    first.fit(Norms(), numbered())
    first.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    saved["optimizer_states"][0]["state"][0]["exp_avg_sq"].fill_(math.inf)
    saved["state_dict"]["net.1.running_var"].fill_(math.nan)
    torch.save(saved, tmp_path / "half.ckpt")
    with pytest.warns(UserWarning, match="before the first step: exp_avg_sq of 'net.0.weight', 'net.1.running_var'"):
        make_trainer(callbacks=[NonFiniteGuard()], max_epochs=2).fit(
            Norms(), numbered(), ckpt_path=tmp_path / "half.ckpt"
        )
