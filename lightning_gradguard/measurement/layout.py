"""Which parameters one optimizer steps, what they are called, and how deep they lie."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_gradguard.measurement.measurement import Measurement
from lightning_gradguard.measurement.names import clean_name as clean_name
from lightning_gradguard.measurement.names import module_names, tensor_names
from lightning_gradguard.measurement.needs import NOTHING, Needs
from lightning_gradguard.measurement.norms import Norms
from lightning_gradguard.measurement.optimizers import Optimizers
from lightning_gradguard.measurement.sharded import find_sharding
from lightning_gradguard.measurement.sharding import Sharding, Whole, is_distributed, is_flat

GroupBy = Literal["layer", "parameter"]


@dataclass(frozen=True, eq=False)
class Layout:
    """The parameters of one optimizer, in depth order, with their names and layers.

    Frozen at construction; :meth:`fits` tells when the optimizer has changed since (parameter groups added by
    a finetuning callback, parameters replaced by a resized embedding). A tied parameter has one entry, under its first
    name, and so has one that stands in several groups, with the first of them. A frozen one is listed, since it may be
    unfrozen later; it just never has a gradient.

    Attributes:
        params: the parameters, shape ``[num_params]`` as it were.
        names: their names in the module; ``unnamed.<group>.<index>`` for one that the module does not hold.
        layers: distinct layer names in depth order: the module that owns a parameter, or the parameter itself.
        layer_of: for each parameter the index of its layer.
        group_of: for each parameter the index of its parameter group in the optimizer.
        group_names: the ``"name"`` of each parameter group, or its index as a string.
        owners: for each parameter the module it is a parameter of (for a parametrized one the module whose weight it
            makes); ``None`` for one that the module does not hold.
        sharding: how the parameters are spread over processes; asked whatever it is, see
            :class:`~lightning_gradguard.measurement.sharding.Sharding`.
        in_order: the same parameters in the order of the optimizer's groups.
        group_sizes: how many each group has.
        given_names: the ``"name"`` of each group as it was given, ``None`` for one without.
    """

    params: tuple[nn.Parameter, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    layer_of: tuple[int, ...]
    group_of: tuple[int, ...]
    group_names: tuple[str, ...]
    owners: tuple[nn.Module | None, ...]
    sharding: Sharding = field(default_factory=Whole)
    in_order: tuple[Tensor, ...] = ()
    group_sizes: tuple[int, ...] = ()
    given_names: Sequence[Any] = ()

    def __repr__(self) -> str:
        return f"Layout(params={len(self.params)}, layers={len(self.layers)}, groups={len(self.group_names)})"

    @classmethod
    def from_optimizer(
        cls,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | Optimizers,
        *,
        group_by: GroupBy = "layer",
    ) -> Layout:
        """Reads the layout of one optimizer, or of several that are taken as one.

        Args:
            module: where the names come from; parameters of it that the optimizer does not hold are left out. Under
                DDP or FSDP the outermost wrapper, which knows how parameters are spread over processes.
            optimizer: the plain torch optimizer; or several, whose parameter groups follow each other.
            group_by: ``"layer"`` puts weight and bias of a module together, ``"parameter"`` keeps them apart.

        Raises:
            ValueError: for an unknown ``group_by``.
        """
        if group_by not in ("layer", "parameter"):
            raise ValueError(f"group_by must be 'layer' or 'parameter', got {group_by!r}")
        groups = optimizer.groups if isinstance(optimizer, Optimizers) else optimizer.param_groups
        entries = _by_depth(module, groups)
        params = tuple(entry.parameter for entry in entries)
        owners = tuple(map(_owners(module).get, params))
        names = tuple(entry.name for entry in entries)
        layer_names = names if group_by == "parameter" else _names_of_layers(module, names, owners)
        layers = tuple(dict.fromkeys(layer_names))
        position = {layer: index for index, layer in enumerate(layers)}
        return cls(
            params=params,
            names=names,
            layers=layers,
            layer_of=tuple(position[layer] for layer in layer_names),
            group_of=tuple(entry.group for entry in entries),
            group_names=_names_of_groups(groups),
            owners=owners,
            sharding=find_sharding(module, list(params)),
            in_order=tuple(parameter for group in groups for parameter in group["params"]),
            group_sizes=tuple(len(group["params"]) for group in groups),
            given_names=[group.get("name") for group in groups],
        )

    def fits(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Tells whether these plain optimizers still hold the same parameters in the same groups.

        Each parameter is compared by identity: one that was replaced by another of the same shape (an embedding that
        was resized and back, a new head) is another.
        """
        # One loop without further calls: it runs before every step.
        start = number = 0
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                params = group["params"]
                end = start + len(params)
                if number == len(self.group_sizes) or len(params) != self.group_sizes[number]:
                    return False
                if group.get("name") != self.given_names[number] or not all(map(is_, params, self.in_order[start:end])):
                    return False
                start, number = end, number + 1
        return number == len(self.group_sizes)

    def left(self, module: nn.Module) -> list[str]:
        """Names of parameters that the module held when this was made and holds no more, though they are stepped.

        None of those that are spread over processes: FSDP puts others in their place for a while.
        """
        held = {id(parameter) for parameter in module.parameters()}
        return [
            name
            for name, parameter, owner in zip(self.names, self.params, self.owners, strict=True)
            if owner is not None and id(parameter) not in held and not _is_swapped(parameter)
        ]

    @functools.cached_property
    def norms_of_gradients(self) -> Norms:
        """Measures their gradients, step after step."""
        return Norms()

    @functools.cached_property
    def norms_of_copies(self) -> Norms:
        """Measures clipped copies of their gradients, for chains at each step."""
        return Norms()

    @functools.cached_property
    def norms_of_values(self) -> Norms:
        """Measures their values, step after step."""
        return Norms()

    def layer_index(self, device: torch.device) -> Tensor:
        """:attr:`layer_of` as an index tensor on a device, made once."""
        return self.index(self.layer_of, device)

    def index(self, values: Sequence[int], device: torch.device) -> Tensor:
        """Numbers as an index tensor on a device, made once: copying them there is a host sync."""
        cache: dict[tuple[tuple[int, ...], torch.device], Tensor] = self.__dict__.setdefault("_indices", {})
        key = tuple(values), device
        if key not in cache:
            cache[key] = torch.tensor(values, dtype=torch.int64, device=device)
        return cache[key]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Returns the shape of each parameter; under sharding of the whole one."""
        return self.sharding.shapes(self.params)

    @functools.cached_property
    def layer_shapes(self) -> tuple[str, ...]:
        """Returns the shapes of each layer's parameters in words, e.g. ``"64×32 + 64"``."""
        words: list[list[str]] = [[] for _ in self.layers]
        for shape, layer in zip(self.shapes, self.layer_of, strict=True):
            words[layer].append("×".join(map(str, shape)) or "scalar")
        return tuple(" + ".join(each) for each in words)

    def subset(self, indices: Sequence[int]) -> Layout:
        """Returns the layout of some of the parameters, by index, in the order given."""
        layers = tuple(dict.fromkeys(self.layers[self.layer_of[i]] for i in indices))
        position = {layer: index for index, layer in enumerate(layers)}
        return replace(
            self,
            params=tuple(self.params[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            layers=layers,
            layer_of=tuple(position[self.layers[self.layer_of[i]]] for i in indices),
            group_of=tuple(self.group_of[i] for i in indices),
            owners=tuple(self.owners[i] for i in indices),
            sharding=self.sharding.subset(indices),
        )

    def measure(self, needs: Needs = NOTHING) -> Measurement:
        """Returns what :func:`~lightning_gradguard.measurement.measurement.measure` does; call it without autograd."""
        grads = tuple(self.sharding.gradients(self.params))
        present = self.sharding.present(self.params, grads)
        norms, found = self.sharding.measure(grads, self.norms_of_gradients, needs)
        measurement = Measurement(self, grads, norms, torch.linalg.vector_norm(norms), needs, found)
        measurement.__dict__["present"] = present  # it is asked for at each step, and would ask back
        return measurement

    def values(self) -> Sequence[Tensor]:
        """Returns the value of each parameter now, or this process's piece of it, to be read without autograd."""
        return self.sharding.values(self.params)


def _is_swapped(parameter: Tensor) -> bool:
    return is_distributed(parameter) or is_flat(parameter) or bool(getattr(parameter, "_fsdp_flattened", False))


def check_owner(module: nn.Module, optimizers: Optimizers) -> None:
    """Refuses optimizers that hold no parameter of a module, though it has some.

    Raises:
        ValueError: says what each of them has.
    """
    own = {id(parameter) for parameter in module.parameters()}
    params = optimizers.params
    if own and params and not any(id(parameter) in own for parameter in params):
        raise ValueError(
            f"optimizer: none of its {len(params)} parameters is one of the {len(own)} of {type(module).__name__}: it "
            "was made for another model, or for a copy of this one (moved, compiled or wrapped after that); make the "
            "optimizer from the parameters of the module that is passed"
        )


class _Entry(NamedTuple):
    """One parameter of an optimizer, with the index of its group."""

    name: str
    parameter: nn.Parameter
    group: int


def _by_depth(module: nn.Module, groups: Sequence[dict[str, Any]]) -> list[_Entry]:
    """Returns the parameters of all groups in the order in which the module holds them."""
    names = tensor_names(module, "_parameters")
    depth = {parameter: position for position, parameter in enumerate(names)}
    entries: dict[Tensor, _Entry] = {}
    for number, group in enumerate(groups):
        for index, parameter in enumerate(group["params"]):
            name = names.get(parameter, f"unnamed.{number}.{index}")
            entries.setdefault(parameter, _Entry(name, parameter, number))
    # The sort is stable: what the module does not hold comes last, in the optimizer's order.
    return sorted(entries.values(), key=lambda entry: depth.get(entry.parameter, len(depth)))


def _names_of_layers(module: nn.Module, names: Sequence[str], owners: Sequence[nn.Module | None]) -> tuple[str, ...]:
    """Returns for each parameter the name of the module that owns it, as far as there is one."""
    module_name = module_names(module)

    def layer(name: str, owner: nn.Module | None) -> str:
        # A parametrized weight lies two modules deeper than the layer it makes a weight for.
        inner = name.replace("parametrizations.", "", 1) if owner is not None else name
        return (module_name[owner] if owner is not None else "") or inner.rpartition(".")[0] or inner

    return tuple(map(layer, names, owners))


def _names_of_groups(groups: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple([str(group.get("name", index)) for index, group in enumerate(groups)])


def _owners(module: nn.Module) -> dict[Tensor, nn.Module]:
    owners: dict[Tensor, nn.Module] = {}
    for part in module.modules():  # a module comes before what parametrizes its weights
        parametrizations = part._modules.get("parametrizations")
        if parametrizations is not None:
            for parameter in parametrizations.parameters():
                owners.setdefault(parameter, part)
        for parameter in part.parameters(recurse=False):
            owners.setdefault(parameter, part)
    return owners
