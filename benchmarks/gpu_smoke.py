"""Checks on a GPU what CPU tests cannot: precision, fused optimizers, DDP over NCCL, compilation, and host syncs.

python -m benchmarks.gpu_smoke            # prints a table; exit status 1 if a row fails, 2 without a GPU

Host syncs are counted with torch.cuda.set_sync_debug_mode: watching and clipping shall need none on a quiet step,
the guard one.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradguard import AGC, AutoClip, ClipPolicy, GradGuard, GradientPipeline, NormClip, ValueClip, ZClip

NUM_BATCHES = 8
BAD = 5


def examples(index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(64, 128, generator=torch.Generator().manual_seed(index))
    return inputs.to(device), inputs.sum(1, keepdim=True).to(device)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))


class Problem(pl.LightningModule):
    """A regression with one batch that is not finite."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer], compiled: bool = False) -> None:
        super().__init__()
        self.net = torch.compile(make_net()) if compiled else make_net()
        self.make_optimizer = optimizer

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        inputs, targets = examples(batch_idx, self.device)
        loss = (self.net(inputs.to(next(self.net.parameters()).dtype)) - targets).float().square().mean()
        return loss * float("nan") if batch_idx == BAD else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters(), lr=1e-3)


def train(
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    clip: ClipPolicy | None = None,
    compiled: bool = False,
    **options: Any,
) -> str:
    """Trains in one mode; what came of it in words, or an assertion that fails."""
    watch, module = GradGuard(clip=clip, log_every_n_steps=1), Problem(optimizer, compiled)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{"accelerator": "gpu", "devices": 1, **options},
            max_epochs=1,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(list(range(NUM_BATCHES)), batch_size=None))
    verdicts = [record.verdict for record in watch.records]
    assert verdicts[BAD] in ("skipped", "overflow"), verdicts
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters()), "weights are not finite"
    assert all("_orig_mod" not in layer for layer in watch.records[0].layers), watch.records[0].layers
    good = [record for record in watch.records if record.verdict in ("ok", "clipped")]
    assert len(good) >= NUM_BATCHES - 3, verdicts
    if clip is not None:
        assert all(record.post_clip_norm <= record.total_norm * 1.001 for record in good)
    return f"norm {good[-1].total_norm:.3f}, " + ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))


def syncs_of_a_quiet_step(clip: ClipPolicy | None, guard: bool, device: torch.device) -> int:
    """How often the host waits for the device in one step that is neither logged nor bad."""
    net = make_net().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    pipeline = GradientPipeline(
        net, optimizer, clip=clip, on_nonfinite="skip" if guard else None, log_every_n_steps=10**6
    )
    count = 0
    for index in range(4):  # the first ones allocate
        inputs, targets = examples(index, device)
        optimizer.zero_grad()
        (net(inputs) - targets).square().mean().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                pipeline.before_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        count = sum("synchroniz" in str(warning.message) for warning in seen)
        optimizer.step()
    return count


def check_syncs(clip: ClipPolicy | None, guard: bool, allowed: int, device: torch.device) -> str:
    count = syncs_of_a_quiet_step(clip, guard, device)
    assert count <= allowed, f"{count} host syncs, {allowed} allowed"
    return f"{count} host syncs"


def same_norms_as_on_the_cpu(device: torch.device) -> str:
    """Norms and clipped gradients agree with those of the CPU."""
    totals = []
    for place in (torch.device("cpu"), device):
        net = make_net().to(place)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        inputs, targets = examples(0, place)
        (net(inputs) - targets).square().mean().backward()
        record = GradientPipeline(net, optimizer, clip=NormClip(0.5), log_every_n_steps=1).before_step()
        totals.append((record.total_norm, record.post_clip_norm))
    worst = max(abs(a / b - 1.0) for a, b in zip(*totals, strict=True))
    assert worst < 1e-4, totals
    return f"largest deviation {worst:.1e}"


@dataclass(frozen=True)
class Row:
    name: str
    check: Callable[[], str]


def rows(device: torch.device) -> list[Row]:
    adam = partial(torch.optim.AdamW, fused=True)
    return [
        *(
            Row(f"precision {precision}", partial(train, precision=precision, clip=ZClip()))
            for precision in ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true", "16-mixed")
        ),
        Row("16-mixed, fused AdamW", partial(train, precision="16-mixed", optimizer=adam, clip=NormClip(0.5))),
        Row("32-true, fused AdamW, by value", partial(train, optimizer=adam, clip=ValueClip(0.01))),
        Row("torch.compile", partial(train, compiled=True, clip=AGC(0.05))),
        Row("DDP over NCCL, one process", partial(train, strategy="ddp", clip=AutoClip())),
        Row("norms as on the CPU", partial(same_norms_as_on_the_cpu, device)),
        Row("syncs: watching", partial(check_syncs, None, False, 0, device)),
        *(
            Row(f"syncs: {type(policy).__name__}", partial(check_syncs, policy, False, 0, device))
            for policy in (NormClip(0.5), ValueClip(0.01), AutoClip(), ZClip(), AGC(0.05))
        ),
        Row("syncs: ZClip and guard", partial(check_syncs, ZClip(), True, 1, device)),
    ]


def main(argv: Sequence[str]) -> int:
    if argv:
        print(__doc__)
        return 0 if argv[0] in ("-h", "--help") else 2
    if not torch.cuda.is_available():
        print("gpu_smoke: needs a CUDA device, and there is none", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    title = f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, lightning {pl.__version__}, {date.today()}"
    table, failed = Table("", "result", "", title=title), 0
    for row in rows(device):
        try:
            words, mark = row.check(), "ok"
        except Exception as error:
            traceback.print_exc()
            words, mark, failed = f"{type(error).__name__}: {error}", "FAILS", failed + 1
        table.add_row(row.name, words, mark)
    Console().print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
