"""Callbacks, module and Trainer are copied, pickled and saved like those of a run without us, at any time."""

from __future__ import annotations

import copy
import io
import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_gradguard import (
    AdaptiveGradientClipping,
    GradGuard,
    GradientNormMonitor,
    JsonlSink,
    NonFiniteGuard,
    TensorBoardSink,
    ZClip,
)
from tests.models import Regression, batches, same, weights

# The models here have no scheduler: what is copied is the stand-in for the method that steps one.
pytestmark = pytest.mark.filterwarnings("ignore:hold_lr_on_skip=True has no effect")


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def model():
    """One that can be pickled, which a lambda for its optimizer cannot."""
    return Regression(optimizer=sgd)


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def through_torch(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPY = pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch], ids=lambda f: f.__name__)
LISTS = {
    "one": lambda folder: [GradGuard(clip=ZClip(max_norm=1.0))],
    "three": lambda folder: [
        GradientNormMonitor(sinks=[JsonlSink(folder / "run.jsonl"), TensorBoardSink(folder / "board")]),
        AdaptiveGradientClipping(ZClip()),
        NonFiniteGuard("rollback", hold_lr_on_skip=True, incident_dir=folder / "incidents"),
    ],
}
CALLBACKS = pytest.mark.parametrize("make", LISTS.values(), ids=LISTS.keys())


@COPY
@CALLBACKS
def test_callbacks_are_copied_before_and_after_a_fit_and_go_on_working(make, duplicate, make_trainer, tmp_path):
    callbacks = make(tmp_path)
    for _ in range(2):
        trainer = make_trainer(callbacks=callbacks)
        trainer.fit(model(), batches(3))
        assert [record.step for record in trainer.callbacks[0].records] == [0, 1, 2]
        callbacks = duplicate([each for each in trainer.callbacks if type(each) in map(type, callbacks)])
        assert [record.step for record in callbacks[0].records] == [0, 1, 2], "what was seen comes along"


@COPY
@CALLBACKS
def test_a_copy_takes_no_module_along_so_that_one_which_cannot_be_pickled_is_no_hindrance(
    make, duplicate, make_trainer, tmp_path
):
    callbacks = make(tmp_path)
    make_trainer(callbacks=callbacks).fit(Regression(optimizer=lambda params: sgd(params)), batches(3))
    assert [len(callback.records) for callback in duplicate(callbacks)] == [3] * len(callbacks)


class Copying(Regression):
    """Copies its net and all callbacks in the middle of a sampled step, with our hooks in place."""

    def __init__(self, duplicate):
        super().__init__(optimizer=sgd)
        self.duplicate = duplicate

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            assert self.net[0]._forward_hooks
            net, self.callbacks = self.duplicate((self.net, self.trainer.callbacks))
            net(batch)
            net(batch)
        return super().training_step(batch, batch_idx)


@COPY
@CALLBACKS
def test_module_and_callbacks_are_copied_in_the_middle_of_a_step(make, duplicate, make_trainer, tmp_path):
    trainer, copying = make_trainer(callbacks=make(tmp_path)), Copying(duplicate)
    trainer.fit(copying, batches(3))
    activations = trainer.callbacks[0].records[0].activations
    modules = [stats.module for stats in activations if "()" not in stats.module]  # functions have no owner
    assert modules == ["net.0", "net.1", "net.2"], "calls of the copy do not count"
    make_trainer(callbacks=copying.callbacks).fit(model(), batches(3))
    assert len(copying.callbacks[0].records) == 3


LOGGERS = {
    "none": lambda folder: False,
    "two": lambda folder: [CSVLogger(folder), TensorBoardLogger(folder)],
}


@COPY
@CALLBACKS
@pytest.mark.parametrize("logger", LOGGERS.values(), ids=LOGGERS.keys())
def test_a_trainer_is_copied_after_a_fit_with_any_logger(make, duplicate, logger, make_trainer, tmp_path):
    trainer = make_trainer(callbacks=make(tmp_path), logger=logger(tmp_path))
    trainer.fit(model(), batches(3))
    other = duplicate(trainer)
    assert len(other.callbacks[0].records) == 3


class Early(pl.Callback):
    def __init__(self, duplicate):
        self.duplicate, self.copies = duplicate, []

    def on_fit_start(self, trainer, module):
        assert "save_checkpoint" in trainer.__dict__
        self.copies = [self.duplicate(trainer)]


@COPY
def test_a_trainer_that_is_copied_while_it_trains_has_its_own_methods_again(duplicate, make_trainer):
    trainer = make_trainer(callbacks=[NonFiniteGuard(hold_lr_on_skip=True), Early(duplicate)])
    trainer.fit(model(), batches(3))
    (other,) = trainer.callbacks[1].copies
    assert other.save_checkpoint.__func__ is pl.Trainer.save_checkpoint
    assert other.save_checkpoint.__self__ is other


def test_a_copy_that_trains_is_read_from_the_original_that_did_not(make_trainer):
    """As libraries do that copy the callbacks of their users."""
    guard = GradGuard(rules=[])
    for num_batches in (3, 5):
        make_trainer(callbacks=[copy.deepcopy(guard)]).fit(Regression(), batches(num_batches))
        assert len(guard.records) == num_batches
    make_trainer(callbacks=[guard]).fit(Regression(), batches(2))
    make_trainer(callbacks=[copy.deepcopy(guard)]).fit(Regression(), batches(4))
    assert len(guard.records) == 2, "its own come first"


class TestOneCallback:
    def test_serves_fits_one_after_the_other_on_one_trainer_and_on_two(self, make_trainer):
        guard = GradGuard()
        trainer = make_trainer(callbacks=[guard])
        for fitting in (trainer, trainer, make_trainer(callbacks=[guard])):
            fitting.fit_loop.max_epochs = fitting.current_epoch + 1
            plain = make_trainer()
            watched, alone = Regression(), Regression()
            alone.load_state_dict(watched.state_dict())
            fitting.fit(watched, batches(3))
            plain.fit(alone, batches(3))
            assert same(weights(watched), weights(alone))
            assert len(guard.records) == 3

    def test_serves_another_fit_after_an_exception(self, make_trainer):
        class Failing(Regression):
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                if batch_idx == 1:
                    raise KeyError("the user's own trouble")
                return loss

        guard = NonFiniteGuard(hold_lr_on_skip=True)
        monitor = GradientNormMonitor()
        trainer = make_trainer(callbacks=[guard, monitor])
        before, model = set(trainer.__dict__), Failing()
        found = [*trainer.callbacks]
        with pytest.raises(KeyError):
            trainer.fit(model, batches(3))
        assert set(trainer.__dict__) == before
        assert trainer.callbacks == found
        assert "lr_scheduler_step" not in model.__dict__
        assert not any(module._forward_hooks for module in model.modules())
        make_trainer(callbacks=[guard, monitor]).fit(Regression(), batches(3))
        assert len(monitor.records) == 3

    def test_is_refused_by_name_while_another_fit_has_it(self, make_trainer):
        guard = NonFiniteGuard()

        class Nested(pl.Callback):
            def on_train_start(self, trainer, module):
                make_trainer(callbacks=[guard]).fit(Regression(), batches(2))

        with pytest.raises(MisconfigurationException, match="NonFiniteGuard is in use in another fit that is still"):
            make_trainer(callbacks=[guard, Nested()]).fit(Regression(), batches(2))

    def test_keeps_what_the_user_put_on_the_trainer(self, make_trainer):
        saved = []
        trainer = make_trainer(callbacks=[GradGuard()])
        mine = trainer.save_checkpoint = lambda *args, **kwargs: saved.append(args)

        class Save(Regression):
            def on_train_batch_end(self, *args):
                self.trainer.save_checkpoint("here")

        trainer.fit(Save(), batches(2))
        assert saved == [("here",)] * 2
        assert trainer.__dict__["save_checkpoint"] is mine

    def test_keeps_what_the_user_puts_on_the_trainer_meanwhile(self, make_trainer):
        trainer = make_trainer(callbacks=[GradGuard()])

        class Wrap(Regression):
            def on_train_start(self):
                inner = self.trainer.save_checkpoint
                self.trainer.save_checkpoint = self.mine = lambda *args, **kwargs: inner(*args, **kwargs)

        model = Wrap()
        trainer.fit(model, batches(2))
        assert trainer.__dict__["save_checkpoint"] is model.mine
        trainer.save_checkpoint(trainer.default_root_dir + "/it.ckpt")
