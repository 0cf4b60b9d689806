"""Training together: the same decision on every process, and the numbers of the whole."""

from __future__ import annotations

from typing import Any

import pytest

from tests.modes.distributed_checks import CHECKS, COLLECTIVES
from tests.modes.processes import failures, run_together


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of two processes found, by check; all checks in one launch."""
    results = run_together(2, CHECKS, str(tmp_path_factory.mktemp("together")))

    def of(name: str) -> Any:
        found = results[name]
        assert not failures(found), failures(found)
        assert found[0] == found[1], f"the processes disagree: {found}"
        return found[0]

    return of


@pytest.mark.parametrize("mode", ["ddp", "fsdp1", "fsdp2", "tp"])
def test_every_policy_gives_the_weights_of_one_process(mode: str, answers: Any, record_property: Any) -> None:
    deviations = answers(f"policies {mode}")
    record_property("deviations", deviations)
    assert max(deviations.values()) < 1e-5, deviations


@pytest.mark.parametrize("mode", ["fsdp1", "fsdp2", "tp"])
def test_a_step_costs_one_all_reduce_and_one_more_where_elements_or_units_count(
    mode: str, answers: Any, record_property: Any
) -> None:
    found = answers(f"collectives {mode}")
    record_property("collectives", found)
    assert found == {name: number for name, (_, number) in COLLECTIVES.items()}


def test_under_ddp_a_step_costs_no_all_reduce_since_gradients_are_equal(answers: Any) -> None:
    assert set(answers("collectives ddp").values()) == {0}


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_a_nan_in_one_shard_makes_every_process_skip(sharding: str, answers: Any) -> None:
    assert answers(f"one shard skip {sharding}") == ["ok", "ok", "skipped", "ok", "ok", "ok"]


def test_a_nan_in_one_shard_stops_every_process(answers: Any) -> None:
    assert answers("one shard stop fsdp2") == ["ok", "ok", "skipped"]


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_a_nan_in_one_shard_raises_on_every_process_and_names_the_layer(sharding: str, answers: Any) -> None:
    assert answers(f"one shard raise {sharding}") is True


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_under_ddp_a_nan_on_one_rank_leaves_all_with_the_same_weights(action: str, answers: Any) -> None:
    verdicts, _ = answers(f"one rank {action}")
    assert verdicts == ["ok", "ok", "skipped", "ok", "ok", "ok"]


def test_under_ddp_a_nan_on_one_rank_stops_all(answers: Any) -> None:
    verdicts, _ = answers("one rank stop")
    assert verdicts == ["ok", "ok", "skipped"]


def test_under_ddp_a_nan_on_one_rank_raises_on_all_and_nobody_hangs(answers: Any) -> None:
    raised, _ = answers("one rank raise")
    assert raised.startswith("raised at")


@pytest.mark.parametrize("how", ["static graph", "bucket views", "accumulation", "unused parameters", "compressed"])
def test_ddp_may_be_told_how_to_communicate(how: str, answers: Any) -> None:
    assert isinstance(answers(how), float)


def test_where_a_communication_hook_leaves_processes_apart_they_still_decide_together(answers: Any) -> None:
    assert answers("apart") == ["ok", "ok", "ok", "skipped", "ok", "ok"]


def test_lightnings_own_clipping_by_norm_is_refused_under_fsdp_where_ours_works(answers: Any) -> None:
    assert answers("refused") is True


def test_fsdp_without_original_parameters_keeps_the_total_and_loses_the_layers(answers: Any) -> None:
    deviation, num_layers = answers("flat")
    assert deviation < 1e-5 and num_layers == 3  # one flat parameter for each wrapped layer


@pytest.mark.parametrize("mode", ["fsdp2", "tp"])
def test_other_norms_than_l2_are_those_of_whole_tensors_too(mode: str, answers: Any) -> None:
    assert answers(f"other norms {mode}") < 1e-5


def test_sharded_gradients_whose_norm_overflows_keep_their_direction(answers: Any) -> None:
    assert answers("overflow") < 1e-5


def test_gradients_left_as_partial_sums_are_summed_before_they_are_measured(answers: Any) -> None:
    norm, weights = answers("partial sums")
    assert norm < 1e-5 and weights < 1e-5
