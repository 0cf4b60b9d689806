"""The loop of docs/huggingface.md, under accelerate itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"


def test_the_loop_of_the_page_runs_and_keeps_nan_away(capsys: Any) -> None:
    model = nn.Linear(4, 1)
    losses = iter([1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0, 1.0])

    def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean() * next(losses)

    names: dict[str, Any] = {
        "Accelerator": lambda **options: Accelerator(cpu=True, **options),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": DataLoader(torch.ones(8, 4), batch_size=1),
        "loss_of": loss_of,
    }
    block = PAGE.read_text(encoding="utf-8").split("```python")[2].split("```")[0]
    exec(block.replace("from accelerate import Accelerator\n", ""), names)
    names["pipeline"].flush()
    names["pipeline"].views.close()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert "GradGuard: 4 steps" in capsys.readouterr().out and names["pipeline"].counters.skipped == 1
