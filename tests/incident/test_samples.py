"""Which samples did it: by their rows, with what is odd about them, along whatever structure a batch has."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lightning_gradguard.harmless.rng import capture_rng
from lightning_gradguard.incident.bundle import Incident, IncidentFolder, MicroBatch, digest_gradient
from lightning_gradguard.incident.replay import replay
from lightning_gradguard.incident.rows import Rows
from lightning_gradguard.incident.samples import SampleReport


class Normalized(nn.Module):
    """Batch normalization and dropout, as a fresh process builds it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch["x"]).squeeze(1), batch["y"])


def save(folder: Any, net: nn.Module, batches: list[Any], step: Any, **facts: Any) -> Any:
    """Runs the batches as one step and saves them as an incident."""
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    micros = []
    for index, batch in enumerate(batches):
        micros.append(MicroBatch(batch, index, capture_rng()))
        (step(net, batch) / len(batches)).backward()
    gradients = {n: digest_gradient(p.grad) for n, p in net.named_parameters() if p.grad is not None}
    config = {"accumulate_grad_batches": len(batches)}
    incident = Incident(1, 0, "nan", "skip", gradients, "", micros, before, config=config, **facts)
    saved = IncidentFolder(folder).save(incident, net)
    assert saved is not None
    return saved.path


def find(folder: Any, net: nn.Module, batches: list[Any], step: Any) -> SampleReport:
    report = replay(save(folder, net, batches, step), net, step=step, samples=True)
    assert report.reproduced
    assert report.samples is not None
    return report.samples


def numbers(report: SampleReport) -> list[int]:
    return [sample.index for sample in report.samples]


def test_one_bad_sample_among_256_is_named_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    x[137, 2] = float("nan")
    batch = {"x": x, "y": torch.randn(256), "file": [f"{i}.png" for i in range(256)]}
    bundle = save(tmp_path, Normalized(), [batch], lambda m, b: m.training_step(b, 0))
    command = [sys.executable, "-m", "lightning_gradguard", "replay", str(bundle), "--samples"]
    command += ["--module", f"{__name__}:Normalized"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    assert "samples: 1 of 256 makes the step non-finite" in run.stdout
    assert "sample 137\n      batch['x']: 1 NaN" in run.stdout
    assert "batch normalization (net.1) mixes samples" in run.stdout


def rooted(module: nn.Module, batch: Any) -> Tensor:
    """Finite loss; the slope of the root is infinite at a row of zeros."""
    return module(batch[0]).square().sum(1).sqrt().mean()


def test_every_one_of_several_is_named_with_what_is_odd(tmp_path):
    x = torch.randn(64, 4)
    x[[5, 41]] = 0.0
    found = find(tmp_path, nn.Linear(4, 4, bias=False), [(x, torch.arange(64))], rooted)
    assert numbers(found) == [5, 41]
    assert found.samples[0].odd[0].startswith("batch[0]: all 0; the rest: -")
    assert found.num_runs < 40


def test_the_batch_of_an_accumulated_step_is_named(tmp_path):
    batches = [(torch.randn(8, 4),), (torch.randn(8, 4),)]
    batches[1][0][3] = 0.0
    found = find(tmp_path, nn.Linear(4, 4, bias=False), batches, rooted)
    assert [(sample.batch, sample.index) for sample in found.samples] == [(1, 3)]
    assert "sample 3 of batch 1" in str(found)


def test_samples_that_do_it_only_together_are_named_together(tmp_path):
    x = torch.full((16, 1), 1.0)
    x[[2, 9, 11]] = 30_000.0
    net = nn.Linear(1, 1)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    found = find(tmp_path, net, [x], lambda m, b: m(b).half().sum().float())
    assert numbers(found) == [2, 9, 11]
    assert found.together
    assert "together make the step non-finite" in str(found)


def test_where_every_sample_does_it_the_fault_is_elsewhere(tmp_path):
    net = nn.Linear(4, 1)
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    found = find(tmp_path, net, [torch.randn(32, 4)], lambda m, b: m(b).mean())
    assert found.samples == ()
    assert "the fault is not in single samples" in str(found)


def test_of_a_spike_the_samples_with_the_largest_shares_are_named(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(128, 4), torch.randn(128)
    y[77] = 500.0
    found = find(tmp_path, nn.Linear(4, 1), [(x, y)], lambda m, b: F.mse_loss(m(b[0]).squeeze(1), b[1]))
    assert numbers(found)[0] == 77
    assert found.samples[0].share == pytest.approx(1.0, abs=0.1)
    assert any(line.startswith("batch[1]: 500; the rest: -") for line in found.samples[0].odd)


def test_where_no_sample_stands_out_of_a_finite_step_it_says_so(tmp_path):
    torch.manual_seed(0)
    x = 1.0 + 0.01 * torch.randn(64, 4)
    found = find(tmp_path, nn.Linear(4, 1), [x], lambda m, b: m(b).square().mean())
    assert any("none stands out" in note for note in found.notes)


def test_a_step_that_cannot_run_on_other_samples_is_no_crash(tmp_path):
    def fussy(module, batch):
        assert len(batch.unique(dim=0)) == len(batch), "twice the same sample"
        return (module(batch) * float("nan")).mean()

    found = find(tmp_path, nn.Linear(4, 1), [torch.randn(8, 4)], fussy)
    assert found.samples == ()
    assert "twice the same sample" in str(found)


X = torch.arange(12.0).view(6, 2)
STRUCTURES = {
    "tensor": (X, 6),
    "inputs and targets": ([X, torch.zeros(6)], 6),
    "two of them": ((X[:2], X[:2]), 2),
    "with strings": ({"x": X, "names": list("abcdef"), "weights": torch.ones(3)}, 6),
    "arrays": ({"x": X.numpy(), "y": np.arange(6)}, 6),
    "images of all sizes": (([torch.zeros(3, 4, i + 1) for i in range(5)], [{"box": X[: i + 1]} for i in range(5)]), 5),
    "equal images": ([torch.zeros(3, 4, 4) for _ in range(8)], 8),
    "nested": (torch.nested.nested_tensor([X[:2], X[2:5], X[5:]], layout=torch.jagged), 3),
    "packed": (pack_sequence([X[:3], X[3:5], X[5:]]), 3),
    "sparse": (X.to_sparse(), 6),
    "several views": ([torch.zeros(6, 3, 4), torch.zeros(6, 3, 4)], 6),
    "a scalar": (torch.tensor(1.0), 0),
}


@pytest.mark.parametrize(("batch", "size"), STRUCTURES.values(), ids=STRUCTURES)
def test_the_number_of_samples_is_what_the_parts_agree_on(batch, size):
    assert Rows(batch).size == size


@pytest.mark.parametrize("name", ["tensor", "with strings", "arrays", "nested", "packed", "sparse"])
def test_rows_are_replaced_and_stay_where_they_were(name):
    batch, size = STRUCTURES[name]
    changed = Rows(batch).with_only([0], filler=1)
    before, after = dict(Rows(batch).parts()), dict(Rows(changed).parts())
    assert before.keys() == after.keys()
    for path, rows in after.items():
        assert len(rows) == size
        assert _same(rows[0], before[path][0])
        assert all(_same(row, before[path][1]) for row in rows[1:])


def _same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, Tensor) else bool(np.array_equal(left, right))


def test_sequences_of_all_lengths_are_searched(tmp_path):
    sequences = [torch.randn(n, 2) for n in (5, 4, 4, 3, 1)]
    sequences[3][1] = float("nan")
    net = nn.GRU(2, 3)
    found = find(tmp_path, net, [pack_sequence(sequences)], lambda m, b: pad_packed_sequence(m(b)[0])[0].mean())
    assert numbers(found) == [3]
