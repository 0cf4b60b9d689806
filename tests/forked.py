"""Programs in processes of their own that begin with torch and lightning imported, and with nothing of ours.

Importing lightning takes several seconds of a core, and many programs of users need to be run. One server for each
process of the tests imports it, and forks: a fork knows nothing of the tests, nor of a program before it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["lightning.pytorch", "lightning.pytorch.cli", "torch.distributed.tensor", "torch.distributed.fsdp"]
)


def run_code(
    code: str, *argv: object, cwd: Path | str, name: str = "-c", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs code as ``python -c`` would; returns its status and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "out"), Path(folder, "err")
        command = [name, *map(str, argv)]
        process = CONTEXT.Process(target=_main, args=(code, command, str(cwd), said, dict(environment or os.environ)))
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in said))


def run_script(script: Path, *argv: object, cwd: Path | str) -> subprocess.CompletedProcess[str]:
    """Runs a script as ``python SCRIPT`` would."""
    return run_code(script.read_text(encoding="utf-8"), *argv, cwd=cwd, name=str(script))


def _main(code: str, command: list[str], cwd: str, said: tuple[Path, Path], environment: dict[str, str]) -> None:
    for path, descriptor in zip(said, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path = command, [os.path.dirname(command[0]), *sys.path]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    main.__file__ = command[0]
    ours = [name for name in sys.modules if name.partition(".")[0] == "lightning_gradguard"]
    if ours:
        raise RuntimeError(f"the program would not begin afresh: {ours} are imported already")
    exec(compile(code, command[0], "exec"), vars(main))
