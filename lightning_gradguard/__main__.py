"""Commands: ``python -m lightning_gradguard demo | report | replay``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_USAGE = """usage: python -m lightning_gradguard COMMAND ...

  demo                 train three models without and with mitigations, and print what it changed
  report LOGDIR        one HTML page and a summary from TensorBoard or JSONL files  (report --help)
  replay BUNDLE        run the step of an incident again, and name where it began   (replay --help)
"""


def main(argv: list[str]) -> int:
    """Runs one command; returns its exit status, 2 for bad usage."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command == "report":
        from lightning_gradguard.report.command import main as report

        return report(rest)
    if command == "replay":
        from lightning_gradguard.incident.command import main as replay

        return replay(rest)
    if command == "demo":
        return _demo(rest)
    print(f"unknown command {command!r}\n\n{_USAGE}", file=sys.stderr)
    return 2


def _demo(argv: list[str]) -> int:
    script = Path(__file__).parent.parent / "examples" / "demo.py"
    if not script.is_file():
        print(
            "the demo is part of the repository, not of the installed package: clone it and run `make demo`",
            file=sys.stderr,
        )
        return 2
    return subprocess.call([sys.executable, str(script), *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
