"""A saved step runs again in a fresh process, and only if the bundle is sound."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from lightning_gradguard.incident import command
from lightning_gradguard.incident.bundle import BundleError, IncidentFolder, digest_file
from lightning_gradguard.incident.command import main
from lightning_gradguard.incident.replay import replay
from tests.forked import run_code
from tests.incident.workshop import Healthy, Net, bad_step, loss, make_batch

MODULE = "tests.incident.workshop"


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    net = Net()
    return IncidentFolder(tmp_path).save(bad_step(net), net).path


def test_a_fresh_process_reproduces_the_step_bit_for_bit(bundle):
    code = "import sys; from lightning_gradguard.incident.command import main; sys.exit(main())"
    run = run_code(code, bundle, "--module", f"{MODULE}:Net", cwd=bundle)
    assert run.returncode == 0, run.stderr
    assert "reproduced, bit for bit" in run.stdout
    assert "module 'layers.3'" in run.stdout


def test_the_report_holds_what_was_found(bundle):
    report = replay(bundle, Net())
    assert (report.reproduced, report.exact) == (True, True)
    assert report.found == report.expected
    assert set(report.found) == {"layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"}
    assert (report.localisation.phase, report.localisation.module) == ("backward", "layers.3")


def test_all_batches_of_an_accumulated_step_run_again(tmp_path):
    net = Net()
    saved = IncidentFolder(tmp_path).save(bad_step(net, num_batches=3), net).path
    report = replay(saved, Net())
    assert (report.reproduced, report.exact, len(report.loss)) == (True, True, 3)


def test_a_step_function_stands_in_for_a_training_step(bundle, capsys):
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Net().layers

    with pytest.raises(TypeError, match="Bare has no training_step"):
        replay(bundle, Bare())
    assert replay(bundle, Bare(), step=loss).exact
    assert main([str(bundle), "--module", f"{MODULE}:Net", "--step", f"{MODULE}:loss"]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_anomaly_detection_adds_its_trace(bundle, capsys):
    assert main([str(bundle), "--module", f"{MODULE}:Net", "--anomaly"]) == 0
    ours, autograds = capsys.readouterr().out.split("anomaly detection")
    assert "SqrtBackward0" in ours
    assert "AbsBackward0" in autograds  # it sees no Inf, so it names what turned the Inf into a NaN


def test_a_step_that_comes_out_finite_is_not_reproduced(bundle, capsys):
    assert main([str(bundle), "--module", f"{MODULE}:Healthy"]) == 1
    out = capsys.readouterr().out
    assert "NOT reproduced" in out
    assert not replay(bundle, Healthy()).reproduced


def test_a_finite_incident_is_reproduced_by_the_same_gradients(tmp_path):
    net = Healthy()
    saved = IncidentFolder(tmp_path).save(bad_step(net, cause="spike"), net).path
    assert replay(saved, Healthy()).reproduced
    changed = Healthy()
    changed.layers[3] = torch.nn.Sigmoid()
    assert not replay(saved, changed).reproduced


def test_a_replay_leaves_the_process_as_it_was(bundle):
    net = Net()
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    replay(bundle, net)
    assert torch.equal(torch.rand(2), expected)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)


def rewrite(bundle: Path, name: str, content: object, raw: bool = False) -> None:
    """Puts other content into a payload and makes the report agree, as a forger would."""
    (bundle / name).write_bytes(content) if raw else torch.save(content, bundle / name)
    report = json.loads((bundle / "report.json").read_text())
    report["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": digest_file(bundle / name)}
    (bundle / "report.json").write_text(json.dumps(report))


class Exploit:
    """A pickle that would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def edit_report(**changes):
    def edit(bundle: Path) -> None:
        report = json.loads((bundle / "report.json").read_text())
        (bundle / "report.json").write_text(json.dumps({**report, **changes}))

    return edit


def flip(bundle: Path) -> None:
    content = bytearray((bundle / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "state.pt").write_bytes(content)


def state_without(key: str):
    def edit(bundle: Path) -> None:
        state = torch.load(bundle / "state.pt", weights_only=True)
        del state[key]
        rewrite(bundle, "state.pt", state)

    return edit


DAMAGE = {
    "no folder": (shutil.rmtree, "not an incident bundle"),
    "empty report": (lambda b: (b / "report.json").write_text(""), "report.json is damaged"),
    "report cut off": (lambda b: (b / "report.json").write_text('{"format": '), "report.json is damaged"),
    "nested without end": (lambda b: (b / "report.json").write_text("[" * 200_000), "report.json is damaged"),
    "someone else's json": (lambda b: (b / "report.json").write_text("[1]"), "not written by lightning_gradguard"),
    "foreign format": (edit_report(format="other"), "not written by lightning_gradguard"),
    "newer version": (edit_report(version=99), "version 99"),
    "fields missing": (edit_report(gradients=None, step="x"), "missing or of the wrong type: step, gradients"),
    "file not listed": (edit_report(files={}), "does not list batch.pt"),
    "file outside of the folder": (edit_report(files={"../batch.pt": {}}), "does not list batch.pt"),
    "batch missing": (lambda b: (b / "batch.pt").unlink(), "batch.pt is missing"),
    "state truncated": (lambda b: os.truncate(b / "state.pt", 100), "state.pt is truncated"),
    "one bit flipped": (flip, "state.pt is damaged"),
    "no tensors at all": (lambda b: rewrite(b, "rng.pt", b"hello", raw=True), "rng.pt is not plain data"),
    "a list": (lambda b: rewrite(b, "rng.pt", [1]), "rng.pt holds a list"),
    "state without weights": (state_without("parameters"), "not laid out as a bundle"),
    "batches without generators": (lambda b: rewrite(b, "rng.pt", {"rngs": []}), "1 batches, 1 indices, 0 generator"),
    "unknown kind": (
        lambda b: rewrite(b, "batch.pt", {"batches": [{"__gradguard__": "eval"}], "indices": [0]}),
        "not laid out as a bundle",
    ),
    "weights that are no tensors": (
        lambda b: rewrite(b, "state.pt", {"parameters": {"a": 1}, "buffers": {}, "frozen": [], "eval": []}),
        "parameters that could not be saved",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_bundle_that_is_not_sound_gets_a_clear_error_and_runs_nothing(bundle, damage, message, capsys, monkeypatch):
    damage(bundle)
    monkeypatch.setattr(command, "_load", lambda name: pytest.fail("imported the user's code"))
    assert main([str(bundle), "--module", f"{MODULE}:Net"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("name", ["batch.pt", "rng.pt", "state.pt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_does_not(bundle, tmp_path, name, legacy, capsys):
    touched = tmp_path / "touched"
    exploit = Exploit(touched)
    if legacy:
        rewrite(bundle, name, pickle.dumps(exploit), raw=True)
    else:
        rewrite(bundle, name, {"batches": [exploit]})
    assert main([str(bundle), "--module", f"{MODULE}:Net"]) == 2
    assert f"{name} is not plain data and was not loaded" in capsys.readouterr().err
    assert not touched.exists()
    torch.load(bundle / name, weights_only=False) if not legacy else pickle.loads((bundle / name).read_bytes())
    assert touched.exists()  # the exploit is a real one


def test_a_module_of_other_shapes_is_refused_with_the_names_and_left_alone(bundle, capsys):
    assert main([str(bundle), "--module", f"{MODULE}:other_shapes"]) == 2
    assert "layers.0.weight is [8, 5], in the bundle [8, 4]" in capsys.readouterr().err
    net = torch.nn.Linear(2, 2)
    net.training_step = lambda batch: None
    weight = net.weight.clone()
    with pytest.raises(BundleError, match=r"bias is not in the bundle; layers\.0\.bias is not in the module"):
        replay(bundle, net)
    assert torch.equal(net.weight, weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "expected my.module:factory"),
        ("no.such.module:Net", "No module named"),
        (f"{MODULE}:Missing", "Missing"),
        (f"{MODULE}:not_a_module", "returned a str"),
        (f"{MODULE}:raising", "no data folder"),
    ],
)
def test_a_factory_that_cannot_be_used_ends_with_status_two(bundle, name, message, capsys):
    assert main([str(bundle), "--module", name]) == 2
    assert message in capsys.readouterr().err


def test_what_was_not_saved_is_missed_only_where_the_step_touches_it(tmp_path, capsys):
    net = Net()
    incident = bad_step(net)
    object.__setattr__(incident.batches[0], "batch", (*make_batch(), open))
    saved = IncidentFolder(tmp_path).save(incident, net).path
    assert main([str(saved), "--module", f"{MODULE}:Net", "--step", f"{MODULE}:loss"]) == 0
    assert main([str(saved), "--module", f"{MODULE}:Net", "--step", f"{MODULE}:loss_with_all"]) == 2
    assert "the step uses batch[2] (builtins:builtin_function_or_method" in capsys.readouterr().err


def test_a_bundle_whose_state_was_left_out_is_refused_with_the_reason(tmp_path, capsys):
    net = Net()
    saved = IncidentFolder(tmp_path, max_bytes=10).save(bad_step(net), net).path
    assert main([str(saved), "--module", f"{MODULE}:Net"]) == 2
    assert "larger max_bytes" in capsys.readouterr().err
