"""The arguments that the commands over log folders share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path


def log_parser(
    command: str, description: str, epilog: str, *, formats: Iterable[str], printed: str
) -> argparse.ArgumentParser:
    """Returns a parser of ``logdir`` and ``--format``.

    Args:
        command: its name, behind ``gradguard``.
        description: what the command does, for its help.
        epilog: what the help ends with, as it is.
        formats: in which it can print, ``text`` among them.
        printed: what ``--format`` says, in the help.

    Example:
        >>> parser = log_parser("report", "Tells.", "", formats=("text", "md"), printed="what is printed")
        >>> parser.parse_args(["logs", "--format", "md"])
        Namespace(logdir=PosixPath('logs'), format='md')
    """
    parser = argparse.ArgumentParser(
        prog=f"gradguard {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("logdir", type=Path, help="folder of runs, of any logger; or one JSONL file")
    parser.add_argument("--format", choices=sorted(formats), default="text", help=printed)
    return parser
