"""With any logger, several, or none; and with a Trainer that keeps nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_gradguard import GradGuard, GradientNormMonitor, JsonlSink, NormClip, read_jsonl
from tests.modes.modes import quiet_trainer
from tests.modes.training import NUM_BATCHES, Problem, Twin, batches


def fit(tmp_path: Any, **options: Any) -> GradGuard:
    watch = GradGuard(clip=NormClip(0.5), log_every_n_steps=1)
    quiet_trainer(str(tmp_path), [watch], **options).fit(Problem(), batches())
    return watch


def test_csv_gets_the_scalars(tmp_path: Path) -> None:
    fit(tmp_path, logger=CSVLogger(tmp_path, name="csv"))
    (table,) = tmp_path.glob("csv/**/metrics.csv")
    header, *rows = table.read_text().splitlines()
    assert {"grad_norm_total/pre_clip", "grad_norm/net.first"} <= set(header.split(",")) and len(rows) == NUM_BATCHES


def test_tensorboard_gets_all_values_of_a_step(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(tmp_path, logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    found = [event.value for event in events.Scalars("grad_norm_total/pre_clip")]
    assert len(found) == NUM_BATCHES and found[0] == pytest.approx(Twin().totals[0], rel=1e-5)


def test_several_loggers_get_the_same(tmp_path: Path) -> None:
    fit(tmp_path, logger=[CSVLogger(tmp_path, name="one"), CSVLogger(tmp_path, name="two")])
    one, two = ((next(tmp_path.glob(f"{name}/**/metrics.csv"))).read_text() for name in ("one", "two"))
    assert one == two


@pytest.mark.filterwarnings("ignore:Parameter `enable_", "ignore:.*`barebones=True`", "ignore:.*barebones")
@pytest.mark.parametrize(
    "options",
    [{"logger": False}, {"fast_dev_run": 3}, {"barebones": True, "enable_checkpointing": None, "logger": None}],
    ids=["no logger", "fast_dev_run", "barebones"],
)
def test_a_trainer_that_keeps_nothing_is_watched_and_clipped_all_the_same(options: Any, tmp_path: Path) -> None:
    options = dict(options)
    if options.get("barebones"):
        options |= {"enable_progress_bar": None, "enable_model_summary": None, "log_every_n_steps": None}
    watch = fit(tmp_path, **options)
    assert {record.verdict for record in watch.records} == {"clipped"}


def test_records_may_go_to_a_file_of_ones_own(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "gradients.jsonl")
    watch = GradientNormMonitor(log_every_n_steps=2, sinks=[sink])
    quiet_trainer(str(tmp_path), [watch]).fit(Problem(), batches())
    assert [record.step for record in read_jsonl(sink.path) if not record.early] == [0, 1, 3, 5]
