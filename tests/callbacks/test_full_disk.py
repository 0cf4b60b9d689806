"""Our records never end a run: not on a full disk, and not where the folder is taken away under them."""

import contextlib
import csv
import resource
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from lightning_gradguard import GradGuard
from tests.models import Regression, batches

LOGGERS = {"tensorboard": TensorBoardLogger, "csv": lambda folder: CSVLogger(folder, flush_logs_every_n_steps=5)}
NUM_STEPS = 40

loggers = pytest.mark.parametrize("make_logger", LOGGERS.values(), ids=LOGGERS)


@contextlib.contextmanager
def room_for(num_bytes):
    """Files that grow above so many bytes fail to be written, as on a disk without room: an ``OSError``."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Deep(Regression):
    """Has more numbers of ours than of its own; or none of its own."""

    def __init__(self, logs=True, at_step=lambda step: None, factors=None):
        super().__init__(factors, lambda params: torch.optim.Adam(params, 1e-3))
        torch.manual_seed(0)
        self.net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)], nn.Linear(4, 1))
        self.logs = logs
        self.at_step = at_step

    def training_step(self, batch, batch_idx):
        self.at_step(self.global_step)
        return super().training_step(batch, batch_idx)

    def log(self, *args, **kwargs):
        if self.logs:
            super().log(*args, **kwargs)


def weights_of(make_trainer, logger, model, *callbacks):
    make_trainer(callbacks=list(callbacks), logger=logger).fit(model, batches(NUM_STEPS))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def steps_in(logger):
    (path,) = Path(logger.log_dir).glob("events*")
    events = list(EventFileLoader(str(path)).Load())
    return [event.step for event in events if any(v.tag == "grad_norm/net.0" for v in event.summary.value)]


@loggers
@pytest.mark.filterwarnings("ignore:.*(failed and is taken away|was skipped|could not be saved)")
def test_a_run_that_logs_nothing_goes_to_its_end_on_a_full_disk(make_trainer, tmp_path, make_logger):
    torch.manual_seed(0)
    nan_at_step_4 = {4: float("nan")}
    unlimited = weights_of(make_trainer, False, Deep(logs=False, factors=nan_at_step_4), GradGuard())
    guard = GradGuard(incident_dir=tmp_path / "incidents")
    with room_for(10_000), pytest.warns(UserWarning, match=r"\[Errno 27\] File too large") as told:
        found = weights_of(make_trainer, make_logger(tmp_path), Deep(logs=False, factors=nan_at_step_4), guard)
    assert torch.equal(found, unlimited)
    words = "TensorBoard records are lost" if make_logger is TensorBoardLogger else "the file of CSVLogger with"
    assert sum(words in str(warning.message) for warning in told) == 1
    assert any("the incident at step 4 could not be saved" in str(warning.message) for warning in told)


@pytest.mark.filterwarnings("ignore:.*(failed and is taken away|records are lost)")
def test_the_event_file_can_be_read_to_its_end_and_goes_on_once_there_is_room(make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    with contextlib.ExitStack() as room:

        def at_step(step):
            if step == 5:
                room.enter_context(room_for(10_000))
            if step == 30:
                logger.experiment.flush()  # what is on its way comes to nothing yet
                room.close()

        weights_of(make_trainer, logger, Deep(logs=False, at_step=at_step), GradGuard())
    steps = steps_in(logger)
    assert steps[:3] == [0, 1, 2]
    assert not {20, 25, 29} & set(steps)
    assert steps[-5:] == [35, 36, 37, 38, 39]


@pytest.mark.filterwarnings("ignore:.*failed and is taken away")
def test_the_users_rows_are_all_in_the_file_that_has_no_room_for_ours(make_trainer, tmp_path):
    logger = CSVLogger(tmp_path)
    with contextlib.ExitStack() as room:

        def at_step(step):
            if step == 34:
                size = Path(f"{logger.log_dir}/metrics.csv").stat().st_size
                room.enter_context(room_for(size + 450))  # for six rows of the user's, not for one of ours

        weights_of(make_trainer, logger, Deep(at_step=at_step), GradGuard())
    with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    of_the_user = [(int(row["step"]), row["epoch"]) for row in found if row["train_loss"]]
    assert of_the_user == [(step, "0") for step in range(NUM_STEPS)]
    assert [int(row["step"]) for row in found if row["grad_norm/net.0"]] == list(range(34))
    assert "save" not in logger.experiment.__dict__


@pytest.mark.filterwarnings("ignore:.*failed and is taken away")
def test_a_table_that_cannot_be_written_anew_with_our_columns_is_as_it_was(make_trainer, tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=5)
    logger.log_metrics({"epoch": 0, "train_loss": 0.5}, 4)
    before = Path(f"{logger.log_dir}/metrics.csv").read_text()
    with room_for(200):  # less than our columns' names take
        weights_of(make_trainer, logger, Deep(logs=False), GradGuard())
    assert Path(f"{logger.log_dir}/metrics.csv").read_text() == before


@loggers
@pytest.mark.filterwarnings("ignore:.*(failed and is taken away|records are lost)")
def test_a_run_that_logs_nothing_goes_on_where_its_folder_is_taken_away(make_trainer, tmp_path, make_logger):
    logger = make_logger(tmp_path / "logs")

    def at_step(step):
        if step == 10:
            shutil.rmtree(tmp_path / "logs", ignore_errors=True)

    model = Deep(logs=False, at_step=at_step)
    trainer = make_trainer(callbacks=[GradGuard()], logger=logger)
    trainer.fit(model, batches(NUM_STEPS))
    assert trainer.global_step == NUM_STEPS


@pytest.mark.filterwarnings("ignore:.*(failed and is taken away|records are lost)")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_users_own_events_is_theirs(make_trainer, tmp_path):
    """Without us the run ends in the same error: only what we write is ours to bear."""
    ended = []
    for callbacks in ([], [GradGuard()]):
        logger = TensorBoardLogger(tmp_path / str(len(ended)))

        def at_step(step, logger=logger):
            if step == 10:
                logger.experiment.add_text("notes", "word " * 10_000, step)

        with room_for(20_000), pytest.raises(OSError, match="File too large"):
            weights_of(make_trainer, logger, Deep(logs=False, at_step=at_step), *callbacks)
        ended.append(logger)
    assert len(ended) == 2
