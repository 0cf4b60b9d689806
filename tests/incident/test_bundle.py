"""Writing incidents: whole or not at all, bounded, and never at the cost of the run."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
import torch

from lightning_gradguard.incident.bundle import _HOST, IncidentFolder, digest_gradient
from lightning_gradguard.incident.read import read_bundle
from tests.forked import run_code
from tests.incident.workshop import Net, bad_step


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_a_bundle_holds_what_it_promises(net, tmp_path):
    optimizer = torch.optim.Adam(net.parameters())
    saved = IncidentFolder(tmp_path / "a" / "incidents").save(bad_step(net), net, optimizer, {"scale": 1024.0}).path
    assert saved == tmp_path / "a" / "incidents" / "step-000412-opt0"
    assert {path.name for path in saved.iterdir()} == {"report.md", "report.json", "batch.pt", "rng.pt", "state.pt"}
    assert os.listdir(saved.parent) == ["step-000412-opt0"]
    bundle = read_bundle(saved)
    assert bundle.report["step"] == 412
    assert bundle.report["gradients"]["layers.0.weight"]["nan"] > 0
    assert bundle.report["localisation"]["origin"]["call"]["module"] == "layers.3"
    assert torch.equal(bundle.batches[0].batch[1], torch.arange(16) % 3)
    assert all(torch.equal(bundle.state["parameters"][name], p) for name, p in net.named_parameters())
    state = torch.load(saved / "state.pt", weights_only=True)
    assert state["scaler"] == {"scale": 1024.0}
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.001


def test_the_buffers_saved_are_those_before_the_batch(net, tmp_path):
    incident = bad_step(net)
    saved = IncidentFolder(tmp_path).save(incident, net).path
    buffers = read_bundle(saved).state["buffers"]
    assert float(buffers["layers.1.running_mean"].abs().sum()) == 0.0
    assert float(net.layers[1].running_mean.abs().sum()) > 0.0


def test_frozen_parameters_and_modules_in_evaluation_mode_are_remembered(net, tmp_path):
    net.layers[1].eval()
    net.layers[4].bias.requires_grad_(False)
    state = read_bundle(IncidentFolder(tmp_path).save(bad_step(net), net).path).state
    assert state["eval"] == ["layers.1"]
    assert state["frozen"] == ["layers.4.bias"]


def test_a_person_reads_what_where_why_and_how_to_run_it_again(net, tmp_path):
    saved = IncidentFolder(tmp_path).save(bad_step(net), net).path
    text = (saved / "report.md").read_text()
    for words in (
        "# NaN at step 412, optimizer 0",
        "4 of 6 parameters have a non-finite gradient",
        "(`SqrtBackward0`) of module **`layers.3`**",
        "workshop.py:",
        "The slope of a square root at 0 is infinite",
        f"python -m lightning_gradguard replay {saved} --module",
        "| torch |",
    ):
        assert words in text


def test_the_first_incidents_are_kept_and_no_more(net, tmp_path):
    folder = IncidentFolder(tmp_path, max_incidents=2)
    assert [folder.save(bad_step(net, step=step), net) is not None for step in (1, 2, 3)] == [True, True, False]
    assert sorted(os.listdir(tmp_path)) == ["step-000001-opt0", "step-000002-opt0"]
    assert folder.is_full


def test_bundles_of_an_earlier_run_leave_room_for_this_one(net, tmp_path):
    earlier = IncidentFolder(tmp_path, max_incidents=1)
    assert earlier.save(bad_step(net, step=1), net) is not None and earlier.is_full
    folder = IncidentFolder(tmp_path, max_incidents=1)
    beside = IncidentFolder(tmp_path, max_incidents=1)  # another process of the same run
    assert not folder.is_full
    assert folder.save(bad_step(net, step=1), net).path.name == "step-000001-opt0-2"
    assert folder.is_full and beside.is_full


def test_what_a_killed_save_left_is_removed_by_the_next_run_and_what_is_being_written_is_not(net, tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = [tmp_path / f".step-000004-opt0-of-{_HOST}-{number}-x{number}" for number in (killed.pid, os.getpid())]
    left.append(tmp_path / f".step-000004-opt0-of-another.machine-{killed.pid}-abc")
    for folder in left:
        folder.mkdir()
    IncidentFolder(tmp_path).remove_leftovers()
    assert [folder.exists() for folder in left] == [False, True, True]


def test_an_interrupt_in_a_save_leaves_nothing_half_written(net, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        IncidentFolder(tmp_path).save(bad_step(net), net)
    assert os.listdir(tmp_path) == []


def test_the_same_step_of_another_run_gets_a_number(net, tmp_path):
    folder = IncidentFolder(tmp_path)
    first, second = folder.save(bad_step(net), net).path, folder.save(bad_step(net), net).path
    assert second.name == f"{first.name}-2"
    assert str(second) in (second / "report.md").read_text()


def test_what_would_pass_max_bytes_is_left_out_and_the_report_says_so(net, tmp_path):
    whole = IncidentFolder(tmp_path / "whole").save(bad_step(net), net).path
    size = {path.name: path.stat().st_size for path in whole.iterdir()}
    tight = size["rng.pt"] + size["batch.pt"]
    saved = IncidentFolder(tmp_path / "tight", max_bytes=tight).save(bad_step(net), net).path
    assert {path.name for path in saved.iterdir()} == {"report.md", "report.json", "rng.pt", "batch.pt"}
    assert re.search(f"state.pt: [0-9]+ bytes would pass max_bytes={tight:,}", (saved / "report.md").read_text())
    saved = IncidentFolder(tmp_path / "tiny", max_bytes=1).save(bad_step(net), net).path
    assert {path.name for path in saved.iterdir()} == {"report.md", "report.json"}


def test_what_other_incidents_take_counts_towards_max_bytes(net, tmp_path):
    first = IncidentFolder(tmp_path).save(bad_step(net, step=1), net).path
    taken = sum(path.stat().st_size for path in first.iterdir())
    second = IncidentFolder(tmp_path, max_bytes=taken + 100).save(bad_step(net, step=2), net).path
    assert {path.name for path in second.iterdir()} == {"report.md", "report.json"}


def test_what_cannot_be_saved_is_described_in_the_report(net, tmp_path):
    incident = bad_step(net)
    object.__setattr__(incident.batches[0], "batch", (*incident.batches[0].batch, lambda: 0))
    saved = IncidentFolder(tmp_path).save(incident, net).path
    assert "batch[2]" in (saved / "report.md").read_text()
    assert "batch[2]" in json.loads((saved / "report.json").read_text())["unsaved"][0]


@pytest.mark.parametrize("arguments", [{"max_incidents": 0}, {"max_bytes": 0}])
def test_limits_below_one_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        IncidentFolder(tmp_path, **arguments)


def test_an_unwritable_folder_costs_the_bundle_with_a_warning(net, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="incident at step 412 could not be saved"):
        assert IncidentFolder(tmp_path / "file" / "incidents").save(bad_step(net), net) is None


def test_what_cannot_be_written_is_not_tried_for_ever(net, tmp_path):
    (tmp_path / "file").write_text("")
    folder = IncidentFolder(tmp_path / "file" / "incidents", max_incidents=2)
    for _ in range(2):
        assert not folder.is_full
        with pytest.warns(UserWarning, match="could not be saved"):
            folder.save(bad_step(net), net)
    assert folder.is_full
    assert folder.save(bad_step(net), net) is None


FULL_DISK = """
import signal, resource, sys, warnings, os
from tests.incident.workshop import Net, bad_step
from lightning_gradguard.incident.bundle import IncidentFolder
net = Net()
incident = bad_step(net)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 1_000, 6_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert IncidentFolder(sys.argv[1]).save(incident, net) is None
    assert any("could not be saved" in str(w.message) for w in caught), caught
    assert os.listdir(sys.argv[1]) == []
"""


def test_a_disk_that_takes_no_more_leaves_nothing_behind_and_stops_nothing(tmp_path):
    run = run_code(FULL_DISK, tmp_path / "incidents", cwd=tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "grad",
    [
        torch.tensor([1.0, float("nan"), float("inf"), -float("inf")]),
        torch.tensor([1.0, float("nan"), float("inf"), -float("inf")], dtype=torch.bfloat16),
        torch.tensor([1.0, float("nan"), float("inf"), -float("inf")]).to_sparse(),
        torch.tensor([complex(1.0, float("nan")), complex(float("inf"), -float("inf"))]),
    ],
    ids=["float32", "bfloat16", "sparse", "complex"],
)
def test_a_digest_counts_and_takes_every_nan_for_the_same(grad):
    digest = digest_gradient(grad)
    assert (digest["nan"], digest["inf"]) == (1, 2)
    assert digest_gradient(grad.clone().neg().neg())["sha256"] == digest["sha256"]
    assert digest_gradient(grad * 0.5)["sha256"] != digest["sha256"]


def test_a_batch_that_cannot_even_be_described_costs_the_bundle_with_a_warning(net, tmp_path):
    class Hostile:
        def __repr__(self):
            raise KeyError("no words")

    incident = bad_step(net)
    object.__setattr__(incident.batches[0], "batch", Hostile())
    with pytest.warns(UserWarning, match="could not be saved .*no words"):
        assert IncidentFolder(tmp_path).save(incident, net) is None
    assert os.listdir(tmp_path) == []
