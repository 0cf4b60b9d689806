"""How often an optimizer asks for gradients within one step: one that asks again has moved the weights in between."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

_TIMES = "asked for gradients (gradguard)"  # no name that a function could have


def times_asked(layers: Sequence[Sequence[Any]]) -> int:
    """Returns how often the optimizer that is stepping now has asked for gradients, this time included; 0 if none is.

    It is counted in the running call of ``step`` itself, and is gone with it: nothing is hung on the optimizer, whose
    methods may have any name, and nothing is left to be taken back when a step fails. Looks up the whole stack, a few
    microseconds.

    Args:
        layers: for each optimizer what wraps it, the outermost first, and last the one that holds the parameters.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        >>> times_asked([[optimizer]])
        0
        >>> optimizer.step(lambda: times_asked([[optimizer]]))
        1
    """
    stepping = _outermost_step([layer for wrapped in layers for layer in wrapped])
    if stepping is None:
        return 0
    # Entries that are no variable of the function stay in this dict as long as the call lasts, in every Python.
    values = stepping.f_locals
    values[_TIMES] = values.get(_TIMES, 0) + 1
    return int(values[_TIMES])


def _outermost_step(optimizers: Sequence[Any]) -> FrameType | None:
    """The call of ``step`` that we were called from; of a wrapper's and the wrapped one's that of the wrapper."""
    frame, found = sys._getframe().f_back, None
    while frame is not None:
        if "step" in frame.f_code.co_name:
            caller = frame.f_locals.get("self")
            found = frame if any(caller is one for one in optimizers) else found
        frame = frame.f_back
    return found
