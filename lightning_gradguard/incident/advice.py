"""Why an operator makes a NaN, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Advice(NamedTuple):
    """A likely cause, and what cures it."""

    cause: str
    cure: str


_OVERFLOW = Advice(
    "the result passed the largest number of its dtype: the inputs have grown too large",
    "look at the ranges above; normalize the input of this layer, lower the learning rate, clip gradients",
)
_NARROW = Advice("a result beyond 65504, the largest float16", "train in bfloat16, or keep this layer in float32")
_MASK_IN_ARITHMETIC = Advice(
    "an infinity that a mask had written met a 0 or another infinity",
    "mask with a large finite number, or apply the mask to what goes into the softmax and nowhere else",
)
_MASKED_ROW = Advice(
    "a row of which every entry is masked with -Inf has no softmax",
    "keep at least one entry of each row, or mask with a large finite number",
)
_LARGE_ENTRY = Advice(
    "a softmax of entries that are not finite, or overflow", "bound the logits; look at what makes them"
)
_LOG = Advice(
    "the logarithm of 0 is -Inf, of a negative number NaN",
    "clamp the argument, or use log_softmax / logsigmoid / a loss on logits",
)
_EXP = Advice(
    "exp of more than 88 (float32), 11 (float16) is Inf",
    "subtract the maximum first; use logsumexp, softplus or log-space; bound the argument",
)
_DIVISION = Advice(
    "division by zero, or by a number so small that the quotient overflows", "add a small constant to the denominator"
)
_ROOT = Advice(
    "the root of a negative number is NaN", "clamp the argument to 0 and above; look for a rounded difference"
)
_INVERSE_ROOT = Advice("the variance or norm under the root was 0, or below", "add or raise the eps under the root")
_POWER = Advice(
    "a negative number has no fractional power, 0 no negative one, and large ones overflow",
    "clamp the base away from 0 and below, or bound it",
)
_DOMAIN = Advice("the argument lies outside of where the function is defined, or on its edge", "clamp it to the inside")
_SINGLE = Advice(
    "the deviation of a single element is NaN, that of numbers near the end of the dtype overflows",
    "use correction=0, or batches of more than one",
)
_VARIANCE_OVERFLOWS = Advice(
    "the input is so large that its variance overflows", "bound the input of this layer; look at what makes it so large"
)
_NO_VARIANCE = Advice(
    "equal numbers have no variance, and eps is too small to stand in for it", "raise the layer's eps (1e-5 is usual)"
)
_NARROWER_DTYPE = Advice(
    "the number does not fit the narrower dtype it was cast to",
    "train in bfloat16, keep this layer in float32, or bound its input",
)

# By the operator's own name, without overload and trailing underscore: "exp" is none of "expand".
_FORWARD: dict[str, Advice] = {
    **dict.fromkeys(("log", "log2", "log10", "log1p", "xlogy", "special_xlog1py", "log_sigmoid_forward"), _LOG),
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh", "logsumexp", "special_entr"), _EXP),
    **dict.fromkeys(("div", "true_divide", "floor_divide", "reciprocal", "remainder", "fmod", "addcdiv"), _DIVISION),
    **dict.fromkeys(("acos", "asin", "acosh", "atanh", "erfinv", "logit", "lgamma", "digamma"), _DOMAIN),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), _SINGLE),
    **dict.fromkeys(
        ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "convolution", "_convolution", "mkldnn_convolution",
         "cudnn_convolution", "mul", "add", "sub", "rsub", "sum", "mean", "cumsum", "prod", "linear", "lstm", "gru",
         "square", "addcmul", "linalg_vector_norm", "norm", "mse_loss", "matmul", "einsum", "logcumsumexp"),
        _OVERFLOW,
    ),
    "sqrt": _ROOT, "rsqrt": _INVERSE_ROOT, "pow": _POWER, "_to_copy": _NARROWER_DTYPE,
}  # fmt: skip
_SOFTMAX = frozenset({
    "_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention", "scaled_dot_product_attention",
    "_native_multi_head_attention", "_transform_bias_rescale_qkv", "_masked_softmax",
})  # fmt: skip
_NORMALIZATIONS = frozenset({
    "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm",
    "_native_batch_norm_legit_functional", "batch_norm_with_update", "_batch_norm_with_update", "miopen_batch_norm",
    "_fused_rms_norm", "rms_norm", "layer_norm", "group_norm", "instance_norm", "batch_norm",
})  # fmt: skip
# By the autograd node's name, without its number.
_BACKWARD: dict[str, Advice] = {
    "SqrtBackward": Advice("the slope of a square root at 0 is infinite", "add a small constant under the root"),
    **dict.fromkeys(
        ("NormBackward", "LinalgVectorNormBackward", "CdistBackward", "EuclideanDistBackward", "PdistBackward"),
        Advice("the slope of a norm at the zero vector is not defined", "add a constant, or square it"),
    ),
    "PowBackward": Advice("the slope of x**p at 0 is infinite for p < 1", "clamp x away from 0 first"),
    **dict.fromkeys(("LogBackward", "Log2Backward", "Log10Backward", "Log1PBackward", "XlogyBackward"), Advice(
        "the slope of a logarithm at 0 is infinite, also where torch.where throws its value away",
        "clamp the argument before the logarithm",
    )),
    **dict.fromkeys(("DivBackward", "ReciprocalBackward"), Advice(
        "the slope of a quotient grows with the square of a small denominator",
        "add a small constant to the denominator",
    )),
    **dict.fromkeys(("StdBackward", "VarBackward", "StdMeanBackward", "VarMeanBackward"), Advice(
        "the slope of a deviation of 0 is not defined", "use the variance, or add a small constant under its root",
    )),
    "RsqrtBackward": _INVERSE_ROOT,
    **dict.fromkeys(("AcosBackward", "AsinBackward", "AcoshBackward", "AtanhBackward", "ErfinvBackward"), Advice(
        "the slope at the edge of the domain is infinite", "clamp the argument to the inside: (-1 + eps, 1 - eps)",
    )),
    **dict.fromkeys(("ExpBackward", "Exp2Backward", "Expm1Backward"), _EXP),
}  # fmt: skip

_HELD = {
    "batch": Advice(
        "the batch itself holds it: a broken sample, a division by a zero deviation, a failed read",
        "replay with --samples to see which one; validate samples in the data set; skip keeps the run alive meanwhile",
    ),
    "parameter": Advice(
        "an earlier update wrote it: the step before was already too large",
        "clip gradients, lower the learning rate, use rollback; look at the norms of the steps before",
    ),
    "buffer": Advice(
        "an earlier forward pass wrote it, as a bad batch does to the running statistics of BatchNorm",
        "restore the buffer from a checkpoint; with the guard on it is put back at the step where it happens",
    ),
    "tensor": Advice(
        "a tensor that the model keeps from before the step holds it",
        "look for state carried from step to step: hidden states, memory banks, moving averages",
    ),
    "loss scale": Advice(
        "the loss scale has shrunk so far that dividing by it overflows: every step before it did, at any scale",
        "look for what overflows at the first of those steps; start again with a fresh GradScaler",
    ),
}


def advice(localisation: dict[str, Any] | None) -> Advice | None:
    """Likely cause and cure for where a non-finite value began; ``None`` where there is nothing to say.

    It goes by the exact operator and by what its inputs held, in the backward pass by the autograd node.

    Args:
        localisation: as it stands in ``report.json``.
    """
    origin = (localisation or {}).get("origin")
    if origin is None:
        return None
    if origin["place"] != "operator":
        return _HELD[origin["place"]]
    call = origin["call"]
    found = _of_node(call) if call["phase"] == "backward" else _of_operator(name_of(call["operator"]), call["inputs"])
    if found is None or found is _OVERFLOW:
        narrow = any(given["dtype"] == "float16" for given in [*call["inputs"], call["output"]])
        found = _NARROW if narrow and not any(given["inf"] for given in call["inputs"]) else found
    return found


def name_of(operator: str) -> str:
    """Returns the operator's name without namespace, overload and the underscore of its in-place form.

    Example:
        >>> name_of("aten.log_.default")
        'log'
    """
    parts = operator.split(".")
    name = parts[1] if len(parts) > 1 else parts[0]
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name


def _of_node(call: dict[str, Any]) -> Advice | None:
    node = (call["node"] or "").rstrip("0123456789")
    found = _BACKWARD.get(node)
    return found or _of_operator(name_of(call["operator"]), call["inputs"])


def _of_operator(name: str, inputs: Sequence[dict[str, Any]]) -> Advice | None:
    has_infinities = any(given["inf"] for given in inputs)
    if name in _SOFTMAX:
        return _MASKED_ROW if has_infinities else _LARGE_ENTRY
    if name in _NORMALIZATIONS:
        return _VARIANCE_OVERFLOWS if inputs and _squares_overflow(inputs[0]) else _NO_VARIANCE
    found = _FORWARD.get(name)
    return _MASK_IN_ARITHMETIC if found is _OVERFLOW and has_infinities else found


def _squares_overflow(given: dict[str, Any]) -> bool:
    """Tells whether the sum of the squares of the input's numbers passes the largest float32."""
    largest = max(abs(float(given["low"])), abs(float(given["high"])))
    return largest**2 * 10 > torch.finfo(torch.float32).max
