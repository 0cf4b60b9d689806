"""The support table, cell by cell: every mode of training against everything that the library can do."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tests.modes.capabilities import CAPABILITIES
from tests.modes.modes import MODES, Mode
from tests.modes.processes import failures, run_together

CELLS = [(mode, capability) for mode in MODES for capability in CAPABILITIES]
SUPPORTED = [(m, c) for m, c in CELLS if c not in (*MODES[m].refused, *MODES[m].not_run)]
REFUSED = [(m, c) for m, c in CELLS if c in MODES[m].refused]


def ids(cells: list[tuple[str, str]]) -> list[str]:
    return [f"{mode}-{capability.replace(' ', '-')}" for mode, capability in cells]


def check(folder: str, mode: str, capability: str) -> float:
    return CAPABILITIES[capability](folder, MODES[mode])


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs all cells that need so many processes, in one launch; the answers of each rank, by cell."""

    @cache
    def answers(processes: int) -> dict[str, list[Any]]:
        cells = [(m, c) for m, c in SUPPORTED if MODES[m].processes == processes]
        checks = {f"{m} {c}": partial(check, mode=m, capability=c) for m, c in cells}
        return run_together(processes, checks, str(tmp_path_factory.mktemp(f"processes{processes}")))

    return answers


@pytest.mark.filterwarnings("ignore:step . was", "ignore:You're resuming from a checkpoint that ended")
@pytest.mark.parametrize(("mode", "capability"), SUPPORTED, ids=ids(SUPPORTED))
def test_supported(mode: str, capability: str, tmp_path: Any, together: Any, record_property: Any) -> None:
    row: Mode = MODES[mode]
    if row.processes == 1:
        found = [check(str(tmp_path), mode, capability)]
    else:
        found = together(row.processes)[f"{mode} {capability}"]
        assert not failures(found), failures(found)
    record_property("deviation", max(found))
    assert max(found) <= row.tolerance
    assert len(set(found)) == 1, f"the processes disagree: {found}"


@pytest.mark.parametrize(("mode", "capability"), REFUSED, ids=ids(REFUSED))
def test_refused_at_fit_start(mode: str, capability: str, tmp_path: Any) -> None:
    with pytest.raises(MisconfigurationException, match=MODES[mode].refused[capability]):
        check(str(tmp_path), mode, capability)
