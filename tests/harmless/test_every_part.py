"""Each function that only watches raises in turn, and the training ends as if nobody had watched it."""

from __future__ import annotations

import ast
import math
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_gradguard import (
    GradGuard,
    GradientNormMonitor,
    GradientPipeline,
    Instruments,
    JsonlSink,
    MemorySink,
    TensorBoardSink,
    ZClip,
    default_rules,
)
from lightning_gradguard.harmless.part import Part
from tests.harmless.sabotage import PACKAGE, Sabotage, functions_called, sabotaged

WATCH = ("probes", "diagnose", "recording", "sinks", "tensorboard", "report", "incident", "record", "callbacks/sinks")
# A step that cannot be run again is an incident all the same, and its report says why it could not be located.
IN_THE_STEP_RUN_AGAIN = {"call_training_step", "loss_of"}
# torch calls it in the place of the user's operator: nothing of ours stands above it, and all it does is run that
# operator and hand what came of it to a look that is guarded.
IN_THE_PLACE_OF_AN_OPERATOR = {"__torch_dispatch__"}
CALLS_THE_GUARD = {"run", "_log_together"}
ACTS = {"decide", "apply_", "measure", "judge", "restore_", "bad_step"}


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.act = nn.ReLU()
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.norm(self.act(self.rnn(x)[0][:, -1])))

    def training_step(self, batch, index):
        loss = self(batch).square().mean() * (math.nan if self.spoiled and index == 1 else 1.0)
        if index:  # at the first step our numbers find no row of the user's
            self.log("train_loss", loss.detach())
        return loss

    spoiled = False

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def bits(net, optimizer):
    """All that a training may leave: weights, gradients, buffers, the optimizer's state, generators."""
    state = [value for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    tensors = [*net.state_dict().values(), *grads, *state, torch.get_rng_state()]
    return [tensor.detach().clone() for tensor in tensors]


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


def plain_loop(folder, *, watched, act=False):
    torch.manual_seed(0)
    net = Net()
    optimizer = net.configure_optimizers()
    pipeline = instruments = None
    if watched:
        sinks = [MemorySink(), JsonlSink(folder / "run.jsonl"), TensorBoardSink(folder)]
        instruments = Instruments(net)
        options = {"clip": ZClip(max_norm=0.01), "on_nonfinite": "skip"} if act else {}
        pipeline = GradientPipeline(
            net, optimizer, rules=default_rules(), sinks=sinks, log_every_n_steps=1, instruments=instruments, **options
        )

    def run():
        for step in range(2):
            instruments and instruments.before_forward(step)
            loss = net(torch.randn(4, 9, 3)).square().mean() * (math.nan if act and step == 1 else 1.0)
            instruments and instruments.after_forward(loss)
            optimizer.zero_grad()
            loss.backward()
            pipeline and pipeline.before_step()
            optimizer.step()
            pipeline and pipeline.after_step()
        pipeline and pipeline.views.close()
        assert not any(module._forward_hooks for module in net.modules())
        return bits(net, optimizer)

    return run


def fit(folder, make=None, *, spoiled=False):
    torch.manual_seed(0)
    net = Net()
    net.spoiled = spoiled
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=[CSVLogger(folder), TensorBoardLogger(folder)],
        log_every_n_steps=1,
        callbacks=[] if make is None else [make()],
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    found = set(trainer.__dict__)

    def run():
        warnings.filterwarnings("ignore", "step 1 was skipped")
        trainer.fit(net, DataLoader(torch.ones(8, 9, 3), batch_size=4))
        assert set(trainer.__dict__) == found
        assert not any(module._forward_hooks for module in net.modules())
        return bits(net, trainer.optimizers[0])

    return run


# Each part there is, by the training below in which it is made to fail.
PARTS = {
    "plain loop": (
        "the measurement ",
        "the record ",
        "the diagnosis ",
        "the views ",
        "the probes ",
        "the set of hooks",
        "the probe of activations",
        "the probe of gradients over time",
        "the measurement of updates",
        "the look at the model's structure",
        "the look at the loss",
        "the look at batches",
        "the look at running statistics",
        "the look at functions",
        "the look at the optimizer's settings",
        "the count of backward passes",
        "the rule ",
        "the view ",
    ),
    "fit": (
        "the watching of gradients",
        "the set of probes",
        "the view in ",
        "the share of rows in ",
        "the log of our own rows in ",
        "the file of ",
        "the total norm in the Trainer's metrics",
        "the look back at the end",
        "the look at optimizer steps",
    ),
    "guarded fit": ("the recorder of incidents",),
    "checkpoint": ("the memory of the rule ",),  # made to fail in tests/diagnose/test_diagnosis.py
    "dry run": ("the dry run of the policy ",),  # made to fail in tests/callbacks/test_dry_run.py
}


def assert_harmless(codes, training, expected, parts=(), told_in_the_bundle=()):
    codes = [code for code in codes if code.co_name not in IN_THE_PLACE_OF_AN_OPERATOR]
    outcomes = [sabotaged(code, training) for code in codes]
    ended = [str(outcome) for outcome in outcomes if outcome.error is not None]
    assert not ended, "these ended a training that they only watch"
    changed = [str(outcome) for outcome in outcomes if not same(outcome.result, expected)]
    assert not changed, "these changed a training that they only watch"
    heard = [outcome for outcome in outcomes if outcome.code.co_name not in told_in_the_bundle]
    not_once = [str(outcome) for outcome in heard if len(outcome.told) != 1]
    assert not not_once, "these were taken away without a word, or with more than one"
    told = "\n".join(message for outcome in outcomes for message in outcome.told)
    assert [part for part in parts if part not in told] == [], "these were never made to fail"


def test_a_plain_loop_that_is_watched_ends_as_one_that_is_not(tmp_path):
    training = partial(plain_loop, tmp_path, watched=True)
    codes = functions_called(training, __file__)
    assert len(codes) > 100, "the walk finds what is called"
    assert_harmless(codes, training, plain_loop(tmp_path, watched=False)(), PARTS["plain loop"])


def test_what_watches_beside_a_policy_and_a_guard_does_not_change_what_these_do(tmp_path):
    training = partial(plain_loop, tmp_path, watched=True, act=True)
    codes = functions_called(training, __file__, entered=WATCH)
    assert_harmless(codes, training, training()())


def test_what_acts_still_raises(tmp_path):
    training = partial(plain_loop, tmp_path, watched=True, act=True)
    codes = [code for code in functions_called(training, __file__) if code.co_name in ACTS]
    assert {code.co_name for code in codes} == ACTS
    assert [type(sabotaged(code, training).error) for code in codes] == [Sabotage] * len(codes)


def test_a_fit_that_is_watched_ends_as_one_that_is_not(tmp_path):
    training = partial(fit, tmp_path, GradientNormMonitor)
    codes = functions_called(training, "lightning/pytorch", entered=["callbacks", "report"])
    codes += functions_called(training, "lightning/pytorch", entered=["callbacks/session", "callbacks/sinks"])
    codes += functions_called(training, "lightning/pytorch", entered=["probes"])
    codes = [code for code in codes if code.co_name not in CALLS_THE_GUARD]
    assert_harmless(codes, training, fit(tmp_path)(), PARTS["fit"])


def test_a_fit_that_is_guarded_is_not_ended_by_what_watches(tmp_path):
    make = partial(GradGuard, incident_dir=tmp_path / "incidents")
    training = partial(fit, tmp_path, make, spoiled=True)
    codes = functions_called(training, "lightning/pytorch", entered=["incident"])
    assert_harmless(codes, training, training()(), PARTS["guarded fit"], IN_THE_STEP_RUN_AGAIN)


def parts_in_the_source():
    """How each part is called, up to what is filled in: every ``Part(...)`` of the package."""
    for path in Path(PACKAGE).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = [f"{n.module}.{name.name}" for n in nodes if isinstance(n, ast.ImportFrom) for name in n.names]
        if f"{Part.__module__}.Part" not in imported:
            continue  # parts of a batch have the same name
        for node in nodes:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Part":
                name = node.args[0]
                yield name.value if isinstance(name, ast.Constant) else name.values[0].value


def test_the_list_names_every_part_there_is():
    listed = {part for parts in PARTS.values() for part in parts}
    assert set(parts_in_the_source()) == listed
