"""Zero code: a GradGuard made from the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
import yaml  # type: ignore[import-untyped]
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

import lightning_gradguard
from lightning_gradguard.callbacks.base import GradientCallback
from lightning_gradguard.callbacks.gradguard import GradGuard
from lightning_gradguard.callbacks.session import Plan, Session
from lightning_gradguard.harmless.part import tell

_ON = ("1", "true", "on", "yes")
_DOING = {"tame": "clipping", "survive": "the guard against NaN"}
_IN_CHECKPOINT = "lightning_gradguard"
_told = False
_warned: set[str] = set()


@final
class GradGuardFromEnvironment(GradientCallback):
    """A :class:`GradGuard` that nobody listed; it watches, and acts only where it was told to and nothing objects.

    It steps aside where a Trainer lists callbacks of ours. What acts steps aside, alone, where it cannot be kept on a
    Trainer (``gradient_clip_val`` clips already, an optimizer's step cannot be dropped); one warning names the
    variable. Its state lies under a key of its own in the checkpoint, and only if it acts: a checkpoint of a run that
    was watched is that of a run without it.

    Args:
        options: arguments of :class:`GradGuard`; ``on_nonfinite`` is ``None`` unless given.
        variable: where they come from, for messages.
    """

    steps_aside = True

    def __init__(self, options: Mapping[str, Any], variable: str) -> None:
        self.variable = variable
        self._guard = GradGuard(**{"on_nonfinite": None, **options})

    @property
    def acts(self) -> bool:
        """Tells whether more was asked for than watching."""
        return bool(self._asked().acting)

    @property
    def state_key(self) -> str:
        """Returns a key for each object: of two Trainers with one list of callbacks, the second has two of these."""
        return f"{type(self).__name__}-{id(self)}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Joins the Trainer, unless it lists callbacks of ours."""
        super().setup(trainer, pl_module, stage)
        listed = [type(c).__name__ for c in trainer.callbacks if is_listed(c)]  # type: ignore[attr-defined]
        if stage == "fit" and listed and self.acts:
            _warn_once(f"{self.variable} steps aside for a Trainer that lists {' and '.join(listed)}.")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts with all that was asked for, or with what can be kept on this Trainer."""
        if self._driven is None or self._driven.pipelines:
            return
        reasons: dict[str, None] = {}
        asked = self._driven.plan
        for left_out in subsets(asked.acting):
            self._join(Session(asked.without(left_out), trainer, driver=self))
            try:
                super().on_fit_start(trainer, pl_module)
            except Exception as error:  # whatever it is, the program runs without us, so it runs on
                self.teardown(trainer, pl_module, "fit")
                reasons[str(error)] = None
                continue
            break
        else:
            left_out = ("see",)
            self._join(None)
        if reasons:
            what = " and ".join(_DOING.get(role, "watching") for role in left_out)
            _warn_once(f"{self.variable}: {what} steps aside for this Trainer. {' '.join(reasons)}")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class."""
        return {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the state of what acts."""
        if self._driven is not None and self._driven.plan.acting:
            checkpoint[_IN_CHECKPOINT] = self._driven.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on from the state in a checkpoint."""
        if self._driven is not None and _IN_CHECKPOINT in checkpoint:
            self.load_state_dict(checkpoint[_IN_CHECKPOINT])

    def _asked(self) -> Plan:
        plan = Plan(contributor=self.variable)
        self._guard._contribute(plan)
        return plan

    def _contribute(self, plan: Plan) -> None:
        plan.contributor = self.variable  # nobody wrote the name of this class
        self._guard._contribute(plan)


@rank_zero_only
def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        tell(message)


def is_listed(callback: object) -> bool:
    """Tells whether a callback of ours was listed by the user."""
    return isinstance(callback, GradientCallback) and not callback.steps_aside


def subsets(roles: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Returns what to leave out, the least first: nothing, each role alone, all of them."""
    for size in range(len(roles) + 1):
        yield from combinations(roles, size)


def make_callback(value: str, variable: str) -> GradGuardFromEnvironment:
    """Makes the callback that the value of an environment variable asks for, and says so once.

    Raises:
        ValueError: if it asks for nothing that we know.
    """
    global _told
    callback = GradGuardFromEnvironment(read_options(value, variable), variable)
    if not _told:
        _told = True
        does = " It was told to act, too." if callback.acts else ""
        rank_zero_info(f"{variable} is set: GradGuard watches the gradients of every Trainer in this process.{does}")
    return callback


def read_options(value: str, variable: str) -> dict[str, Any]:
    """Returns the arguments of :class:`GradGuard` that a value stands for: a switch, JSON, or the path of a file.

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
