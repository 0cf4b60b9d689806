"""Weights that the model does not know of, since they are kept in a plain list, dict or attribute."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.layout import Layout
from lightning_gradguard.measurement.names import join, module_names

_DEPTH = 3  # of lists in lists that are looked into
_MOST = 64  # entries of each: what is longer holds data
_OWN = frozenset(vars(nn.Module()))  # attributes that every module has


class Unregistered:
    """Looks for tensors that get a gradient, of which neither the model nor an optimizer knows, and that never change.

    A teacher that is kept out of the model on purpose gets no gradient, an input that does is another tensor in the
    next step, and what the training step changes by hand has changed: each is left alone.

    Args:
        module: the model.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> net.more = [nn.Linear(2, 2)]
        >>> seen = Unregistered(net)
        >>> seen.look([])
        ()
        >>> net.more[0](net(torch.ones(1, 2))).sum().backward()
        >>> seen.look([])
        ('more[0]',)
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: dict[str, list[tuple[weakref.ref[Tensor], float]]] = {}  # of each place its tensors, their norms

    @torch.no_grad()
    def look(self, layouts: Sequence[Layout]) -> tuple[str, ...]:
        """Where such tensors are that are the same as at the last look, and of the same norm.

        Args:
            layouts: of all optimizers of the model.
        """
        known = {id(p) for p in self._module.parameters()} | {id(p) for layout in layouts for p in layout.params}
        now: dict[str, list[tuple[weakref.ref[Tensor], float]]] = {}
        still = []
        for place, tensors in _places(self._module):
            mine = [t for t in tensors if t.requires_grad and t.is_leaf and id(t) not in known]
            if not mine:
                continue
            norms = [
                float(torch.linalg.vector_norm(t.detach().float())) for t in mine
            ]  # host sync: where there are any
            before = {id(ref()): norm for ref, norm in self._before.get(place, ())}
            if any(t.grad is not None and before.get(id(t)) == norm for t, norm in zip(mine, norms, strict=True)):
                still.append(place)
            now[place] = [(weakref.ref(t), norm) for t, norm in zip(mine, norms, strict=True)]
        self._before = now
        return tuple(still)


def _places(module: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Each place in a plain attribute where tensors or modules are kept, as one would write it, with its tensors."""
    for part, name in module_names(module).items():
        for key, value in list(vars(part).items()):
            if key not in _OWN and not isinstance(value, nn.Module):  # one that is hidden so is hidden on purpose
                yield from _inside(join(name, key), value, 0)


def _inside(place: str, value: Any, depth: int) -> Iterator[tuple[str, list[Tensor]]]:
    if isinstance(value, Tensor):
        yield place, [value]
    elif isinstance(value, nn.Module):
        yield place, list(value.parameters())
    elif depth < _DEPTH and isinstance(value, Mapping | list | tuple | set):
        for key, entry in itertools.islice(_entries(value), _MOST):
            yield from _inside(f"{place}[{key!r}]", entry, depth + 1)


def _entries(value: Mapping[Any, Any] | Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else enumerate(value)
