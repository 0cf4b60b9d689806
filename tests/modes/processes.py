"""Runs checks in real processes that train together, within a time limit.

The processes come from one server that has imported lightning already, and each group runs many checks, one after
the other, over one gloo process group.
"""

from __future__ import annotations

import datetime
import os
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from queue import Empty
from typing import Any

from tests.forked import CONTEXT

Check = Callable[[str], Any]  # gets a folder that all ranks share; what it returns goes back to the test


def run_together(
    num_processes: int, checks: Mapping[str, Check], folder: str, *, limit_s: float = 600.0
) -> dict[str, list[Any]]:
    """Runs every check on every rank; returns for each check what the ranks returned, or the error they met.

    A rank that does not answer in time is ended, and its checks read ``"no answer"``. They meet over a file: a port
    that is free now may be another's when they use it.
    """
    queue = CONTEXT.Queue()
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, num_processes, dict(checks), folder, queue))
        for rank in range(num_processes)
    ]
    for process in ranks:
        process.start()
    results: dict[str, list[Any]] = {name: ["no answer"] * num_processes for name in checks}
    deadline = time.monotonic() + limit_s
    missing = num_processes * len(checks)
    while missing and time.monotonic() < deadline:
        someone = any(process.is_alive() for process in ranks)
        try:
            rank, name, result = queue.get(timeout=1.0)
        except Empty:
            if not someone:
                break
            continue
        results[name][rank] = result
        missing -= 1
    for process in ranks:
        process.join(timeout=0.1 if missing else 5.0)
        if process.is_alive():
            process.kill()
            process.join()
    return results


def _rank(rank: int, world: int, checks: Mapping[str, Check], folder: str, queue: Any) -> None:
    os.environ |= {
        "WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
    }
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    limit = datetime.timedelta(seconds=120)  # a collective that the other rank never joins is an error, not a hang
    meet = f"file://{os.path.join(folder, 'meeting')}"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world, timeout=limit)
    for name, check in checks.items():
        own = os.path.join(folder, name)
        os.makedirs(own, exist_ok=True)
        torch.manual_seed(0)
        try:
            result: Any = check(own)
        except BaseException:
            result = traceback.format_exc()
        queue.put((rank, name, result))
        torch.distributed.barrier()
    queue.close()
    queue.join_thread()
    torch.distributed.destroy_process_group()


def failures(results: Sequence[Any]) -> str:
    """The errors that the ranks of one check met, for an assertion's message."""
    return "\n".join(f"rank {rank}: {result}" for rank, result in enumerate(results) if isinstance(result, str))
