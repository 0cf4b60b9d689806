"""What is known of layers themselves: sizes, kinds, whether they are trained, and in which order they run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_gradguard.measurement.layout import Layout


class Structure:
    """The structure of one optimizer's layers, as fields of a record: cheap, and on the host.

    What did not change since the last record is the same object again: a run's records share it.

    Args:
        layout: the parameters of the optimizer.
        kinds: class name of each module of the model.
    """

    def __init__(self, layout: Layout, kinds: Mapping[str, str]) -> None:
        self._layout = layout
        self._owners = [name if name in kinds else name.rpartition(".")[0] for name in layout.layers]
        sizes = [0] * len(layout.layers)
        for shape, layer in zip(layout.shapes, layout.layer_of, strict=True):
            sizes[layer] += math.prod(shape)
        flat = {layer for p, layer in zip(layout.params, layout.layer_of, strict=True) if p.dim() < 2}
        self._sizes = tuple(sizes)
        self._kinds = tuple(
            kinds.get(owner, "") + (".bias" if owner != layer and index in flat else "")
            for index, (owner, layer) in enumerate(zip(self._owners, layout.layers, strict=True))
        )
        self._flags: list[bool] = []  # for each parameter whether it is trained
        self._trainable: tuple[bool, ...] = ()
        self._num_seen = 0  # modules that have run
        self._depth: tuple[int | None, ...] | None = None

    def facts(self, order: Mapping[str, int]) -> dict[str, Any]:
        """Returns the fields of the record.

        Args:
            order: place of each module in the forward pass, of those that were seen to run; it only ever grows.
        """
        flags = [parameter.requires_grad for parameter in self._layout.params]
        if flags != self._flags:
            self._flags = flags
            trained = {layer for layer, flag in zip(self._layout.layer_of, flags, strict=True) if flag}
            self._trainable = tuple(layer in trained for layer in range(len(self._sizes)))
        if len(order) != self._num_seen:
            self._num_seen = len(order)
            self._depth = tuple(order.get(owner) for owner in self._owners)
        return {
            "layer_sizes": self._sizes,
            "layer_kinds": self._kinds,
            "trainable": self._trainable,
            "depth": self._depth,
        }
