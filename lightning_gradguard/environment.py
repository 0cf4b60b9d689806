"""What every Trainer asks for callbacks: none, at no cost, unless the environment says so."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "LIGHTNING_GRADGUARD"
_OFF = ("", "0", "false", "off", "no")


def callbacks_from_environment() -> list[Any]:
    """The callbacks that nobody listed: zero code, for Lightning's entry points.

    Nothing unless ``LIGHTNING_GRADGUARD`` is set: ``1`` for ``GradGuard()``, or its arguments as JSON, or the path of
    a JSON or YAML file with them. Objects are written as in ``LightningCLI``; they may be ours only::

        LIGHTNING_GRADGUARD=1 python train.py
        LIGHTNING_GRADGUARD='{"clip": {"class_path": "ZClip", "init_args": {"z": 3.0}}}' python train.py
        LIGHTNING_GRADGUARD=gradguard.yaml python train.py

    Raises:
        ValueError: if the variable is none of these; says what it holds.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if value.lower() in _OFF:
        return []
    from lightning_gradguard.callbacks.from_environment import make_callback

    return [make_callback(value, VARIABLE)]
