"""How a policy's answer is carried out, and what it would leave of the gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_gradguard.clip.answer import Clip
from lightning_gradguard.measurement.measurement import Measurement, dense_values, whole_norms


@torch.no_grad()
def apply_(measurement: Measurement, clip: Clip) -> None:
    """Carries out a clip on the measured gradients, in place."""
    if clip.coefficient is not None:
        _scale_(_present(measurement), clip.coefficient)
    elif _is_by_units(clip):
        _scale_units_(measurement.grads, _factors_of_units(measurement, clip))
    elif clip.beyond is not None:
        assert isinstance(clip.bound, Tensor)
        _scale_units_(measurement.grads, _factors_beyond(measurement.grads, clip.bound, clip.beyond))
    elif clip.bound is not None:
        _clamp_all_(_present(measurement), clip.bound)
    if clip.then is not None:
        apply_(measurement, clip.then)


@torch.no_grad()
def after(measurement: Measurement, clip: Clip) -> Measurement:
    """Returns what the gradients measure once ``clip`` is applied, without applying it.

    Exact and free for coefficients, and for chains of them. For element bounds and units it clips and measures a copy
    of the gradients: their memory once more and three passes, so only for logged steps and for chains that ask for it.
    """
    if only_scales(clip):
        scaled = measurement if clip.coefficient is None else measurement.scaled(clip.coefficient)
        return scaled if clip.then is None else after(scaled, clip.then)
    # How much is cut can only be told from the cut tensors: a copy is clipped, and measured.
    grads = tuple(None if grad is None else grad.clone() for grad in measurement.grads)
    copy = replace(measurement, grads=grads, found={}, scale=None)
    if measurement.scale is not None:
        apply_(copy, Clip(coefficient=measurement.scale))
    apply_(copy, clip)
    norms = whole_norms(measurement.layout, copy.grads, measurement.layout.norms_of_copies)
    return replace(copy, norms=norms, total=torch.linalg.vector_norm(norms))


def only_scales(clip: Clip) -> bool:
    """Tells whether a clip, and all that come after it, multiply whole gradients, so that norms tell what is left."""
    scales = clip.coefficient is not None or (clip.bound is None and not _is_by_units(clip))
    return scales and (clip.then is None or only_scales(clip.then))


def is_tensor_wise(clip: Clip) -> bool:
    """Tells whether a clip, or one that comes after it, treats single tensors or units of them apart."""
    several = any(isinstance(value, Tensor) and value.dim() > 0 for value in (clip.coefficient, clip.bound))
    return several or _is_by_units(clip) or (clip.then is not None and is_tensor_wise(clip.then))


@torch.no_grad()
def norms_left(measurement: Measurement, clip: Clip) -> Tensor | None:
    """Returns the norm of each gradient once ``clip`` is applied, ``[num_params]``, without a look at the gradients.

    ``None`` where numbers do not tell: for bounds of elements, and for chains with units.
    """
    if only_scales(clip):
        return after(measurement, clip).norms
    if clip.by_unit is None or clip.then is not None:
        return None
    norms = measurement.norms
    for units, factors in clip.by_unit:
        norms = units.left(factors, norms)
    return norms


@torch.no_grad()
def cosine(raw: Measurement, clipped: Measurement) -> Tensor:
    """Cosine between the raw gradient and the clipped one, shape ``[]``; 1 means the direction was kept.

    Args:
        raw: the measurement before clipping.
        clipped: :func:`after` it. Where that was free so is this: sum(n * n') / (||g|| ||g'||) with the norms n of
            each tensor. Otherwise the inner product of raw gradients and clipped copies.
    """
    if clipped.grads is raw.grads:
        inner = ((raw.norms / raw.total) * (clipped.norms / clipped.total)).sum()
    else:
        # Divided by the norm first: products of large gradients would overflow.
        products = torch.zeros_like(raw.norms)
        for index, (grad, cut) in enumerate(zip(raw.grads, clipped.grads, strict=True)):
            if grad is not None and cut is not None:
                left, right = dense_values(grad) / raw.total.to(grad.device), dense_values(cut)
                product = (left * right.conj()).sum(dtype=None if left.is_complex() else raw.norms.dtype)
                products[index] = torch.real(product)
        inner = raw.layout.sharding.sum(products).sum() / clipped.total
    return inner.clamp(max=1.0)


@torch.no_grad()
def is_clipped(measurement: Measurement, clip: Clip) -> Tensor:
    """Tells whether a clip changes anything, a boolean of shape ``[]`` on the device."""
    if clip.changes is not None:
        changes = clip.changes
    elif clip.coefficient is not None:
        changes = clip.coefficient < 1.0
        changes = changes.any() if changes.dim() else changes
    elif _is_by_units(clip):
        device = measurement.total.device
        factors = _factors_of_units(measurement, clip)
        found = [(unit < 1.0).any().to(device) for unit in factors if unit is not None]
        changes = torch.stack(found).any() if found else torch.zeros((), dtype=torch.bool, device=device)
        changes = measurement.layout.sharding.any(changes)
    elif clip.bound is not None:
        changes = (measurement.max_abs > clip.bound).any()
    else:
        changes = torch.zeros((), dtype=torch.bool, device=measurement.total.device)
    return changes if clip.then is None else changes | is_clipped(measurement, clip.then)


def _present(measurement: Measurement) -> list[tuple[int, Tensor]]:
    return [(index, grad) for index, grad in enumerate(measurement.grads) if grad is not None]


def _scale_(present: Sequence[tuple[int, Tensor]], coefficient: Tensor) -> None:
    # A fused call takes tensors of one device; the coefficient is sent to each device once.
    by_device = defaultdict(list)
    for index, grad in present:
        by_device[grad.device].append((index, grad))
    for device, entries in by_device.items():
        local = coefficient.to(device, non_blocking=True)
        grads = [grad for _, grad in entries]
        # Only a norm that single precision cannot hold has a coefficient in double precision beside narrower gradients:
        # so small that they are multiplied by its root, twice.
        roots = local.dtype == torch.float64 and any(torch.finfo(grad.dtype).bits < 64 for grad in grads)
        for factor in (local.sqrt(),) * 2 if roots else (local,):
            torch._foreach_mul_(grads, _one_each(factor, entries) if factor.dim() else factor)


def _is_by_units(clip: Clip) -> bool:
    return clip.units is not None or clip.by_unit is not None


def _factors_of_units(measurement: Measurement, clip: Clip) -> Sequence[Tensor | None]:
    """Returns for each gradient the factors of its units, in a shape that broadcasts over it."""
    if clip.units is not None:
        return clip.units
    factors: list[Tensor | None] = [None] * len(measurement.grads)
    for units, each in clip.by_unit or ():
        for index, factor in units.spread(each):
            factors[index] = factor
    return factors


def _scale_units_(grads: Sequence[Tensor | None], units: Sequence[Tensor | None]) -> None:
    dense, factors = [], []
    for grad, unit in zip(grads, units, strict=True):
        if grad is None or unit is None:
            continue
        # Only the values that are there are scaled; an index that occurs twice is summed before that.
        if grad.layout == torch.strided:
            dense.append(grad)
            factors.append(unit)
        else:
            cut = grad.coalesce()
            cut.values().mul_(unit)
            grad.copy_(cut)
    if dense:
        torch._foreach_mul_(dense, factors)


def _factors_beyond(grads: Sequence[Tensor | None], bound: Tensor, ratio: Tensor) -> list[Tensor | None]:
    """Returns for each gradient the factors of its elements: 1 up to the bound, the tensor's ratio beyond it."""
    factors: list[Tensor | None] = [None] * len(grads)
    present = [(index, dense_values(grad)) for index, grad in enumerate(grads) if grad is not None]
    sizes = torch._foreach_abs([grad for _, grad in present]) if present else []
    bounds, ratios = bound.unbind(), ratio.unbind()
    for (index, _), size in zip(present, sizes, strict=True):
        # 1 or 0 in place, then at least the ratio: twice as fast on CPU as torch.where
        factors[index] = size.le_(bounds[index].to(size)).clamp_(min=ratios[index].to(size))
    return factors


def _clamp_all_(present: Sequence[tuple[int, Tensor]], bound: float | Tensor) -> None:
    alike = defaultdict(list)
    for index, grad in present:
        if isinstance(bound, float) or grad.layout != torch.strided or grad.is_complex():
            _clamp_(grad, bound if isinstance(bound, float) or bound.dim() == 0 else bound[index])
        else:
            alike[grad.device, grad.dtype].append((index, grad))
    for (device, dtype), entries in alike.items():
        assert isinstance(bound, Tensor)
        local, grads = bound.to(device, dtype, non_blocking=True), [grad for _, grad in entries]
        # Two passes, and still twice as fast on CPU as clamping with two tensors, which is not vectorized there.
        torch._foreach_clamp_max_(grads, _one_each(local, entries))
        torch._foreach_clamp_min_(grads, _one_each(-local, entries))


def _one_each(values: Tensor, entries: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
    if not values.dim():
        return [values] * len(entries)
    unbound = values.unbind()
    return [unbound[index] for index, _ in entries]


def _clamp_(grad: Tensor, bound: float | Tensor) -> None:
    if grad.layout != torch.strided:
        cut = grad.coalesce()
        _clamp_(cut.values(), bound)
        grad.copy_(cut)
    elif grad.is_complex():  # by magnitude: clamping real and imaginary part apart would turn the element
        grad.mul_((bound / grad.abs().clamp(min=torch.finfo(grad.dtype).tiny)).clamp(max=1.0))
    elif isinstance(bound, float):
        grad.clamp_(-bound, bound)
    else:
        local = bound.to(grad.device, grad.dtype, non_blocking=True)
        grad.clamp_(-local, local)
