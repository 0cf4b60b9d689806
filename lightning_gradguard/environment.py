"""What every Trainer asks for callbacks: none, at no cost, unless the environment says so."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

VARIABLE = "LIGHTNING_GRADGUARD"
_OFF = ("", "0", "false", "off", "no")
_told: set[str] = set()


def callbacks_from_environment() -> list[Any]:
    """Returns the callbacks that nobody listed, for Lightning's entry points: none unless the variable is set.

    ``LIGHTNING_GRADGUARD=1`` watches and does nothing else. What acts is asked for, as arguments of ``GradGuard`` in
    JSON or in a JSON or YAML file, where ``on_nonfinite`` is ``None`` unless given. Objects are written as in
    ``LightningCLI``; they may be ours only::

        LIGHTNING_GRADGUARD=1 python train.py
        LIGHTNING_GRADGUARD='{"on_nonfinite": "skip"}' python train.py
        LIGHTNING_GRADGUARD='{"clip": {"class_path": "ZClip", "init_args": {"z": 3.0}}}' python train.py
        LIGHTNING_GRADGUARD=gradguard.yaml python train.py

    Nothing is raised: every Trainer runs this, of programs too that know nothing of us. For a value that says none of
    these, or a package that cannot be imported, a warning says what was got, and no callback is returned.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if value.lower() in _OFF:
        return []
    try:
        from lightning_gradguard.callbacks.from_environment import make_callback

        return [make_callback(value, VARIABLE)]
    except Exception as error:
        # A broken installation fails with anything: what a module of ours or of somebody else's raises when imported.
        warn_once(f"{VARIABLE} is set, but nothing is watched: {type(error).__name__}: {error}")
        return []


def warn_once(message: str) -> None:
    """Warns, the first time in this process; where warnings are errors, it writes to stderr instead of raising."""
    if message in _told:
        return
    _told.add(message)
    try:
        warnings.warn(message, stacklevel=2)
    except Warning:
        print(f"warning: {message}", file=sys.stderr)
