"""Which modules run inside of compiled code, where no hook of ours goes unless it was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def modules_in_compiled_code(module: nn.Module) -> set[nn.Module]:
    """Returns the modules that ``torch.compile`` compiles, with all that they hold.

    A hook among them would be compiled along, and the weights might differ in their last bits from those of a run
    without us. A function that the user compiled and that calls modules is not known here; hooks stay out of it by
    themselves while it is traced; it may be compiled once more, to the same graph.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"))
        >>> net[1]._orig_mod in modules_in_compiled_code(net), net[0] in modules_in_compiled_code(net)
        (True, False)
    """
    if getattr(module, "_compiler_ctx", None) is not None:  # Lightning took a compiled LightningModule apart
        return set(module.modules())
    return {part for outer in module.modules() if _is_compiled(outer) for part in outer.modules()}


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class Eagerly:
    """Has compiled code run eagerly, from :meth:`start` to :meth:`stop`, so that hooks inside of it are called."""

    def __init__(self) -> None:
        self._stance: Any = None  # it knows what was asked for before

    def start(self) -> None:
        """Begins; a second call changes nothing."""
        if self._stance is None:
            self._stance = torch.compiler.set_stance("force_eager")

    def stop(self) -> None:
        """Goes back to what the user had asked for."""
        stance, self._stance = self._stance, None
        if stance is not None:
            stance.__exit__(None, None, None)
