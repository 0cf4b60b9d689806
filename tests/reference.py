"""Slow twins of the policies in float64, written from the formulas, and sequences of gradients to feed both.

A twin takes the gradients of one step (a list of float64 tensors, of which ``None`` are missing) and returns what it
compared with and the clipped gradients. It knows nothing of devices, overflow or speed, and keeps whole histories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Grads = list[Tensor]
Answer = tuple[float | None, Grads]


def norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))


def largest(tensors: Sequence[Tensor]) -> float:
    return max(float(t.abs().max()) for t in tensors)


def scaled(grads: Grads, factor: float) -> Grads:
    return [grad * min(1.0, factor) for grad in grads]


class Followed:
    """What a policy follows and how it cuts: the norm by scaling, or the largest element by clamping."""

    def __init__(self, by: str = "norm") -> None:
        self.level: Callable[[Grads], float] = norm if by == "norm" else largest
        self.by = by

    def cut(self, grads: Grads, target: float, eps: float = 0.0) -> Grads:
        if self.by == "norm":
            level = norm(grads)
            return scaled(grads, target / (level + eps) if level else 1.0)
        return [grad.clamp(-target, target) for grad in grads]


class Norm:
    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, grads: Grads) -> Answer:
        return self.max_norm, scaled(grads, self.max_norm / (norm(grads) + 1e-6))


class Value:
    def __init__(self, max_value: float) -> None:
        self.max_value = max_value

    def __call__(self, grads: Grads) -> Answer:
        return self.max_value, [grad.clamp(-self.max_value, self.max_value) for grad in grads]


class Auto:
    def __init__(self, percentile=10.0, window=100, max_norm=math.inf, by="norm", original=False) -> None:
        self.followed, self.percentile, self.window = Followed(by), percentile, window
        self.max_norm, self.original = max_norm, original
        self.history: list[float] = []

    def threshold(self) -> float:
        return float(np.percentile(self.history[-self.window :], self.percentile)) if self.history else math.inf

    def __call__(self, grads: Grads) -> Answer:
        level = self.followed.level(grads)
        if level > 0.0:
            self.history.append(level if self.original else min(level, 10.0 * self.threshold()))
        threshold = min(self.threshold(), self.max_norm)
        return threshold, self.followed.cut(grads, threshold)


class Z:
    def __init__(
        self, z=2.5, decay=0.97, warmup=25, max_norm=math.inf, by="norm", to="adaptive_scaling", original=False
    ) -> None:
        self.followed, self.z, self.decay, self.warmup, self.to = Followed(by), z, decay, warmup, to
        self.max_norm, self.original = max_norm, original
        self.mean, self.variance, self.buffer, self.count = 0.0, 0.0, [], 0

    def __call__(self, grads: Grads) -> Answer:
        return self.as_published(grads) if self.original else self.as_shipped(grads)

    def cut_to(self, level: float, sigma: float, z_score: float) -> float:
        if self.to == "mean":
            return self.mean
        if self.to == "percentile":
            return self.mean + self.z * sigma
        return self.mean + self.z * sigma / (z_score / self.z)

    def as_published(self, grads: Grads) -> Answer:
        level, limit, target = self.followed.level(grads), math.inf, None
        if self.count < self.warmup:
            self.buffer.append(level)
            if self.count == self.warmup - 1:
                self.mean, self.variance = float(np.mean(self.buffer)), float(np.var(self.buffer))
        else:
            sigma = math.sqrt(self.variance)
            eps = 0.0 if self.to == "percentile" else 1e-6
            limit = self.mean + self.z * (sigma + eps)
            if level > limit:
                target = self.cut_to(level, sigma, (level - self.mean) / (sigma + 1e-6))
            learned = level if target is None else target
            self.mean = self.decay * self.mean + (1.0 - self.decay) * learned
            self.variance = self.decay * self.variance + (1.0 - self.decay) * (learned - self.mean) ** 2
        self.count += 1
        effective = min(level if target is None else target, self.max_norm)
        return min(limit, self.max_norm), self.followed.cut(grads, effective, 1e-6) if level > effective else grads

    def as_shipped(self, grads: Grads) -> Answer:
        level, limit, target = self.followed.level(grads), math.inf, math.inf
        if self.mean > 0.0:
            sigma = max(math.sqrt(self.variance), 0.25 * self.mean)
            limit = self.mean + self.z * sigma
            if level > limit:
                target = self.cut_to(level, sigma, (level - self.mean) / sigma)
        learned = limit if level > 1.5 * limit else level
        weight = 1.0 - self.decay if self.mean > 0.0 else 1.0
        self.mean += weight * (learned - self.mean)
        self.variance += weight * ((learned - self.mean) ** 2 - self.variance)
        return min(limit, self.max_norm), self.followed.cut(grads, min(target, self.max_norm))


class Quantile:
    def __init__(self, quantile=0.5, rate=0.2, max_norm=math.inf, by="norm") -> None:
        self.followed, self.quantile, self.rate, self.max_norm = Followed(by), quantile, rate, max_norm
        self.log_threshold: float | None = None

    def __call__(self, grads: Grads) -> Answer:
        level = self.followed.level(grads)
        if self.log_threshold is None and level > 0.0:
            self.log_threshold = math.log(level)
        threshold = math.inf if self.log_threshold is None else math.exp(self.log_threshold)
        if self.log_threshold is not None and level > 0.0:
            below = 1.0 if level <= threshold * (1.0 + 1e-12) else 0.0  # exp(log(x)) may round below x
            self.log_threshold -= self.rate * (below - self.quantile)
        threshold = min(threshold, self.max_norm)
        return threshold, self.followed.cut(grads, threshold)


class Ada:
    def __init__(self, ratio=1.05, decay=0.98, warmup=100, warmup_max_norm=1.0, original=False) -> None:
        self.ratio, self.decay, self.warmup, self.warmup_max_norm = ratio, decay, warmup, warmup_max_norm
        self.original, self.gamma, self.count = original, {}, 0

    def __call__(self, grads: Grads) -> Answer:
        total, answer = norm(grads), []
        together = min(1.0, self.warmup_max_norm / total) if total else 1.0
        for i, grad in enumerate(grads):
            own, gamma, warm = norm([grad]), self.gamma.get(i), self.count < self.warmup
            if gamma is None or (warm and self.original):
                factor = together
            else:
                factor = min(1.0, self.ratio * gamma / own, together if warm else 1.0) if own else 1.0
            if own > 0.0:
                self.gamma[i] = self.learned(gamma, own, factor * own, warm)
            answer.append(grad * factor)
        self.count += 1
        return None, answer

    def learned(self, gamma: float | None, own: float, scaled: float, warm: bool) -> float:
        if gamma is None:
            return scaled
        if self.original and warm:
            return min(gamma, scaled)
        entry = scaled if self.original else min(own, 2.0 * gamma)
        return self.decay * gamma + (1.0 - self.decay) * entry


class Max:
    def __init__(self, decay=0.97, original=False) -> None:
        self.decay, self.original, self.mean, self.steps = decay, original, {}, {}

    def bound(self, i: int) -> float:
        correction = 1.0 - self.decay ** self.steps[i] if self.original else 1.0
        return self.mean[i] / correction

    def learn(self, i: int, peak: float) -> None:
        if self.original:
            self.mean[i] = self.decay * self.mean.get(i, 0.0) + (1.0 - self.decay) * peak
        else:
            before = self.mean.get(i, peak)
            self.mean[i] = self.decay * before + (1.0 - self.decay) * min(peak, 2.0 * before)
        self.steps[i] = self.steps.get(i, 0) + 1

    def __call__(self, grads: Grads) -> Answer:
        answer = []
        for i, grad in enumerate(grads):
            peak = float(grad.abs().max())
            if not peak:
                answer.append(grad)
                continue
            self.learn(i, peak)
            bound = self.bound(i)
            answer.append(torch.where(grad.abs() > bound, grad / peak * bound, grad))
        return None, answer


def agc(grads: Grads, weights: Grads, units: Sequence[Sequence[tuple]], ratio=0.01, eps=1e-3) -> Grads:
    """Brock et al.: ``units`` lists for each tensor the index of each of its units."""
    answer = [grad.clone() for grad in grads]
    for grad, weight, out, indices in zip(grads, weights, answer, units, strict=True):
        for index in indices:
            limit = ratio * max(norm([weight[index]]), eps)
            if norm([grad[index]]) > limit:
                out[index] = grad[index] * limit / max(norm([grad[index]]), 1e-6)
    return answer


class Agc:
    """:func:`agc` for the parameters of the tests' bench: all ones, units are rows, a vector is one unit."""

    def __call__(self, grads: Grads) -> Answer:
        units = [[(i,) for i in range(len(grad))] if grad.dim() > 1 else [(slice(None),)] for grad in grads]
        return None, agc(grads, [torch.ones_like(grad) for grad in grads], units)


class Chain:
    """Twins one after the other; the threshold is that of the first."""

    def __init__(self, twins: Sequence[Callable[[Grads], Answer]]) -> None:
        self.twins = twins

    def __call__(self, grads: Grads) -> Answer:
        first: list[float | None] = []
        for twin in self.twins:
            threshold, grads = twin(grads)
            first.append(threshold)
        return first[0], grads


def levels(seed: int, steps: int) -> Iterator[float]:
    """A made-up training's gradient norms: noise, spikes, plateaus, slow drift and lasting changes of level."""
    rng = np.random.default_rng(seed)
    level, noise = 10.0 ** rng.uniform(-2.0, 2.0), 10.0 ** rng.uniform(-1.5, -0.3)
    drift, plateau = rng.normal(0.0, 0.01), 0
    for _ in range(steps):
        event = rng.random()
        if event < 0.02:
            level *= rng.choice([0.1, 0.5, 1.5, 3.0, 10.0])
        elif event < 0.03:
            plateau = int(rng.integers(5, 20))
        level *= math.exp(drift)
        plateau = max(0, plateau - 1)
        spread = 1e-3 if plateau else noise
        spike = 10.0 ** rng.uniform(0.5, 4.0) if rng.random() < 0.03 else 1.0
        yield level * spike * math.exp(rng.normal(0.0, spread))


def gradients(seed: int, steps: int, shapes: Sequence[tuple[int, ...]] = ((3, 4), (4,), (2, 2))) -> Iterator[Grads]:
    """Gradients in float32 with the norms of :func:`levels`; now and then one tensor spikes alone, or is zero."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed + 1)
    for level in levels(seed, steps):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        if rng.random() < 0.05:
            grads[int(rng.integers(len(grads)))] *= float(rng.choice([0.0, 30.0]))
        total = norm(grads)
        yield [grad * (level / total) for grad in grads]
