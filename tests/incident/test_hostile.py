"""Whatever a bundle holds, reading it ends in a bundle or in a BundleError, and a replay in a status that is true."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradguard.incident.bundle import BundleError, IncidentFolder, digest_file
from lightning_gradguard.incident.command import main
from lightning_gradguard.incident.replay import replay
from tests.incident.workshop import Net, bad_step

MODULE = "tests.incident.workshop"
ODD: list[Any] = [
    None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", "x", "\x1b[2J", "../../etc/passwd", [], [[]], {},
    {"__gradguard__": "eval"}, {"__gradguard__": "same", "number": 7}, {"__gradguard__": []},
]  # fmt: skip
ODD_TENSORS: list[Any] = [
    torch.zeros(0), torch.zeros(3, 3, dtype=torch.int64), torch.eye(2).to_sparse(), torch.zeros(2, device="meta"),
    torch.nested.nested_tensor([torch.zeros(1)], layout=torch.jagged), torch.zeros(1).expand(2**50),
    torch.zeros((), dtype=torch.complex64),
    {"__gradguard__": "object", "number": 0, "type": "builtins:dict", "bases": [], "sequence": [1], "state": {}},
    {"__gradguard__": "object", "number": 0, "type": "builtins:int", "bases": [], "state": {"real": 1}, "view": []},
    {"__gradguard__": "array", "items": {"dtype": "O", "shape": [1], "scalar": False, "bytes": None}},
    {"__gradguard__": "range", "items": "abc"}, {"__gradguard__": "bytes", "items": "abc"},
    {"__gradguard__": "tensor", "type": "torch:Tensor", "tensor": 3, "state": {}},
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = Net()
    saved = IncidentFolder(tmp_path_factory.mktemp("sound")).save(bad_step(net), net)
    assert saved is not None
    return saved.path


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key in it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def spoil(value: Any, chance: random.Random, odd: list[Any]) -> None:
    container, key = chance.choice(places(value))
    if chance.random() < 0.2:
        del container[key]
    else:
        container[key] = copy.copy(chance.choice(odd))


def rewrite(bundle: Path, name: str) -> None:
    report = json.loads((bundle / "report.json").read_text())
    report["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": digest_file(bundle / name)}
    (bundle / "report.json").write_text(json.dumps(report))


def spoil_bundle(bundle: Path, seed: int) -> None:
    """Changes one thing, or some, in one of its files, and makes the digests agree, as a forger would."""
    chance = random.Random(seed)
    name = chance.choice(["report.json", "report.json", "batch.pt", "rng.pt", "state.pt"])
    if name == "report.json":
        report = json.loads((bundle / name).read_text())
        for _ in range(chance.choice([1, 1, 3])):
            spoil(report, chance, ODD)
        (bundle / name).write_text(json.dumps(report))
    elif chance.random() < 0.25:
        content = bytearray((bundle / name).read_bytes())
        for _ in range(8):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (bundle / name).write_bytes(content)
        rewrite(bundle, name)
    else:
        payload = torch.load(bundle / name, weights_only=True)
        spoil(payload, chance, ODD + ODD_TENSORS)
        torch.save(payload, bundle / name)
        rewrite(bundle, name)


@pytest.mark.parametrize("seed", range(40))
def test_a_forged_bundle_ends_in_a_verdict_or_in_one_line(bundle: Path, seed: int, capsys: Any) -> None:
    spoil_bundle(bundle, seed)
    status = main([str(bundle), "--module", f"{MODULE}:Net"])
    shown = capsys.readouterr()
    assert status in (0, 1, 2), shown.err
    assert "Traceback" not in shown.err
    assert "\x1b" not in shown.out + shown.err
    if status == 2:
        assert len(shown.err.splitlines()) == 1, shown.err
        with pytest.raises(BundleError):
            replay(bundle, Net())


def test_what_is_compressed_is_not_unpacked(bundle: Path, capsys: Any) -> None:
    with zipfile.ZipFile(bundle / "batch.pt") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(bundle / "batch.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, part in parts.items():
            packed.writestr(name, part)
    rewrite(bundle, "batch.pt")
    assert main([str(bundle), "--module", f"{MODULE}:Net"]) == 2
    assert "batch.pt is compressed" in capsys.readouterr().err


def test_a_tensor_that_would_take_more_memory_than_there_is_is_refused(bundle: Path, capsys: Any) -> None:
    payload = torch.load(bundle / "batch.pt", weights_only=True)
    payload["batches"][0] = torch.zeros(1).expand(2**50)
    torch.save(payload, bundle / "batch.pt")
    rewrite(bundle, "batch.pt")
    assert main([str(bundle), "--module", f"{MODULE}:Net"]) == 2
    assert "bytes of memory, and this machine has" in capsys.readouterr().err


def test_lists_that_double_in_every_level_are_read_in_no_time(bundle: Path) -> None:
    doubled: list[Any] = [torch.zeros(1)]
    for _ in range(60):
        doubled = [doubled, doubled]
    payload = torch.load(bundle / "batch.pt", weights_only=True)
    payload["batches"][0]["items"].append(doubled)
    torch.save(payload, bundle / "batch.pt")
    rewrite(bundle, "batch.pt")
    assert main([str(bundle), "--module", f"{MODULE}:Net", "--step", f"{MODULE}:loss"]) == 0


def test_a_file_that_may_not_be_read_is_named(bundle: Path, capsys: Any) -> None:
    (bundle / "report.json").unlink()
    (bundle / "report.json").mkdir()
    assert main([str(bundle), "--module", f"{MODULE}:Net"]) == 2
    assert main(["\0", "--module", f"{MODULE}:Net"]) == 2
    assert "Traceback" not in capsys.readouterr().err


COMMAND = "import sys; from lightning_gradguard.incident.command import main; sys.exit(main())"


def test_a_reader_that_has_gone_is_no_verdict(bundle: Path) -> None:
    command = [sys.executable, "-c", COMMAND, str(bundle), "--module", f"{MODULE}:Net"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as run:
        run.stdout.close()  # type: ignore[union-attr]
        said = run.stderr.read().decode()  # type: ignore[union-attr]
    assert (run.returncode, said) == (3, "")


def test_a_terminal_of_plain_ascii_gets_the_verdict_all_the_same(bundle: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", COMMAND, str(bundle), "--module", f"{MODULE}:Net"]
    run = subprocess.run(command, capture_output=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert b"\\u2026" in run.stdout


def test_a_failure_of_the_replay_itself_is_no_verdict(bundle: Path, monkeypatch: Any, capsys: Any) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("lightning_gradguard.incident.runner.StepRunner.localise", fail)
    assert main([str(bundle), "--module", f"{MODULE}:Net"]) == 3
    assert "says nothing about the incident" in capsys.readouterr().err


def test_bad_arguments_end_with_status_two() -> None:
    with pytest.raises(SystemExit) as end:
        main(["--nonsense"])
    assert end.value.code == 2
