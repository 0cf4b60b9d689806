"""What reaches the Trainer's loggers, read back with TensorBoard's own reader."""

import csv
import json
import math

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from lightning_gradguard import (
    AdaptiveGradientClipping,
    GradGuard,
    GradientNormMonitor,
    JsonlSink,
    NormClip,
    read_jsonl,
)
from tests.models import Pair, Regression, batches

SCALARS = {
    "grad_norm/net.0",
    "grad_norm/net.2",
    "grad_norm_total/pre_clip",
    "grad_norm_total/post_clip",
    "grad_norm_total/threshold",
    "gradguard/clipped_fraction",
    "gradguard/nonfinite_total",
    "gradguard/skipped_steps",
    "gradguard/coefficient",
    "gradguard/cosine",
}


def read(logger):
    accumulator = EventAccumulator(logger.log_dir)
    accumulator.Reload()
    return accumulator


def ours(tags):
    return {tag for tag in tags if tag.startswith(("grad_norm", "gradguard"))}


@pytest.fixture
def board(tmp_path):
    return TensorBoardLogger(tmp_path, name="board")


def rows(logger):
    with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestRows:
    def test_our_numbers_stand_in_the_users_row_of_the_step_with_its_epoch(self, make_trainer, tmp_path):
        logger = CSVLogger(tmp_path)
        guard = GradGuard(clip=NormClip(0.5))
        make_trainer(callbacks=[guard], logger=logger, max_epochs=2).fit(Regression(), batches(2), batches(1))
        found = rows(logger)
        steps = [row for row in found if row["train_loss"]]
        assert [(row["step"], row["epoch"]) for row in steps] == [("0", "0"), ("1", "0"), ("2", "1"), ("3", "1")]
        norms = [record.total_norm for record in guard.records]
        assert [float(row["grad_norm_total/pre_clip"]) for row in steps] == pytest.approx(norms)
        assert [row["grad_norm_total/pre_clip"] for row in found if not row["train_loss"]] == ["", ""]
        assert "log_metrics" not in logger.__dict__

    def test_where_the_user_logs_nothing_they_make_rows_of_their_own_with_an_epoch(self, make_trainer, tmp_path):
        class Silent(Regression):
            def log(self, *args, **kwargs):
                pass

        logger = CSVLogger(tmp_path)
        monitor = GradientNormMonitor(log_every_n_steps=2)
        make_trainer(callbacks=[monitor], logger=logger, max_epochs=2).fit(Silent(), batches(4))
        found = [(row["step"], row["epoch"], bool(row["grad_norm_total/pre_clip"])) for row in rows(logger)]
        assert found == [(step, epoch, True) for step, epoch in zip("0123457", "0000111", strict=True)]

    def test_a_bad_step_between_logged_ones_has_a_row(self, make_trainer, tmp_path):
        logger = CSVLogger(tmp_path)
        trainer = make_trainer(callbacks=[GradGuard()], logger=logger, log_every_n_steps=4)
        with pytest.warns(UserWarning, match="step 1 was skipped"):
            trainer.fit(Regression({1: math.nan}), batches(4))
        found = [(row["step"], row["epoch"], bool(row["train_loss"])) for row in rows(logger)]
        assert found == [("0", "0", False), ("1", "0", False), ("2", "0", False), ("3", "0", True)]

    def test_optimizers_share_the_row_of_their_step(self, make_trainer, tmp_path):
        logger = CSVLogger(tmp_path)
        make_trainer(callbacks=[GradGuard()], logger=logger).fit(Pair(), batches(2))
        found = rows(logger)
        assert len(found) == 2
        assert all(row["grad_norm_total/pre_clip/opt0"] and row["grad_norm_total/pre_clip/opt1"] for row in found)

    def test_rows_that_others_log_at_the_step_are_left_alone(self, make_trainer, tmp_path):
        class Chatty(Regression):
            def on_train_batch_end(self, *args):
                self.logger.log_metrics({"mine": 1.0}, 0)
                self.logger.log_metrics(metrics={"mine": 2.0}, step=0)

        logger = CSVLogger(tmp_path)
        make_trainer(callbacks=[GradGuard()], logger=logger).fit(Chatty(), batches(1))
        assert [bool(row["grad_norm_total/pre_clip"]) for row in rows(logger)] == [False, False, True]

    def test_a_logger_that_does_not_take_our_numbers_gets_the_users(self, make_trainer, tmp_path):
        class Picky(CSVLogger):
            def log_metrics(self, metrics, step=None):
                if any(key.startswith("grad") for key in metrics):
                    raise KeyError("no such column")
                super().log_metrics(metrics, step)

        logger = Picky(tmp_path)
        trainer = make_trainer(callbacks=[GradGuard()], logger=logger)
        with pytest.warns(UserWarning, match="(rows|share of rows) in Picky failed") as told:
            trainer.fit(Regression(), batches(3))
        told_of = [str(warning.message) for warning in told if "in Picky failed" in str(warning.message)]
        assert len(told_of) == 2, "neither in the user's rows nor in rows of their own"
        assert [row["step"] for row in rows(logger)] == ["0", "1", "2"]


def test_the_scalars_of_a_run_are_in_its_event_file(make_trainer, board):
    guard = GradGuard(clip=NormClip(0.5))
    make_trainer(callbacks=[guard], logger=board).fit(Regression(), batches())
    accumulator = read(board)
    assert ours(accumulator.Tags()["scalars"]) == SCALARS
    written = [event.value for event in accumulator.Scalars("grad_norm_total/pre_clip")]
    assert written == pytest.approx([record.total_norm for record in guard.records], rel=1e-6)
    assert [e.value for e in accumulator.Scalars("grad_norm_total/post_clip")] == pytest.approx([0.5] * 8, rel=1e-4)


def test_all_values_of_a_step_are_in_one_event(make_trainer, board):
    make_trainer(callbacks=[GradGuard()], logger=board).fit(Regression(), batches(2))
    (path,) = [str(p) for p in __import__("pathlib").Path(board.log_dir).glob("events*")]
    events = [[value.tag for value in event.summary.value] for event in EventFileLoader(path).Load()]
    with_norms = [tags for tags in events if "grad_norm/net.0" in tags]
    assert len(with_norms) == 2
    assert all("grad_norm_total/pre_clip" in tags and "gradguard/skipped_steps" in tags for tags in with_norms)


def test_gradients_stand_at_the_steps_of_the_users_own_metrics(make_trainer, board):
    make_trainer(callbacks=[GradGuard()], logger=board, log_every_n_steps=3).fit(Regression(), batches())
    accumulator = read(board)
    steps = [event.step for event in accumulator.Scalars("grad_norm_total/pre_clip")]
    assert [event.step for event in accumulator.Scalars("train_loss")] == [2, 5]
    # And the first and the last one, so that beginning and end of a run are seen, and the early ones.
    assert steps == [0, 1, 2, 4, 5, 7]


def test_an_interval_of_its_own_is_kept(make_trainer, board):
    trainer = make_trainer(callbacks=[GradGuard(log_every_n_steps=4)], logger=board, log_every_n_steps=1)
    trainer.fit(Regression(), batches())
    assert [event.step for event in read(board).Scalars("grad_norm/net.0")] == [0, 1, 2, 3, 4, 7]


def test_two_optimizers_have_tags_of_their_own_at_the_same_steps(make_trainer, board):
    make_trainer(callbacks=[GradGuard(clip=NormClip(1.0))], logger=board).fit(Pair(), batches())
    accumulator = read(board)
    assert {"grad_norm/opt0/generator", "grad_norm/opt1/critic", "grad_norm_total/pre_clip/opt1"} <= set(
        accumulator.Tags()["scalars"]
    )
    assert [e.step for e in accumulator.Scalars("grad_norm/opt0/generator")] == list(range(8))


@pytest.mark.filterwarnings("ignore:step 2 was skipped")
def test_a_bad_step_shows_between_logged_steps(make_trainer, board):
    make_trainer(callbacks=[GradGuard()], logger=board, log_every_n_steps=5).fit(Regression({2: math.nan}), batches())
    totals = read(board).Scalars("grad_norm_total/pre_clip")
    assert [event.step for event in totals] == [0, 1, 2, 4, 7]
    assert math.isnan(totals[2].value)


def test_clipping_alone_logs_totals_and_no_layers(make_trainer, board):
    make_trainer(callbacks=[AdaptiveGradientClipping(NormClip(0.5))], logger=board).fit(Regression(), batches())
    tags = ours(read(board).Tags()["scalars"])
    assert "grad_norm_total/threshold" in tags
    assert not any(tag.startswith("grad_norm/") for tag in tags)


def test_the_loggers_prefix_is_kept(make_trainer, tmp_path):
    board = TensorBoardLogger(tmp_path, prefix="mine")
    make_trainer(callbacks=[GradGuard()], logger=board).fit(Regression(), batches())
    assert "mine-grad_norm/net.0" in read(board).Tags()["scalars"]


def test_csv_and_tensorboard_side_by_side(make_trainer, board, tmp_path):
    table = CSVLogger(tmp_path, name="table")
    make_trainer(callbacks=[GradGuard(clip=NormClip(0.5))], logger=[board, table]).fit(Regression(), batches())
    with open(f"{table.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["grad_norm_total/pre_clip"]]
    assert len(rows) == 8
    assert set(rows[0]) >= SCALARS
    assert ours(read(board).Tags()["scalars"]) == SCALARS


@pytest.mark.parametrize("norm_type", [1.0, math.inf], ids=str)
def test_per_layer_charts_can_show_another_norm(make_trainer, norm_type):
    monitor = GradientNormMonitor(norm_type=norm_type)
    model = Regression()
    make_trainer(callbacks=[monitor]).fit(model, batches(1))
    gradients = torch.cat([p.grad.flatten() for p in model.net[0].parameters()])
    assert monitor.records[0].layer_norms[0] == pytest.approx(float(gradients.norm(norm_type)), rel=1e-5)


def test_a_jsonl_file_holds_the_same_records(make_trainer, tmp_path):
    guard = GradGuard(sinks=[JsonlSink(tmp_path / "g.jsonl")])
    make_trainer(callbacks=[guard]).fit(Regression(), batches())
    assert list(read_jsonl(tmp_path / "g.jsonl")) == guard.records
    assert json.loads((tmp_path / "g.jsonl").read_text().splitlines()[0])["layers"] == ["net.0", "net.2"]


@pytest.mark.parametrize(
    "options",
    [{"logger": False}, {"fast_dev_run": True}, {"barebones": True}],
    ids=["no logger", "fast_dev_run", "barebones"],
)
def test_training_goes_on_without_a_logger(make_trainer, options):
    if "barebones" in options:
        options = {**options, "log_every_n_steps": None, "logger": None, "enable_checkpointing": None}
        options |= {"enable_progress_bar": None, "enable_model_summary": None}
    guard = GradGuard(clip=NormClip(0.5))
    model = Quiet() if "barebones" in options else Regression()
    make_trainer(callbacks=[guard], **options).fit(model, batches())
    assert guard._session.pipelines[0].counters.steps == (1 if "fast_dev_run" in options else 8)


class Quiet(Regression):
    """Logs nothing: in barebones mode Lightning warns of every log."""

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()
