"""One fault on one process, under every strategy and every action: what becomes of the run, on each process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_gradguard import GradGuard, NonFiniteGradientError, NonFiniteGuard
from tests.modes.modes import ShardedProblem, ddp, fsdp, model_parallel, quiet_trainer
from tests.modes.training import Problem, batches, examples

BAD_BATCH = 2
STRATEGIES: dict[str, tuple[type[Problem], Callable[[], Mapping[str, Any]]]] = {
    "DDP": (Problem, ddp),
    "FSDP1": (Problem, fsdp),
    "FSDP2": (ShardedProblem, partial(model_parallel, 1)),
    "TP": (ShardedProblem, partial(model_parallel, 2)),
}
FAULTS = ("batch", "loss", "exception")
ACTIONS = ("skip", "rollback", "stop", "raise")


@dataclass(frozen=True)
class Cell:
    """One fault in one run. Under tensor parallelism processes have one batch, and so all of them meet the fault."""

    strategy: str
    fault: str
    action: Any
    accumulate: int

    def __str__(self) -> str:
        return f"{self.strategy} {self.fault} {self.action} x{self.accumulate}"

    @property
    def parts_company(self) -> bool:
        """Whether one process alone ends in an error: the others then wait for it in a collective of the strategy."""
        return self.fault == "exception" and self.strategy != "TP"

    @property
    def right(self) -> str:
        """What every process should answer, or the one that met the fault."""
        if self.fault == "exception":
            return "its own error, with a note and a bundle"
        if self.action == "raise":
            return "our error"
        before = ["ok"] * (BAD_BATCH // self.accumulate)
        rest = [] if self.action == "stop" else ["ok"] * (6 // self.accumulate - len(before) - 1)
        return " ".join([*before, "skipped", *rest])


CELLS = [Cell(*cell) for cell in product(STRATEGIES, FAULTS, ACTIONS, (1, 2))]


def run_cell(folder: str, cell: Cell) -> str:
    """Trains six batches, one of them bad on the last process; returns what became of it."""
    problem, options = STRATEGIES[cell.strategy]

    class Faulty(problem):  # type: ignore[misc, valid-type]
        def loss(self, index: int) -> Tensor:
            inputs, targets = examples(index)
            meets_it = index == BAD_BATCH and (cell.strategy == "TP" or dist.get_rank() == dist.get_world_size() - 1)
            if meets_it and cell.fault != "loss":
                inputs[3, 2] = torch.nan
            if meets_it and cell.fault == "exception" and bool(inputs.isnan().any()):
                raise ValueError("Expected parameter loc to satisfy the constraint Real()")
            loss = (self.net(inputs) - targets).square().mean()
            return loss + torch.nan if meets_it and cell.fault == "loss" else loss

    watch = GradGuard(on_nonfinite=None, log_every_n_steps=1, probe_every_n_steps=None, verbose=False)
    guard = NonFiniteGuard(cell.action, incident_dir=os.path.join(folder, "incidents"))
    trainer = quiet_trainer(folder, [watch, guard], accumulate_grad_batches=cell.accumulate, **options())
    module = Faulty()
    try:
        trainer.fit(module, batches())
    except NonFiniteGradientError:
        return "our error"
    except ValueError as error:
        return _own_error(error, folder)
    weights = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    assert all(bool(weight.isfinite().all()) for weight in weights)
    assert {record.cause for record in watch.records if record.verdict == "skipped"} == {"loss"}
    return " ".join(record.verdict for record in watch.records)


def _own_error(error: ValueError, folder: str) -> str:
    notes = " ".join(getattr(error, "__notes__", ()))
    told = "holds 1 NaN at [3, 2]" in notes
    saved = os.path.isdir(os.path.join(folder, "incidents")) and "Saved to" in notes
    return "its own error" + (", with a note" if told else "") + (" and a bundle" if saved else "")


def run_alone(folder: str, cell: Cell) -> str:
    """As :func:`run_cell`, where one process leaves: it writes down its answer and is gone, as after a crash."""
    try:
        answer = run_cell(folder, cell)
    except RuntimeError as error:  # of the collective in which a process waited for the one that is gone
        return f"ended: {type(error).__name__}"
    with open(os.path.join(folder, "answer.txt"), "w") as file:
        file.write(answer)
    os._exit(0)
