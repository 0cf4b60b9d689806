"""The table of published models tells the cases apart: small models that do what those packages do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.clients import checks
from benchmarks.clients.__main__ import main, page
from benchmarks.clients.models import MODELS, QUIET
from benchmarks.machine import RESULTS


@dataclass(slots=True)
class Batch:
    """As of darts: attributes, and no ``__dict__``."""

    rows: Tensor
    weights: Tensor | None = None


class Forecaster(pl.LightningModule):
    """Predicts the sum of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, rows: Tensor) -> Tensor:
        return (self.net(rows) - rows.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch.rows if isinstance(batch, Batch) else batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Probabilistic(Forecaster):
    """As pytorch-forecasting, GluonTS and scvi-tools: a distribution refuses NaN with an exception of its own."""

    def loss(self, rows: Tensor) -> Tensor:
        return -torch.distributions.Normal(self.net(rows), 1.0).log_prob(rows.sum(1, keepdim=True)).mean()


class Masking(Forecaster):
    """As neuralforecast and chemprop: what is not finite counts as missing."""

    def loss(self, rows: Tensor) -> Tensor:
        return super().loss(rows[rows.isfinite().all(1)])


class Forgetful(Forecaster):
    """Draws from a generator that nobody seeds: two plain runs differ."""

    generator = torch.Generator()

    def loss(self, rows: Tensor) -> Tensor:
        return super().loss(rows + 0.1 * torch.randn(rows.shape, generator=self.generator))


def plainly(module: type[pl.LightningModule], batches: Callable[[list[Tensor]], Any] = Batch) -> Any:
    """Trains as most packages do."""

    def train(callbacks: list[Callback], options: dict[str, Any]) -> None:
        rows = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        loader = DataLoader(list(rows), batch_size=8, collate_fn=lambda items: batches(torch.stack(items)))
        pl.Trainer(max_epochs=1, enable_checkpointing=False, callbacks=callbacks, **QUIET | options).fit(
            module(), loader
        )

    return train


def with_copies(callbacks: list[Callback], options: dict[str, Any]) -> None:
    """As neuralforecast, which trains a copy of a model that holds the callbacks."""
    plainly(Forecaster)(copy.deepcopy(callbacks), options)


CASES: dict[str, tuple[Any, dict[str, str | tuple[str, ...]]]] = {
    "a batch that is an object": (
        plainly(Forecaster),
        {"watched": "same bits", "NaN batch": "skipped 1, finite", "replay": "reproduced, bit for bit"},
    ),
    "a distribution that refuses NaN": (
        plainly(Probabilistic),
        {"watched": "same bits", "NaN batch": ("exception: ValueError: Expected parameter loc", "skipped 1, finite")},
    ),
    "missing values": (
        plainly(Masking, lambda rows: {"rows": rows}["rows"]),
        {"NaN batch": "no gradient was NaN, finite"},
    ),
    "a run that does not repeat itself": (plainly(Forgetful), {"plain": "10 steps, not repeatable"}),
    "callbacks that are copied": (
        with_copies,
        {"watched": "same bits", "records": ("NO: in a copy", "yes, of a copy")},
    ),
}


@pytest.mark.filterwarnings("ignore:step 7 was skipped")
@pytest.mark.parametrize("case", CASES)
def test_the_table_says_what_came_of_a_model(case: str, tmp_path: Path) -> None:
    train, expected = CASES[case]
    row = checks.check(train, tmp_path)
    for column, words in expected.items():
        assert row[column].startswith(words), row
    assert float(row["norms"]) < 1e-6 and row["everything on"].startswith("finite"), row


def test_a_model_that_ends_without_us_has_no_row_of_ours(tmp_path: Path) -> None:
    def broken(callbacks: list[Callback], options: dict[str, Any]) -> None:
        raise ArithmeticError("of its own | and long")

    assert checks.check(broken, tmp_path) == {"plain": "ArithmeticError: of its own / and long"}


def test_a_package_that_is_not_installed_is_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--one", "chemprop-mpnn"]) == 0
    assert json.loads(capsys.readouterr().out)["plain"] == "not installed"
    with pytest.raises(SystemExit):
        main(["chemprop"])
    assert "there is no chemprop; there are" in capsys.readouterr().err


def test_the_recorded_page_is_that_of_the_recorded_figures_and_holds_every_model() -> None:
    results = json.loads((RESULTS / "clients.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == list(MODELS)
    assert page(results).strip() in (RESULTS / "clients.md").read_text(encoding="utf-8")
