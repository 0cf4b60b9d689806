"""The one place where what only watches is run: an exception takes that part away, and the training goes on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.harmless.rng import keeping_generators

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)
_MAX_REASON = 300  # characters of an exception's own words: some errors of compilers fill screens


class Part:
    """One part that only watches: a probe, a rule, a view, the record itself.

    Its first exception takes it away for good. Its hooks are removed, one warning says which part it was, at which
    module and why, and the training goes on, bit for bit as without it. Clipping and the guard act, and are no such
    parts: what goes wrong in them is raised.

    Args:
        name: what it is, in the words of the warning: "the probe of activations".
        without: what is missing once it is gone, as a clause.
        foreign: whether it runs code that is not ours, such as a user's rule or a logger. The random number generators
            are put back after it: some 0.1 ms, on logged steps.
        remove: what else is to be done when it is taken away.

    Attributes:
        gone: whether it was taken away.

    Example:
        >>> part = Part("the rule 'mine'", "it is not asked any more")
        >>> part.run(max, 2, 3)
        3
    """

    def __init__(
        self, name: str, without: str, *, foreign: bool = False, remove: Callable[[], None] | None = None
    ) -> None:
        self.name = name
        self.without = without
        self.foreign = foreign
        self.gone = False
        self._remove = remove
        self._handles: list[RemovableHandle] = []

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Returns what the function does; ``None`` if it fails, and from then on. No graph is recorded meanwhile."""
        # Within a step no graph is recorded anyway, and entering ``no_grad`` again would cost more than most calls.
        if self.foreign or torch.is_grad_enabled():
            return self._run("", function, args, kwargs)
        return self.note(function, *args, **kwargs)

    def note(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Does what :meth:`run` does, for a function of ours that calculates with no tensor that has a graph."""
        if self.gone:
            return None
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self._take_away(error, "")
            return None

    def hook(self, function: Callable[..., None], where: str) -> Hook:
        """Returns the function as a hook of a module or a tensor.

        Args:
            function: takes what the hook is given.
            where: what it hangs on, in the words of the warning: "module 'encoder.rnn' (LSTM)".
        """
        return Hook(self, function, where)

    def attach(self, module: nn.Module, function: Callable[..., None], name: str, *, with_kwargs: bool = False) -> None:
        """Hangs a forward hook on a module until :meth:`detach`."""
        hook = self.hook(function, f"module {name!r} ({type(module).__name__})")
        self._handles.append(module.register_forward_hook(hook, with_kwargs=with_kwargs))

    def attach_before(self, module: nn.Module, function: Callable[..., None], name: str) -> None:
        """Hangs a hook on a module that is called before its forward pass, until :meth:`detach`."""
        hook = self.hook(function, f"module {name!r} ({type(module).__name__})")
        self._handles.append(module.register_forward_pre_hook(hook))

    def detach(self) -> None:
        """Takes all of its forward hooks off."""
        while self._handles:
            self._handles.pop().remove()

    @property
    def is_attached(self) -> bool:
        """Tells whether a forward hook of it hangs on a module."""
        return bool(self._handles)

    def _run(self, where: str, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T | None:
        if self.gone:
            return None
        try:
            with torch.no_grad(), keeping_generators() if self.foreign else nullcontext():
                return function(*args, **kwargs)
        except Exception as error:
            self._take_away(error, where)
            return None

    def _take_away(self, error: Exception, where: str) -> None:
        self.gone = True
        self.detach()
        if self._remove is not None:
            with suppress(Exception):
                self._remove()
        _log.debug("%s%s failed", self.name, where, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        reason = reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + " …"
        tell(
            f"{self.name} failed{where} and is taken away for the rest of this run: {reason}. "
            f"The training goes on as without it; {self.without}."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": []}


class Hook:
    """A hook that cannot replace, and cannot break, what it looks at.

    A copy of it does nothing: a module that is deep-copied or saved in the middle of its forward pass takes no part of
    us along. Compiled code leaves it out, so that its graph, and with it every bit, is that of a run without us.

    Args:
        part: whose it is; ``None`` for one that does nothing.
        function: what it does.
        where: what it hangs on.
    """

    def __init__(self, part: Part | None = None, function: Callable[..., None] | None = None, where: str = "") -> None:
        self._part = part
        self._function = function
        self._where = where

    def __call__(self, *args: Any) -> None:
        """Runs the function under its part's guard, whatever it returns is dropped."""
        if torch.compiler.is_compiling() or self._part is None or self._function is None:
            return
        self._part._run(f" at {self._where}", self._function, args, {})

    def __reduce__(self) -> tuple[type[Hook], Sequence[Any]]:
        return Hook, ()


def is_ours(thing: object) -> bool:
    """Tells whether an object is of a class of this package: those draw no random number."""
    return type(thing).__module__.startswith("lightning_gradguard.")


def tell(message: str) -> None:
    """Warns; where warnings are errors it goes to the log, since a warning about a watcher must not end a training."""
    try:
        warnings.warn(message, stacklevel=4)
    except Warning:
        _log.warning(message)
