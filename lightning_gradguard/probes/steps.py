"""Whether steps come, and begin with no gradient of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gradguard.measurement.layout import Layout

_MANY = 32  # backward passes without a step from which it is said; more than one accumulates by hand
_MOST_NODES = 20_000  # of a graph that are looked at
_AGAIN = 16  # and after as many more


class Steps:
    """Counts backward passes between the steps of one optimizer.

    Args:
        layout: the parameters of the optimizer.

    Attributes:
        ever: whether there was a step, of this optimizer or of somebody else who moved its weights.
        fed: whether it ever had a gradient to step with.
        reached: whether the last graph that was looked at leads to one of its parameters.
        asked: whether it is to be found out if gradients of an earlier step are still there: from the next step of
            the optimizer to the one after it each backward pass is looked at, over how many batches that may be.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._backwards = 0
        self._told = 0
        self._versions: list[int] = []
        self.ever = False
        self.fed = False
        self.reached: bool | None = None
        self.asked = False
        self._begun = False  # whether every backward pass since its last step is looked at
        self._smallest: Tensor | None = None  # largest gradient element as a backward began, the smallest since a step
        self._old: Tensor | None = None

    def add_backward(self) -> None:
        """Counts a backward pass that begins."""
        self._backwards += 1
        if self._backwards == 1:
            self._versions = [parameter._version for parameter in self._layout.params]

    def look_where_it_leads(self, root: Tensor) -> None:
        """Walks the graph of a loss; asked for on sampled steps, as long as no gradient ever came to a step."""
        params, left = set(map(id, self._layout.params)), [root.grad_fn]
        seen: set[object] = set()
        self.reached = False
        while left and len(seen) < _MOST_NODES:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in params:
                self.reached = True
                return
            left.extend(next_node for next_node, _ in node.next_functions)

    def step(self) -> None:
        """Tells that the optimizer is about to step."""
        self._backwards, self._told, self.ever = 0, 0, True
        if not self.asked:
            return
        if self._begun and self._smallest is not None:
            self._old, self.asked = self._smallest, False
        self._begun, self._smallest = self.asked, None

    def ask(self, *, anew: bool) -> None:
        """Asks for gradients of an earlier step; ``anew`` if the optimizer has stepped since the last backward pass."""
        self.asked = True
        if anew:
            self._begun, self._smallest = True, None

    def give_up(self) -> None:
        """Ends the search for old gradients without an answer."""
        self.asked, self._begun, self._smallest = False, False, None

    def waiting(self) -> int | None:
        """How many backward passes there were without a step, if none ever came and no weight has moved otherwise."""
        many = self._backwards - self._told >= (_AGAIN if self._told else _MANY)
        if self.ever or not many:
            return None
        self._told = self._backwards
        moved = self._versions != [parameter._version for parameter in self._layout.params]
        self.ever = moved  # somebody else steps
        return None if moved else self._backwards

    def look(self, gradients: Sequence[Tensor | None]) -> None:
        """Takes in the gradients that are there as a backward pass begins; no host sync."""
        if not self._begun:
            return  # within a step whose beginning nobody saw: what is there may be its own
        there = [g for g in gradients if g is not None and g.layout == torch.strided and g.numel() > 0]
        norms = torch._foreach_norm(there, float("inf")) if there else [torch.zeros((), device="cpu")]
        home = norms[0].device
        largest = torch.stack([norm.float().to(home) for norm in norms]).amax()
        self._smallest = largest if self._smallest is None else torch.minimum(self._smallest, largest)

    def take_old_gradients(self) -> bool | None:
        """Whether old gradients were there in each backward pass of the last step looked at; ``None``: no news."""
        old, self._old = self._old, None
        return None if old is None else bool(old > 0)  # host sync: a sampled step
