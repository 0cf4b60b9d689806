"""The command ``gradguard``, and ``python -m lightning_gradguard``, which is the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_gradguard import __version__

# Each command is a module with `main(argv) -> exit status`, imported only when it is asked for.
COMMANDS = {
    "demo": ("lightning_gradguard.demo.command", "train four small networks, two of them sick, and see what is said"),
    "report": (
        "lightning_gradguard.report.command",
        "summarize the runs below a log folder, as a page, text or Markdown",
    ),
    "whatif": (
        "lightning_gradguard.report.whatif_command",
        "tell what other clipping policies would have done to a run, and which one it asks for",
    ),
    "replay": (
        "lightning_gradguard.incident.command",
        "run the step of a saved incident again, and name where it began",
    ),
}


def usage() -> str:
    """What ``gradguard --help`` prints."""
    commands = "\n".join(f"  {name:<8} {words}" for name, (_, words) in COMMANDS.items())
    return f"""usage: gradguard COMMAND ...

See, tame and survive gradients in PyTorch Lightning.

{commands}

gradguard COMMAND --help tells more; gradguard --version which version this is.
Without any code: LIGHTNING_GRADGUARD=1 python train.py watches the gradients of a training.
"""


def main(argv: Sequence[str]) -> int:
    """Runs one command; returns its exit status, 2 for bad usage."""
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in COMMANDS:
        status = import_module(COMMANDS[command][0]).main(rest)
        return int(status)
    if command == "--version":
        print(f"gradguard {__version__}")
        return 0
    if command in ("-h", "--help"):
        print(usage())
        return 0
    print(f"unknown command {command!r}\n\n{usage()}" if command else usage(), file=sys.stderr)
    return 2


def run() -> None:
    """Entry point of the console command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
