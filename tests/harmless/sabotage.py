"""Finds every function of ours that a training calls, and makes each raise in turn."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import lightning_gradguard

PACKAGE = str(Path(lightning_gradguard.__file__).parent)
GUARD = str(Path(PACKAGE) / "harmless")  # the guard itself has none above it


class Sabotage(RuntimeError):
    """What a function raises here that never did."""


@dataclass
class Outcome:
    """What came of a training in which one function raised."""

    code: CodeType
    result: Any = None
    error: BaseException | None = None
    told: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        path = Path(self.code.co_filename).relative_to(PACKAGE)
        return f"{path}:{self.code.co_firstlineno} {self.code.co_name}"

    def __str__(self) -> str:
        return f"{self.name}: {type(self.error).__name__ if self.error else 'fine'}, told {self.told}"


# Builds a training, and returns what runs it: only while that runs is anything found, or made to raise.
Training = Callable[[], Callable[[], Any]]


def functions_called(training: Training, started_by: str, entered: Sequence[str] = ()) -> list[CodeType]:
    """The functions of the package that run in a training, but for those that the caller calls itself.

    What is refused when callbacks are set up is left out, too: wrong arguments are to be told before a weight moves.

    Args:
        training: what to run.
        started_by: what the paths of the caller's files have in common: of the test, or of Lightning.
        entered: rooms of the package: only functions of theirs that are called from elsewhere, since what raises
            deeper comes out there.
    """
    found: dict[CodeType, None] = {}
    rooms = tuple(f"{PACKAGE}/{room}" for room in entered)

    def see(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event != "call" or code in found or not _is_part(code):
            return
        caller = _caller(frame, started_by)
        inside = rooms and (caller.startswith(rooms) or not code.co_filename.startswith(rooms))
        if caller.startswith(PACKAGE) and not inside:
            found[code] = None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bad step is announced
        run = training()
        sys.setprofile(see)
        try:
            run()
        finally:
            sys.setprofile(None)
    return list(found)


def sabotaged(code: CodeType, training: Training) -> Outcome:
    """Runs a training in which one function raises when it is called first."""
    outcome = Outcome(code)
    _forget()

    def strike(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code is code:
            raise Sabotage(outcome.name)  # and Python takes the profiler off

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = training()
        sys.setprofile(strike)
        try:
            outcome.result = run()
        except BaseException as error:
            outcome.error = error
        finally:
            sys.setprofile(None)
    outcome.told = [str(warning.message) for warning in told if "taken away" in str(warning.message)]
    return outcome


def _forget() -> None:
    """Empties what is called once only: functions that remember their answers, properties of constants."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("lightning_gradguard.")]
    for constant in (it for module in modules for it in vars(module).values()):
        if isinstance(constant, type(cache(len))):
            constant.cache_clear()
        for name, attribute in list(vars(type(constant)).items()):
            if isinstance(attribute, cached_property):
                vars(constant).pop(name, None)


def _is_part(code: CodeType) -> bool:
    path = code.co_filename
    return path.startswith(PACKAGE) and not path.startswith(GUARD) and code.co_name != "<module>"


def _caller(frame: FrameType, started_by: str) -> str:
    """The file of the next frame above that is of the package or of the caller; none where callbacks are set up."""
    above, nearest = frame.f_back, ""
    while above is not None:
        path = above.f_code.co_filename
        if above.f_code.co_name == "setup" and path.startswith(PACKAGE):
            return ""
        if not nearest and (path.startswith(PACKAGE) or started_by in path):
            nearest = path
        above = above.f_back
    return nearest
