"""Train N, then resume N, equals train 2N: weights, statistics and records, bit for bit."""

import copy
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gradguard import (
    AdaptiveGradientClipping,
    AutoClip,
    GradGuard,
    GradientNormMonitor,
    NonFiniteGuard,
    ZClip,
)
from tests.lightning_versions import WEIGHTS_ONLY
from tests.models import Pair, Regression, batches, same, weights

CALLBACKS = {
    "GradGuard with ZClip": lambda: [GradGuard(clip=ZClip(), rules=[])],
    "GradGuard with AutoClip": lambda: [GradGuard(clip=AutoClip(percentile=50, window=5), rules=[])],
    "three callbacks": lambda: [NonFiniteGuard(), AdaptiveGradientClipping(ZClip()), GradientNormMonitor(rules=[])],
}
MODELS = {
    "one optimizer": lambda: Regression(
        {1: 30.0, 5: math.nan, 6: 30.0}, optimizer=lambda params: torch.optim.AdamW(params, lr=0.05)
    ),
    "two optimizers": lambda: Pair({1: 30.0, 5: math.nan, 6: 30.0}),
}


class SaveAt(Callback):
    """Writes a checkpoint in the middle of an epoch."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:step .* was skipped")
@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("make_callbacks", CALLBACKS.values(), ids=CALLBACKS.keys())
@pytest.mark.parametrize("batch", [3, 7], ids=["in the middle of an epoch", "at its end"])
def test_resume_is_bit_exact(make_trainer, tmp_path, make_model, make_callbacks, batch):
    path = tmp_path / "middle.ckpt"
    torch.manual_seed(0)
    whole, ours = make_model(), make_callbacks()
    make_trainer(callbacks=[*ours, SaveAt(path, batch)], max_epochs=4, log_every_n_steps=3).fit(whole, batches())

    torch.load(path, weights_only=True)  # nothing in it needs to be trusted
    torch.manual_seed(1)
    resumed, again = make_model(), make_callbacks()
    make_trainer(callbacks=again, max_epochs=4, log_every_n_steps=3).fit(
        resumed, batches(), ckpt_path=path, **WEIGHTS_ONLY
    )
    assert same(weights(whole), weights(resumed))
    num = len(again[0].records)
    assert num > 0
    assert [r.to_json() for r in again[0].records] == [r.to_json() for r in ours[0].records[-num:]]
    states = [[pipeline.state_dict() for pipeline in c[0]._session.pipelines] for c in (ours, again)]
    assert repr(states[0]) == repr(states[1])


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_without_the_state_resume_would_differ_so_the_test_above_can_fail(make_trainer, tmp_path):
    path = tmp_path / "middle.ckpt"
    torch.manual_seed(0)
    whole = MODELS["one optimizer"]()
    make_trainer(callbacks=[GradGuard(clip=ZClip()), SaveAt(path, 7)], max_epochs=4).fit(whole, batches())
    checkpoint = torch.load(path, weights_only=True)
    stripped = copy.deepcopy(checkpoint)
    stripped["callbacks"] = {}
    torch.save(stripped, path)
    resumed = MODELS["one optimizer"]()
    make_trainer(callbacks=[GradGuard(clip=ZClip())], max_epochs=4).fit(resumed, batches(), ckpt_path=path)
    assert not same(weights(whole), weights(resumed))


def test_a_layer_added_before_resuming_is_named_and_the_rest_goes_on(make_trainer, tmp_path):
    path = tmp_path / "end.ckpt"
    trainer = make_trainer(callbacks=[GradGuard(clip=ZClip())])
    trainer.fit(Regression(), batches())
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"]["GradGuard"]
    assert state["0"]["clip"][""]["names"] == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]


def test_a_checkpoint_with_fewer_optimizers_says_which_starts_fresh(make_trainer):
    donor = GradGuard(clip=ZClip())
    make_trainer(callbacks=[donor]).fit(Regression(), batches())
    taker = GradGuard(clip=ZClip())
    taker.load_state_dict(donor.state_dict())
    with pytest.warns(UserWarning, match="the checkpoint knows no optimizer 1: its statistics start fresh"):
        make_trainer(callbacks=[taker]).fit(Pair(), batches())
