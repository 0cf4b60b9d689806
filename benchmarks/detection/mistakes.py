"""Mistakes that can be made in any script, as changes of its recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .recipe import Batch, Data, Optimizers, Recipe

Change = Callable[[Recipe], Recipe]


def setting(**changes: Any) -> Change:
    """Other values for some fields."""
    return lambda recipe: replace(recipe, **changes)


def both(*changes: Change) -> Change:
    """One after the other."""

    def change(recipe: Recipe) -> Recipe:
        for one in changes:
            recipe = one(recipe)
        return recipe

    return change


def model(after: Callable[[nn.Module], Any]) -> Change:
    """Something done to the network once it is built."""

    def change(recipe: Recipe) -> Recipe:
        def build() -> nn.Module:
            net = recipe.model()
            with torch.no_grad():
                after(net)
            return net

        return replace(recipe, model=build)

    return change


def weights(scale: Callable[[str, Tensor], Any]) -> Change:
    """Something done to each parameter of the new network, by name."""
    return model(lambda net: [scale(name, parameter) for name, parameter in net.named_parameters()])


def rate(factor: float, which: int | None = None) -> Change:
    """The learning rate of every group times a factor, of one optimizer alone if it is named."""

    def change(recipe: Recipe) -> Recipe:
        def build(net: nn.Module) -> list[Optimizer]:
            optimizers = listed(recipe.optimizer(net))
            for optimizer in optimizers if which is None else optimizers[which : which + 1]:
                for group in optimizer.param_groups:
                    group["lr"] *= factor
            return optimizers

        return replace(recipe, optimizer=build)

    return change


def listed(made: Any) -> list[Optimizer]:
    """One optimizer, or several, as a list."""
    return [made] if isinstance(made, Optimizer) else list(made)


def frozen(*prefixes: str) -> Change:
    """Parameters whose names begin so do not require a gradient."""
    return weights(lambda name, p: p.requires_grad_(not name.startswith(prefixes)))


def unregistered(name: str, kept: Callable[[Any], Any]) -> Change:
    """What the net has under a name is kept there so that it does not see it: in a plain list, say."""

    def change(net: nn.Module) -> None:
        part = getattr(net, name)
        delattr(net, name)
        vars(net)[name] = kept(part)

    return model(change)


def optimizer_of_a_copy(recipe: Recipe) -> Recipe:
    """The optimizer is made of another copy of the network."""
    return replace(recipe, optimizer=lambda net: recipe.optimizer(copy.deepcopy(net)))


def optimizer_of(part: Callable[[nn.Module], Any], make: Callable[[Any], Optimizer]) -> Optimizers:
    """An optimizer that holds only some of the parameters."""
    return lambda net: make(part(net))


def inputs(change: Callable[[Tensor], Tensor]) -> Change:
    """Every input is changed, held-out ones as well."""
    return batches(lambda batch: (change(batch[0]), *batch[1:]))


def batches(change: Callable[[Batch], Batch]) -> Change:
    """Every batch is changed, held-out ones as well."""

    def changed(recipe: Recipe) -> Recipe:
        return replace(recipe, data=_through(recipe.data, change))

    return changed


def training_batches(change: Callable[[Batch], Batch]) -> Change:
    """Every batch to train on is changed; held-out ones stay good."""

    def changed(recipe: Recipe) -> Recipe:
        return replace(recipe, data=_through(recipe.data, change), held_out=recipe.held_out or recipe.data)

    return changed


def _through(data: Data, change: Callable[[Batch], Batch]) -> Data:
    return lambda generator, train: change(data(generator, train))


def some_batches(share: float, change: Callable[[Batch], Batch]) -> Change:
    """A share of the training batches is changed, drawn anew for each of them."""

    def changed(recipe: Recipe) -> Recipe:
        def draw(generator: torch.Generator, train: bool) -> Batch:
            batch = recipe.data(generator, train)
            hit = float(torch.rand(1, generator=generator)) < share
            return change(batch) if train and hit else batch

        return replace(recipe, data=draw)

    return changed


def without_zero_grad(script: Any, batch: Batch) -> Tensor:
    """A manual step that never clears the gradients."""
    loss = script.recipe.loss(script.net, batch)
    script.manual_backward(loss)
    script.optimizers().step()
    return loss


def without_step(script: Any, batch: Batch) -> Tensor:
    """A manual step that forgets ``optimizer.step()``."""
    optimizer = script.optimizers()
    loss = script.recipe.loss(script.net, batch)
    optimizer.zero_grad()
    script.manual_backward(loss)
    return loss


def cleared_before_step(script: Any, batch: Batch) -> Tensor:
    """A manual step whose ``zero_grad`` stands between backward and step."""
    optimizer = script.optimizers()
    loss = script.recipe.loss(script.net, batch)
    script.manual_backward(loss)
    optimizer.zero_grad()
    optimizer.step()
    return loss
