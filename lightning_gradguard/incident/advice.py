"""Why an operator makes a NaN, and what to do about it."""

from __future__ import annotations

from typing import Any

# (part of the operator's name, backward only, why it happens, what to do)
_ADVICE: tuple[tuple[str, bool, str, str], ...] = (
    ("sqrt", True, "the slope of a square root at 0 is infinite", "add a small constant under the root"),
    ("norm", True, "the slope of a norm at the zero vector is not defined", "add a constant, or square it"),
    ("pow", True, "the slope of x**p at 0 is infinite for p < 1", "clamp x away from 0 first"),
    ("log", False, "the logarithm of 0 is -Inf, of a negative number NaN",
     "clamp the argument, or use log_softmax / logsigmoid / a loss on logits"),
    ("exp", False, "exp of more than 88 (float32), 11 (float16) is Inf",
     "subtract the maximum first; use logsumexp, softplus or log-space; bound the argument"),
    ("div", False, "division by zero, or by a number so small that the quotient overflows",
     "add a small constant to the denominator"),
    ("reciprocal", False, "division by zero", "add a small constant to the denominator"),
    ("rsqrt", False, "the variance or norm under the root was 0 or overflowed", "add or raise the layer's eps"),
    ("softmax", False, "a row of which every entry is masked with -Inf has no softmax",
     "keep at least one entry of each row, or mask with a large finite number"),
    ("attention", False, "a query for which every key is masked has no softmax", "keep one key for each query"),
    ("std", False, "the deviation of a single element is NaN", "use correction=0, or batches of more than one"),
    ("var", False, "the variance of a single element is NaN", "use correction=0, or batches of more than one"),
    ("acos", False, "outside [-1, 1]", "clamp to (-1 + eps, 1 - eps)"),
    ("asin", False, "outside [-1, 1]", "clamp to (-1 + eps, 1 - eps)"),
    ("batch_norm", False, "a batch whose variance overflows or that holds one value a channel",
     "check the scale of the inputs; use larger batches or another normalization"),
    ("_to_copy", False, "the number does not fit the narrower dtype it was cast to",
     "train in bfloat16, keep this layer in float32, or bound its input"),
    ("mm", False, "the sum of products passed the dtype's largest number: its inputs have grown too large",
     "look at the ranges above; normalize the input of this layer, lower the learning rate, clip gradients"),
    ("conv", False, "the sum of products passed the dtype's largest number: its inputs have grown too large",
     "look at the ranges above; normalize the input of this layer, lower the learning rate, clip gradients"),
)  # fmt: skip


_HELD = {
    "batch": (
        "the batch itself holds it: a broken sample, a division by a zero deviation, a failed read",
        "check this batch in batch.pt; validate samples in the data set; skip keeps the run alive meanwhile",
    ),
    "parameter": (
        "an earlier update wrote it: the step before was already too large",
        "clip gradients, lower the learning rate, use rollback; look at the norms of the steps before",
    ),
    "buffer": (
        "an earlier forward pass wrote it, as a bad batch does to the running statistics of BatchNorm",
        "restore the buffer from a checkpoint; with the guard on it is put back at the step where it happens",
    ),
    "tensor": (
        "a tensor that the model keeps from before the step holds it",
        "look for state carried from step to step: hidden states, memory banks, moving averages",
    ),
}


def advice(localisation: dict[str, Any] | None) -> tuple[str, str] | None:
    """Likely cause and cure for where a non-finite value began; ``None`` where there is nothing to say."""
    origin = (localisation or {}).get("origin")
    if origin is None:
        return None
    if origin["place"] != "operator":
        return _HELD[origin["place"]]
    call = origin["call"]
    narrow = any(given["dtype"] == "float16" for given in [*call["inputs"], call["output"]])
    for part, backward_only, cause, cure in _ADVICE:
        if part in call["operator"] or (backward_only and part in (call["node"] or "").lower()):
            if backward_only and call["phase"] != "backward":
                continue
            return cause, cure
    if narrow:
        return "a result beyond 65504, the largest float16", "train in bfloat16, or keep this layer in float32"
    return None
