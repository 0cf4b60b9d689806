"""Incidents in real fits: saved at the step, located without a trace in the run, and run again without a Trainer."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import RunningStage

from lightning_gradguard import GradGuard, GradientPipeline, NonFiniteGradientError, NonFiniteGuard
from lightning_gradguard.incident.blackbox import BlackBox
from lightning_gradguard.incident.bundle import IncidentFolder
from lightning_gradguard.incident.read import read_bundle
from lightning_gradguard.incident.replay import replay
from tests.forked import run_code
from tests.guard.models import Norms, fill, half_precision, numbered, state
from tests.models import Pair, Regression, batches, same

QUIET = pytest.mark.filterwarnings("ignore:step . was", "ignore:step .. was")


class Rooted(Norms):
    """The root of |x| has an infinite slope where dropout put a zero; from batch ``start`` on."""

    def __init__(self, start: int = 3) -> None:
        super().__init__()
        self.start = start
        self.accuracy = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        x, number = batch
        hidden = self.net[:4](x)
        if int(number[0]) >= self.start:
            hidden = hidden.abs().sqrt()
        loss = self.net[4](hidden).square().mean()
        self.accuracy.update(loss.detach())
        self.log("loss", loss.detach())
        self.log("accuracy", self.accuracy)
        return loss


class AtEpochOne(Rooted):
    """Its loss depends on the epoch, which a replay has to know."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (math.nan if self.current_epoch == 1 else 1.0)


@QUIET
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}], ids=["plain", "accumulated"])
def test_a_bad_step_is_saved_located_and_reproduced_bit_for_bit(make_trainer, tmp_path, options):
    guard = GradGuard(incident_dir=tmp_path / "incidents")
    make_trainer(callbacks=[guard], **options).fit(Rooted(), numbered(9))
    first = sorted((tmp_path / "incidents").iterdir())[0]
    assert first.name == ("step-000001-opt0" if options else "step-000003-opt0")
    report = read_bundle(first).report
    assert report["localisation"]["origin"]["call"]["node"] == "SqrtBackward0"
    assert report["localisation"]["origin"]["call"]["module"] == ""
    assert "test_incidents.py" in report["localisation"]["origin"]["call"]["source"]
    assert [entry[2] for entry in report["history"]] == (["ok", "nan"] if options else ["ok"] * 3 + ["nan"])
    found = replay(first, Rooted())
    assert (found.reproduced, found.exact) == (True, True)
    assert len(found.loss) == options.get("accumulate_grad_batches", 1)


@QUIET
def test_the_command_reproduces_it_in_a_fresh_process_without_a_trainer(make_trainer, tmp_path):
    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Rooted(), numbered())
    bundle = min(tmp_path.iterdir())
    command = "from lightning_gradguard.__main__ import run; run()"
    run = run_code(command, "replay", bundle, "--module", f"{__name__}:Rooted", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "step 3, optimizer 0: reproduced, bit for bit" in run.stdout
    assert "(SqrtBackward0) of the training step itself" in run.stdout
    run = run_code(command, "replay", bundle, "--module", "tests.guard.models:Norms", cwd=tmp_path)
    assert run.returncode == 1
    assert "NOT reproduced" in run.stdout


class Everything(Callback):
    """Notes what a run leaves: weights, buffers, gradients, generators, metrics, logged values."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        generators = torch.get_rng_state()
        grads = [torch.zeros(1) if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
        metric = pl_module.accuracy.mean_value.clone(), pl_module.accuracy.weight.clone()
        self.seen.append([*state(pl_module), generators, *grads, *metric])
        self.logged = dict(trainer.callback_metrics)


@QUIET
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_locating_and_saving_change_nothing_in_the_run(make_trainer, tmp_path, action):
    runs, logged = [], []
    for incident_dir in (None, tmp_path):
        torch.manual_seed(0)
        notes = Everything()
        guard = NonFiniteGuard(action, incident_dir=incident_dir, rollback_after=2 if action == "rollback" else 3)
        make_trainer(callbacks=[notes, guard]).fit(Rooted(), numbered())
        runs.append(notes.seen)
        logged.append({name: float(value) for name, value in notes.logged.items()})
    assert len(list(tmp_path.iterdir())) == 3
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7)) if a.is_floating_point() else torch.equal(a, b)
        for left, right in zip(*runs, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    assert json.dumps(logged[0]) == json.dumps(logged[1])


class Spoiled(Norms):
    """One of its batches turns NaN on its way to the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, number = batch
        return (torch.full_like(x, math.nan) if int(number[0]) == 2 else x), number


@QUIET
def test_a_nan_in_the_batch_is_named_with_the_entry_that_holds_it(make_trainer, tmp_path):
    with pytest.warns(UserWarning, match=r"Saved to .*step-000002-opt0; batch\[0\] was not finite.*replay"):
        make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Spoiled(), numbered())
    assert replay(tmp_path / "step-000002-opt0", Norms()).exact


@QUIET
def test_a_loss_that_lost_its_graph_for_want_of_a_finite_one_is_replayed(make_trainer, tmp_path):
    class Reset(Spoiled):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if bool(loss.isfinite()) else torch.tensor(1e9)  # "loss is not finite: resetting it"

    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Reset(), numbered())
    assert replay(tmp_path / "step-000002-opt0", Reset()).reproduced


def test_the_error_that_ends_a_run_names_the_bundle(make_trainer, tmp_path):
    guard = NonFiniteGuard("raise", incident_dir=tmp_path)
    with pytest.raises(NonFiniteGradientError, match=r"Saved to .*step-000003-opt0.*python -m lightning_gradguard"):
        make_trainer(callbacks=[guard]).fit(Rooted(), numbered())


@QUIET
def test_the_epoch_is_known_in_a_replay(make_trainer, tmp_path):
    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)], max_epochs=2).fit(AtEpochOne(start=99), numbered(4))
    found = replay(tmp_path / "step-000004-opt0", AtEpochOne(start=99))
    assert (found.reproduced, found.exact) == (True, True)


@QUIET
def test_a_step_that_asks_which_stage_it_is_in_is_replayed(make_trainer, tmp_path):
    class Staged(Rooted):
        def training_step(self, batch, batch_idx):
            assert self.trainer.state.stage == RunningStage.TRAINING
            assert {RunningStage.TRAINING: "train"}[self.trainer.state.stage] == "train"
            return super().training_step(batch, batch_idx)

    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Staged(), numbered())
    assert replay(tmp_path / "step-000003-opt0", Staged()).exact


@QUIET
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "16-mixed", "16-true"])
def test_every_precision_is_replayed_as_it_was(make_trainer, tmp_path, precision):
    options = {"plugins": half_precision(1.0)} if precision == "16-mixed" else {"precision": precision}
    model = Rooted()
    model.make_optimizer = lambda params: torch.optim.SGD(params, lr=0.01)  # Adam's eps is zero in float16
    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)], **options).fit(model, numbered())
    bundle = tmp_path / "step-000003-opt0"
    assert read_bundle(bundle).report["localisation"]["origin"]["call"]["node"] == "SqrtBackward0"
    found = replay(bundle, Rooted())
    assert (found.reproduced, found.exact) == (True, True)


@QUIET
def test_manual_optimization_is_located_in_the_replay_with_the_reason(make_trainer, tmp_path):
    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Pair({2: math.nan}), batches())
    bundle = tmp_path / "step-000002-opt0"
    report = read_bundle(bundle).report
    assert report["localisation"] is None
    assert "under manual optimization a training step runs its own backward passes" in report["not_localised"]
    found = replay(bundle, Pair({2: math.nan}))
    assert (found.reproduced, found.exact) == (True, True)
    assert found.localisation.phase == "forward"


@QUIET
def test_the_second_optimizers_bad_step_is_replayed_from_where_the_first_left_off(make_trainer, tmp_path):
    class SecondFails(Pair):
        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            loss = self.critic(self.generator(batch)).square().mean()
            self.toggle_optimizer(first)
            first.zero_grad()
            self.manual_backward(loss)
            first.step()
            self.untoggle_optimizer(first)
            self.toggle_optimizer(second)
            second.zero_grad()
            loss = self.critic(self.generator(batch).detach()).square().mean()
            self.manual_backward((loss - loss).sqrt() if batch_idx == 2 else loss)
            second.step()
            self.untoggle_optimizer(second)

    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(SecondFails(), batches())
    found = replay(tmp_path / "step-000002-opt1", SecondFails())
    assert (found.reproduced, found.exact) == (True, True)
    assert found.expected == ("critic.weight", "critic.bias")
    assert found.localisation.origin.call.node == "SqrtBackward0"


@QUIET
def test_an_overflow_that_only_the_loss_scale_makes_is_located_in_the_backward_pass(make_trainer, tmp_path):
    class Large(Regression):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (3e5 if batch_idx == 2 else 1.0)

    guard = NonFiniteGuard(incident_dir=tmp_path, loss_scale_floor=64.0)
    make_trainer(callbacks=[guard], plugins=half_precision(64.0)).fit(Large(), batches())
    report = read_bundle(tmp_path / "step-000002-opt0").report
    assert report["localisation"]["origin"]["call"]["phase"] == "backward"
    assert report["localisation"]["origin"]["call"]["output"]["dtype"] == "float16"
    assert report["config"]["loss_scale"] == 64.0
    found = replay(tmp_path / "step-000002-opt0", Large())
    assert (found.reproduced, found.exact) == (True, True)


@QUIET
def test_a_batch_that_the_step_writes_to_is_not_passed_off_as_the_original(make_trainer, tmp_path):
    class Writing(Rooted):
        def training_step(self, batch, batch_idx):
            batch[0].mul_(2.0)
            return super().training_step(batch, batch_idx)

    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Writing(), numbered())
    assert "the step wrote to batch[0] in place" in (tmp_path / "step-000003-opt0" / "report.md").read_text()


@QUIET
def test_no_more_than_the_first_incidents_are_saved_or_located(make_trainer, tmp_path):
    guard = NonFiniteGuard(incident_dir=tmp_path, max_incidents=2)
    make_trainer(callbacks=[guard]).fit(Rooted(start=1), numbered())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001-opt0", "step-000002-opt0"]


def test_a_run_without_incidents_leaves_no_folder(make_trainer, tmp_path):
    make_trainer(callbacks=[GradGuard(incident_dir=tmp_path / "incidents")]).fit(Rooted(start=99), numbered())
    assert not (tmp_path / "incidents").exists()


@QUIET
def test_a_folder_that_cannot_be_written_costs_the_bundle_and_nothing_else(make_trainer, tmp_path):
    (tmp_path / "file").write_text("")
    model = Norms({3: fill(math.nan)})
    with pytest.warns(UserWarning, match="could not be saved"):
        make_trainer(callbacks=[GradGuard(incident_dir=tmp_path / "file" / "deeper")]).fit(model, numbered())
    assert all(bool(tensor.isfinite().all()) for tensor in state(model))


def test_a_step_that_cannot_run_twice_is_saved_with_what_it_raised(make_trainer, tmp_path):
    seen = set()

    class Once(Norms):
        def training_step(self, batch, batch_idx):
            key = int(batch[1][0])
            if key in seen:
                raise ValueError("a generator that is used up")
            seen.add(key)
            return super().training_step(batch, batch_idx) * (math.nan if key == 2 else 1.0)

    with pytest.warns(UserWarning, match="step 2 was skipped"):
        make_trainer(callbacks=[GradGuard(incident_dir=tmp_path)]).fit(Once(), numbered())
    text = (tmp_path / "step-000002-opt0" / "report.md").read_text()
    assert "running the step again raised ValueError: a generator that is used up" in text


def test_a_plain_loop_saves_and_replays_too(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters())

    def step(module, batch):
        return (module(batch) * 0).log().mean() if batch.max() > 100 else module(batch).square().mean()

    box = BlackBox(IncidentFolder(tmp_path), net, run=lambda module, batch, index: step(module, batch))
    pipeline = GradientPipeline(net, optimizer, on_nonfinite="skip", incidents=box)
    before = []
    for index, batch in enumerate([torch.randn(3, 4), torch.full((3, 4), 1e3), torch.randn(3, 4)]):
        before.append(state(net))
        box.before_batch(batch, index)
        optimizer.zero_grad()
        step(net, batch).backward()
        pipeline.before_step()
        box.after_step()
        optimizer.step()
    assert same(before[1], before[2])
    assert "aten.log.default" in pipeline.last_incident if pipeline.last_incident else True
    found = replay(tmp_path / "step-000001-opt0", net, step=step)
    assert (found.reproduced, found.exact) == (True, True)
    assert found.localisation.origin.call.operator == "aten.log.default"


@QUIET
def test_the_last_error_names_what_was_saved_of_its_streak(make_trainer, tmp_path):
    guard = NonFiniteGuard(incident_dir=tmp_path / "incidents", max_incidents=1, patience=4)
    spoiled = Norms({index: fill(math.nan) for index in range(2, 8)})
    with pytest.raises(NonFiniteGradientError, match=r"step 5.*Of the same streak: Saved to .*step-000002-opt0"):
        make_trainer(callbacks=[guard]).fit(spoiled, numbered())


@QUIET
def test_an_interrupt_while_a_step_is_saved_puts_the_buffers_back(make_trainer, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model, guard = Norms({3: fill(math.nan)}), NonFiniteGuard(incident_dir=tmp_path / "incidents")
    monkeypatch.setattr(IncidentFolder, "_write", interrupt)
    with pytest.raises(SystemExit):
        make_trainer(callbacks=[guard]).fit(model, numbered())
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert os.listdir(tmp_path / "incidents") == []


def test_a_loss_scale_of_zero_is_named_by_the_error_that_it_leads_to(make_trainer):
    trainer = make_trainer(callbacks=[NonFiniteGuard("raise")], plugins=half_precision(0.0))
    with pytest.raises(NonFiniteGradientError, match=r"The loss scale is 0, .* fresh GradScaler"):
        trainer.fit(Regression(), batches())
