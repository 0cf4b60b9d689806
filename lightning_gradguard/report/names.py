"""What runs in files are called."""

from __future__ import annotations

from pathlib import Path

# The file that the callbacks write into the log folder of a run; the run is called as its folder.
RECORDS_NAME = "gradguard.jsonl"


def run_name(file: Path, folder: Path) -> str:
    """What a JSONL file of records is called: by its folder if the callbacks wrote it, else by its own name.

    Example:
        >>> run_name(Path("logs/first/gradguard.jsonl"), Path("logs"))
        'first'
        >>> run_name(Path("logs/second.jsonl"), Path("logs"))
        'second'
    """
    if file == folder:
        return file.resolve().parent.name if file.name == RECORDS_NAME else file.stem
    inside = file.relative_to(folder)
    return str(inside.parent if file.name == RECORDS_NAME else inside.with_suffix(""))
