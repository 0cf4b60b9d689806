"""A fault on one of two processes: what every process makes of it, in time. The whole table is in benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.modes.company import COMPANY
from tests.modes.faults import CELLS, Cell, run_alone, run_cell
from tests.modes.processes import run_together

TOGETHER = [
    cell
    for cell in CELLS
    if not cell.parts_company and cell.action in ("rollback", "raise") and cell.strategy in ("DDP", "FSDP2")
] + [Cell("TP", "exception", "skip", 1), Cell("FSDP1", "loss", "stop", 2)]
APART = Cell("DDP", "exception", "skip", 2)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = str(tmp_path_factory.mktemp("faults"))
    return run_together(2, {**{str(cell): partial(run_cell, cell=cell) for cell in TOGETHER}, **COMPANY}, folder)


@pytest.mark.parametrize("cell", TOGETHER, ids=str)
def test_every_process_answers_alike_and_in_time(cell: Cell, answers: Any) -> None:
    assert answers[str(cell)] == [cell.right] * 2


def test_the_process_that_raised_says_why_saves_its_batch_and_waits_for_nobody(tmp_path: Path) -> None:
    others = run_together(2, {"cell": partial(run_alone, cell=APART)}, str(tmp_path))["cell"]
    assert (tmp_path / "cell" / "answer.txt").read_text() == APART.right
    assert others[0].startswith("ended")


def test_processes_that_train_a_model_each_do_not_wait_for_each_other(answers: Any) -> None:
    own = [["ok", "ok", "ok"], ["ok", "ok", "skipped", "ok", "ok"]]
    assert answers["each_trains_a_model_of_its_own"] == own


def test_the_state_inside_of_a_zero_redundancy_optimizer_is_rolled_back(answers: Any) -> None:
    assert answers["the_state_in_shards_goes_back"] == [[1, 2, 3, 2]] * 2


def test_a_hook_that_comes_after_the_fit_has_started_is_noticed_at_the_first_step(answers: Any) -> None:
    assert answers["a_hook_that_comes_late"] == [["ok", "ok", "skipped", "ok", "ok", "ok"]] * 2


def test_a_step_with_a_collective_in_it_is_not_run_again_and_who_met_the_fault_saves_it(answers: Any) -> None:
    assert answers["a_step_that_talks_is_not_run_by_one_alone"] == [(["step-000001-opt0-rank1"], [True])] * 2


def test_a_nan_loss_on_one_process_is_heard_by_all_and_costs_no_all_reduce(answers: Any) -> None:
    assert answers["a_nan_loss_of_one_is_heard_without_an_all_reduce"] == [(0, [("skipped", "loss")])] * 2


def test_a_nan_loss_on_one_process_is_called_a_nan_loss_on_all(answers: Any) -> None:
    by_it = "the loss is NaN on one process or more, and gradients by it"
    first, last = answers["a_nan_loss_is_called_one_by_who_saves_it_and_by_the_error"]
    assert any(by_it in said for said in first[0] + last[0])
    assert all(error.startswith(by_it.lower()) for error in (first[1].lower(), last[1].lower()))


def test_a_nan_loss_that_the_device_drops_without_the_host_is_called_one_on_all(answers: Any) -> None:
    of_the_loss, of_another = [(2, "skipped", "loss")], [(2, "skipped", "nan")]
    assert answers["a_nan_loss_that_the_device_drops_is_heard_of_alike"] == [[of_the_loss, of_another]] * 2


def test_inside_of_join_a_guard_is_refused_in_words(answers: Any) -> None:
    for said in answers["inside_of_join_it_is_refused"]:
        assert "a guard needs every process at every step" in said and "Leave out the guard" in said
