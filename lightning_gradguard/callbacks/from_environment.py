"""Zero code: a GradGuard made from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import yaml  # type: ignore[import-untyped]
from lightning.pytorch.utilities import rank_zero_info

import lightning_gradguard
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.gradguard import GradGuard
from lightning_gradguard.callbacks.session import Plan

_ON = ("1", "true", "on", "yes")
_told = False


@final
class GradGuardFromEnvironment(GradientCallback):
    """A :class:`GradGuard` that nobody listed; it steps aside where a Trainer lists callbacks of ours.

    Args:
        options: arguments of :class:`GradGuard`.
    """

    steps_aside = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._guard = GradGuard(**options)

    def _contribute(self, plan: Plan) -> None:
        self._guard._contribute(plan)


def make_callback(value: str, variable: str) -> GradGuardFromEnvironment:
    """Makes the callback that the value of an environment variable asks for, and says so once.

    Raises:
        ValueError: if it asks for nothing that we know.
    """
    global _told
    callback = GradGuardFromEnvironment(read_options(value, variable))
    if not _told:
        _told = True
        rank_zero_info(f"{variable} is set: GradGuard watches the gradients of every Trainer in this process.")
    return callback


def read_options(value: str, variable: str) -> dict[str, Any]:
    """The arguments of :class:`GradGuard` that a value stands for: a switch, JSON, or the path of a file.

    Raises:
        ValueError: for anything else; says what was got.
    """
    if value.lower() in _ON:
        return {}
    try:
        text = value if value.startswith("{") else Path(value).read_text(encoding="utf-8")
        found = yaml.safe_load(text)  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{variable}={value!r}: neither 1, nor JSON, nor a readable file ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{variable}={value!r} holds {type(found).__name__}, not a mapping of GradGuard's arguments")
    return {str(key): _build(entry, variable) for key, entry in found.items()}


def _build(entry: Any, variable: str) -> Any:
    """Turns ``class_path``/``init_args`` into the object, at any depth; nothing but our public classes is made."""
    if isinstance(entry, list):
        return [_build(item, variable) for item in entry]
    if not isinstance(entry, dict):
        return entry
    if "class_path" not in entry:
        return {key: _build(item, variable) for key, item in entry.items()}
    name = str(entry["class_path"]).removeprefix("lightning_gradguard.")
    if name not in lightning_gradguard.__all__:
        raise ValueError(f"{variable}: {entry['class_path']!r} is no public class of lightning_gradguard")
    return getattr(lightning_gradguard, name)(**_build(entry.get("init_args", {}), variable))
