"""Activations, softmax, attention and losses that are applied as functions, seen as the operators that torch runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from lightning_gradguard.harmless.part import Part
from lightning_gradguard.probes.divergence import Divergence, Divergences
from lightning_gradguard.probes.likelihood import Likelihoods
from lightning_gradguard.probes.overlap import OPERATORS, Overlap, Overlaps
from lightning_gradguard.record import LossStats

# Operator of torch, mapped to the module that does the same; in-place ones end with an underscore.
_ACTIVATIONS = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "_softmax": "Softmax",
    "_safe_softmax": "Softmax",
}
_ATTENTION = "_scaled_dot_product_"
_QUERIES = 16  # of each head that are looked at, the last ones, which see all keys under a causal mask
_HEADS = 8  # batch entries times heads that are looked at
_NORMALIZED = 0.05  # log of the sum of probabilities up to which they sum to one, rounding and smoothing included
_CONSTANT = 0.02  # range of logits that are as good as the same for all
_ONE = 1e-3  # by which probabilities may miss one in sum
_RAW = 2  # stands for an input that is no log-probabilities, beside 1 for one of probabilities
_ALONE = "of one output"
_DIVERGENCE = "kl-divergence"
_OVERLAP = "overlap"
_BEYOND = 0.05  # by which rounding may carry a probability out of 0 to 1
_MAX_LOSSES = 8  # loss functions of one forward pass that are looked at

See = Callable[[str, Tensor, Mapping[str, Tensor]], None]


class FunctionWatch(TorchDispatchMode):
    """Calls back for each activation, softmax and attention that runs while it is on, and notes what losses are given.

    Operators are run as they are, and what they gave is passed on as it is: nothing changes but the time it takes. It
    lies below autograd, so that looking builds no graph. Operators that take functions, such as ``flex_attention`` and
    ``torch.cond``, are run as one, and what is inside of them is not looked at.

    Args:
        see: gets the kind, e.g. ``"ReLU"``, the output, and further figures.

    Attributes:
        on: whether it looks; where it cannot be taken off the stack of modes at once, it only passes on.
        part: its guard. What fails in here takes the looking away, not the training.
    """

    supports_higher_order_operators = True  # else torch refuses to run them while it looks

    def __init__(self, see: See) -> None:
        super().__init__()
        self.on = False
        self.part = Part("the look at functions", "rules that look at them stay silent", remove=self.stop)
        self._see = see
        self._names: dict[Any, str | None] = {}  # of each operator that was met; none of one that is not looked at
        self._losses: list[
            tuple[str, list[Tensor]]
        ] = []  # kind; baseline, what was given, value, range of targets, size; or range, what was given
        self._given: Tensor | None = None  # what is wrong with what the loss is given, if known
        self._error: tuple[Tensor, Tensor | None, Tensor, Tensor] | None = None  # a difference, its square, what from
        self._absolute = False  # whether the absolute value is taken of it, not the square
        self._divergences = Divergences()
        self._likelihoods = Likelihoods()
        self._overlaps = Overlaps()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Yes: else torch would run compiled functions eagerly while it looks, with other last bits."""
        return True

    def start(self) -> None:
        """Begins to look."""
        if not self.on:
            self._losses, self._given, self._error = [], None, None
            if _get_current_dispatch_mode() is not self:
                self.__enter__()
            self.on = True

    def stop(self) -> None:
        """Ends it, and leaves the stack of modes as it was."""
        self.on, self._error = False, None
        if _get_current_dispatch_mode() is self:
            self.__exit__(None, None, None)
        self._divergences.forget()
        self._take_likelihoods()
        self._take_overlaps()

    def take(self) -> tuple[LossStats, ...] | None:
        """What losses were given since it began, ``None`` without any."""
        losses, self._losses = self._losses, []
        found = []
        for kind, figures in losses:
            numbers = torch.stack([f.float().to(figures[0].device) for f in figures]).tolist()  # host sync
            if kind == _ALONE:
                found.append(LossStats("cross-entropy", alone=True))
                continue
            if kind.startswith(_DIVERGENCE):
                low, high, wrong = numbers
                found.append(LossStats(kind, None, wrong == 1, target_low=low, target_high=high, raw=wrong > 0))
                continue
            if kind.startswith(_OVERLAP):
                low, high, raw, value = numbers
                known = None if math.isnan(value) else value
                found.append(LossStats(kind, None, False, known, target_low=low, target_high=high, raw=raw == 1))
                continue
            baseline, given, value, *targets = numbers
            low, high, size = [*targets, None, None, None][:3]
            found.append(LossStats(kind, baseline, given == 1, value, low, high, size, raw=given == _RAW))
        return tuple(found) or None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.on:  # no code of ours stands above this: all that may fail is below the guard
            if func not in self._names:
                self._names[func] = self.part.run(_name_of, func)
            if (name := self._names[func]) is not None:
                self.part.run(self._look, name, args, kwargs, output)
        return output

    def _look(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if name.startswith(_ATTENTION):
            if "backward" not in name and _is_plain(args[0]) and _is_plain(args[1]):
                self._see("Attention", output[0] if isinstance(output, tuple) else output, _attention(args, kwargs))
            return
        if name in OPERATORS and _is_plain(args[0]) and _is_plain(output):
            self._overlaps.see(name, args, output)
        if name in _FOLLOWED and _is_plain(args[0]):
            self._likelihoods.see(name, args, output)
        if name in _LOOKS:
            if all(_is_plain(a) for a in args[:2] if isinstance(a, Tensor)) and len(self._losses) < _MAX_LOSSES:
                _LOOKS[name](self, args, output[0] if isinstance(output, tuple) else output)
            return
        if name in _FOLLOWED or name in OPERATORS:
            return
        kind = _ACTIVATIONS[name.rstrip("_") if not name.startswith("_") else name]
        if _is_plain(output) and output.numel():
            more = {}
            if kind == "Softmax":
                if output.dim() == 0 or output.shape[args[1]] < 2:
                    return  # over a single variable: always one
                more = _entropy(output, args[1])
            self._see(kind, output, more)

    def _log_softmax(self, args: Sequence[Any], value: Tensor) -> None:
        given, dim = args[0], args[1]
        if given.dim() and given.shape[dim] == 1 and given.requires_grad:
            self._losses.append((_ALONE, [given.new_zeros(())]))
        if not given.dim() or given.shape[dim] < 2:
            return
        if given.requires_grad:
            self._likelihoods.log_softmax(value, dim)
        if given.dim() > 1 and dim % given.dim() == 0:
            return  # along the batch: these are no probabilities of anything
        sums = given.sum(dim, dtype=torch.float32)
        ones = (sums - 1).abs().max() < _ONE
        if given.dim() == 2 and len(given) > 1:
            # Or so they were made, by a softmax along the batch: then the whole of them is one for each class.
            ones |= (sums.sum() / given.shape[1] - 1).abs() < _ONE / 10
        self._given = ones & (given.min() >= 0)

    def _nll(self, args: Sequence[Any], value: Tensor) -> None:
        """Cross-entropy: its best constant prediction are the frequencies of the classes."""
        if args[0].shape[-1 if args[0].dim() < 2 else 1] == 1:
            return  # one class: always zero
        target = args[1]
        ignored = args[4] if len(args) > 4 else -100
        counts = torch.bincount(target.reshape(-1).where(target.reshape(-1) != ignored, -1) + 1)[1:].float()
        share = counts / counts.sum()
        baseline = -torch.special.xlogy(share, share).sum()
        if self._given is None:  # no log_softmax has run before it
            total = args[0].detach().float().logsumexp(1 if args[0].dim() > 1 else 0)
            self._given = _RAW * (total.abs().max() > _NORMALIZED)
        self._add("cross-entropy", baseline * counts.sum() if _is_summed(args, 3) else baseline, value)

    def _bce_with_logits(self, args: Sequence[Any], value: Tensor) -> None:
        logits, target = args[0], args[1].float()
        low, high = logits.min(), logits.max()
        self._given = (low >= 0) & (high <= 1) & (high - low > _CONSTANT)  # a constant is no probability
        self._add(
            "binary-cross-entropy",
            _entropy_of(target.mean()),
            value,
            target,
            logits.float(),
            summed=_is_summed(args, 4),
        )

    def _bce(self, args: Sequence[Any], value: Tensor) -> None:
        self._given = None
        target = args[1].float()
        self._add("binary-cross-entropy", _entropy_of(target.mean()), value, target, summed=_is_summed(args, 3))

    def _squared(self, args: Sequence[Any], value: Tensor) -> None:
        self._absolute = False
        self._mse(args, value)

    def _smooth_l1(self, args: Sequence[Any], value: Tensor, times: float = 1.0) -> None:
        """The absolute error where it is large, and a square where it is small."""
        target = args[1].float()
        self._given = None
        edge = args[3] if len(args) > 3 else 1.0
        if target.dim() and len(target) > 1 and edge > 0:
            far = (target - target.median(0, keepdim=True).values).abs()
            cost = torch.where(far < edge, 0.5 * far.square() / edge, far - 0.5 * edge).mean()
            self._add("absolute-error", times * cost, value, target, args[0], summed=_is_summed(args, 2))

    def _huber(self, args: Sequence[Any], value: Tensor) -> None:
        self._smooth_l1(args, value, times=args[3] if len(args) > 3 else 1.0)

    def _mse(self, args: Sequence[Any], value: Tensor, times: int = 1) -> None:
        target = args[1].float()
        self._given = None
        number = len(target) if target.dim() else 1
        if number > 1 and self._absolute:
            around = (target - target.median(0, keepdim=True).values).abs().mean()
            self._add("absolute-error", around * times, value, target, args[0], summed=_is_summed(args, 2))
        elif number > 1:
            around = (target - target.mean(0, keepdim=True)).square().mean()
            baseline = around * number / (number - 1)
            self._add("squared-error", baseline * times, value, target, args[0], summed=_is_summed(args, 2))

    def _add(
        self,
        kind: str,
        baseline: Tensor,
        value: Tensor,
        target: Tensor | None = None,
        predicted: Tensor | None = None,
        *,
        summed: bool = False,
    ) -> None:
        given = self._given if self._given is not None else torch.zeros((), device=baseline.device)
        within = list(target.aminmax()) if target is not None and target.numel() else []
        if within and predicted is not None:
            within.append(predicted.float().square().mean().sqrt())
        baseline = baseline * target.numel() if summed and target is not None else baseline
        self._losses.append((kind, [baseline, given, value.mean(), *within]))
        self._given = None

    def _take_likelihoods(self) -> None:
        for value, constant in self._likelihoods.take():
            if len(self._losses) < _MAX_LOSSES:
                self._add("cross-entropy", constant, value)

    def _take_overlaps(self) -> None:
        for overlap in self._overlaps.take():
            if len(self._losses) < _MAX_LOSSES:
                self._losses.append((_kind_of(overlap), _figures_of(overlap)))

    def _xlogy(self, args: Sequence[Any], value: Tensor) -> None:
        self._divergences.entropy(args, value)

    def _exp(self, args: Sequence[Any], value: Tensor) -> None:
        self._divergences.exponential(args, value)

    def _mul(self, args: Sequence[Any], value: Tensor) -> None:
        self._bend(args, value)
        self._diverge(self._divergences.product(args, value))

    def _diverge(self, found: Divergence | None) -> None:
        """Log-probabilities lie below zero, but for rounding; what never does are probabilities, or raw outputs."""
        if found is None or not found.given.numel():
            return
        low, high = found.given.aminmax()
        never = (low >= 0) & (high > 0) & (high <= 1)
        wrong = torch.where(never, 1, _RAW * (high > _NORMALIZED))
        kind = f"{_DIVERGENCE}, log_target" if found.in_logarithms else _DIVERGENCE
        self._losses.append((kind, [*found.target.aminmax(), wrong]))
        self._given = None

    def _sub(self, args: Sequence[Any], value: Tensor) -> None:
        """A prediction less a target: the first half of an error that is written by hand."""
        one, other = args[0], args[1]
        self._diverge(self._divergences.difference(args, value))
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape or not one.dim():
            return
        if one.requires_grad != other.requires_grad and value.is_floating_point():
            self._error = (value, None, *((one, other) if one.requires_grad else (other, one)))

    def _bend(self, args: Sequence[Any], value: Tensor) -> None:
        """The square of such a difference."""
        if self._error is None or args[0] is not self._error[0]:
            return
        self._absolute = False
        if len(args) == 1 or (args[1] is args[0] if isinstance(args[1], Tensor) else args[1] == 2):
            self._error = (self._error[0], value, *self._error[2:])

    def _abs(self, args: Sequence[Any], value: Tensor) -> None:
        """The absolute value of such a difference."""
        if self._error is not None and args[0] is self._error[0]:
            self._error, self._absolute = (self._error[0], value, *self._error[2:]), True

    def _sum(self, args: Sequence[Any], value: Tensor) -> None:
        """Its sum, over all or of each sample."""
        if self._error is not None and args[0] is self._error[1]:
            if value.dim() == 0:
                self._mse((*self._error[2:], 2), value)
                self._error = None
            else:
                self._error = (self._error[0], value, *self._error[2:])

    def _mean(self, args: Sequence[Any], value: Tensor) -> None:
        """The mean of either: a squared error, as if a loss function had given it."""
        _, squares, *both = self._error or (None, None)
        if squares is not None and args[0] is squares and value.dim() == 0:
            self._mse((*both, 1), value, times=both[0].numel() // max(1, squares.numel()))
            self._error = None


# What log-probabilities may go through on their way to a loss that is written by hand.
_FOLLOWED = frozenset({"gather", "index", "mul", "neg", "squeeze", "view", "sum", "mean", "div"})
_LOOKS: dict[str, Callable[[FunctionWatch, Sequence[Any], Tensor], None]] = {
    "sub": FunctionWatch._sub,
    "pow": FunctionWatch._bend,
    "square": FunctionWatch._bend,
    "mul": FunctionWatch._mul,
    "xlogy": FunctionWatch._xlogy,
    "exp": FunctionWatch._exp,
    "abs": FunctionWatch._abs,
    "huber_loss": FunctionWatch._huber,
    "smooth_l1_loss": FunctionWatch._smooth_l1,
    "sum": FunctionWatch._sum,
    "mean": FunctionWatch._mean,
    "_log_softmax": FunctionWatch._log_softmax,
    "nll_loss_forward": FunctionWatch._nll,
    "nll_loss2d_forward": FunctionWatch._nll,
    "binary_cross_entropy_with_logits": FunctionWatch._bce_with_logits,
    "binary_cross_entropy": FunctionWatch._bce,
    "mse_loss": FunctionWatch._squared,
}


def _name_of(operator: Any) -> str | None:
    """The operator's name, if its output is looked at."""
    packet = getattr(operator, "overloadpacket", None)  # operators that take functions have none
    name = str(getattr(packet, "__name__", ""))
    looked_at = name.startswith(_ATTENTION) or name.rstrip("_") in _ACTIVATIONS or name in _LOOKS
    looked_at = looked_at or name in _FOLLOWED or name in OPERATORS
    return name if looked_at else None


def _kind_of(overlap: Overlap) -> str:
    """What is known of the sign of the loss that an overlap led to."""
    return f"{_OVERLAP}, minimized" if overlap.rises and overlap.alone and not overlap.at.dim() else _OVERLAP


def _figures_of(overlap: Overlap) -> list[Tensor]:
    """The range of its targets, whether what it is given are no probabilities and it has no bounds, what it led to."""
    low, high = overlap.given.detach().float().aminmax()
    raw = torch.zeros((), device=low.device) if overlap.bounded else (low < -_BEYOND) | (high > 1 + _BEYOND)
    value = overlap.at.detach() if not overlap.at.dim() else low.new_full((), math.nan)
    return [*overlap.target.float().aminmax(), raw, value]


def _is_summed(args: Sequence[Any], place: int) -> bool:
    """Whether the loss is the sum over the batch: torch's reduction, 2, at that place of the arguments."""
    return len(args) > place and args[place] == 2


def _is_plain(value: Any) -> bool:
    return type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_meta


def _entropy_of(share: Tensor) -> Tensor:
    return -torch.special.xlogy(share, share) - torch.special.xlogy(1 - share, 1 - share)


def _entropy(shares: Tensor, dim: int) -> dict[str, Tensor]:
    """Mean entropy over that of a uniform one, and the share of rows that look at one entry alone."""
    rows = shares.movedim(dim, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    rows = rows[:: max(1, len(rows) // 4096)].float()
    entropy = -torch.special.xlogy(rows, rows).sum(-1).mean() / math.log(rows.shape[-1])
    return {"entropy": entropy, "saturated": (rows.amax(-1) > 0.98).float().mean()}


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The largest logit of the last queries of a few heads, and how they are spread over keys; masks are left out."""
    query, key = args[0].float(), args[1].float()
    query = query.reshape(-1, *query.shape[-2:])[:_HEADS, -_QUERIES:]
    key = key.reshape(-1, *key.shape[-2:])[:_HEADS]
    if key.shape[-2] < 2 or len(key) != len(query):
        return {}
    scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
    logits = query @ key.transpose(-2, -1) * scale
    return {"max_logit": logits.abs().amax(), **_entropy(logits.softmax(-1), -1)}
