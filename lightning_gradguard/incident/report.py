"""Writes what a person reads first about an incident: what, where, why, and how to run it again."""

from __future__ import annotations

import shlex
from pathlib import Path
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

_WORTH_SAYING = 1e-3  # a fraction of the dtype's largest number below this is of no interest

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


def to_markdown(report: dict[str, Any], path: Path) -> str:
    """The text of ``report.md``.

    Args:
        report: the content of ``report.json``.
        path: where the bundle will lie, for the command.
    """
    config = report["config"]
    bad = {name: found for name, found in report["gradients"].items() if found["nan"] or found["inf"]}
    sections = [
        f"# {_title(report)}",
        f"{report['created']}, {report['module']}, action: **{report['action']}**.",
        "## What",
        _affected(report, bad),
        "## Where it began",
        f"The list of layers alone suggests: {report['place']}.",
        _where(report),
        "## Likely cause and cure",
        _cure(report),
        "## The steps before",
        _history(report["history"]),
        "## Run it again",
        _command(report, path),
        "## Run configuration",
        _table([(key, value) for key, value in {**config, **report["hyperparameters"]}.items()], "setting", "value"),
        "## Versions",
        _table(list(report["versions"].items()), "what", "version"),
    ]
    return "\n\n".join(sections) + "\n"


def _title(report: dict[str, Any]) -> str:
    kind = {"nan": "NaN", "inf": "Inf"}.get(report["cause"], report["cause"])
    return f"{kind} at step {report['step']}, optimizer {report['optimizer']}"


def _affected(report: dict[str, Any], bad: dict[str, Any]) -> str:
    if not bad:
        return f"All {len(report['gradients'])} gradients are finite."
    lines = [f"{len(bad)} of {len(report['gradients'])} parameters have a non-finite gradient:", ""]
    lines += [f"- `{name}`: {found['nan']} NaN, {found['inf']} Inf" for name, found in list(bad.items())[:10]]
    if len(bad) > 10:
        lines.append(f"- and {len(bad) - 10} more, in `report.json`")
    return "\n".join(lines)


def _where(report: dict[str, Any]) -> str:
    found = report["localisation"]
    if found is None:
        return (
            f"The step was not run again here: {report['not_localised'] or 'not asked for'}. The replay looks for it."
        )
    origin = found["origin"]
    if origin is None:
        return "\n".join([found["error"] or _came_out_finite(report["cause"]), *_near_limit(found)])
    call = origin["call"]
    lines = []
    if origin["place"] != "operator":
        lines.append(
            f"**{origin['place']} `{origin['name']}`** was not finite before the step: {_range(origin['held'])}."
        )
    if call is not None:
        verb = "First made by" if origin["place"] == "operator" else "First used by"
        lines.append(f"{verb} **`{call['operator']}`** in the {call['phase']} pass{_node(call)} of {_module(call)}.")
        if call["source"]:
            lines.append(f"Called at `{call['source']}`.")
        lines += ["", *[f"- input {index}: {_range(given)}" for index, given in enumerate(call["inputs"])]]
        lines.append(f"- result: {_range(call['output'])}")
    turned = found["turned_nan"]
    if turned is not None:
        lines += ["", f"It became a NaN in `{turned['operator']}`, {turned['phase']} pass of {_module(turned)}."]
    if found["bad_buffers"]:
        names = ", ".join(f"`{name}`" for name in found["bad_buffers"][:10])
        lines += ["", f"The forward pass also made these buffers non-finite: {names}."]
    lines += _near_limit(found)
    if origin["trail"]:
        lines += ["", "The results just before it, oldest first:", ""]
        lines += map(_bullet, origin["trail"])
    return "\n".join(lines)


def _near_limit(found: dict[str, Any]) -> list[str]:
    if not found["near_limit"]:
        return []
    return ["", "Near the end of their dtype, first ones first:", "", *map(_bullet, found["near_limit"])]


def _bullet(extreme: dict[str, Any]) -> str:
    return f"- {_extreme(extreme)}"


def _came_out_finite(cause: str) -> str:
    if cause == "spike":
        return "Every value is finite."
    return "Run again under watch, the step came out finite: chance, or another process."


def _cure(report: dict[str, Any]) -> str:
    found = advice(report["localisation"])
    if found is None:
        return "No rule of thumb fits. Compare the ranges above with what the operator can take, then run it again."
    return f"{found[0][0].upper()}{found[0][1:]}.\n\n**Try:** {found[1]}."


def _history(history: list[Any]) -> str:
    if not history:
        return "Nothing was recorded before it."
    head = ["| step | gradient norm | verdict |", "|---|---|---|"]
    return "\n".join(head + [f"| {step} | {_number(norm)} | {verdict} |" for step, norm, verdict in history])


def _command(report: dict[str, Any], path: Path) -> str:
    lines = [
        "```",
        f"python -m lightning_gradguard replay {shlex.quote(str(path))} --module my.module:factory",
        "```",
        "",
        "`factory` is a function without arguments that returns the module; its weights come from the bundle.",
    ]
    for note in report["notes"]:
        lines += ["", f"Note: {note}."]
    for missing in report["left_out"]:
        lines += ["", f"**Cannot be replayed:** {missing}."]
    if report["unsaved"]:
        lines += ["", "Not saved, since it cannot be read back safely:", ""]
        lines += [f"- {line}" for line in report["unsaved"]]
    return "\n".join(lines)


def _table(rows: list[tuple[str, Any]], *head: str) -> str:
    if not rows:
        return "None."
    body = [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *body])


def _node(call: dict[str, Any]) -> str:
    return f" (`{call['node']}`)" if call["node"] else ""


def _module(call: dict[str, Any]) -> str:
    return f"module **`{call['module']}`**" if call["module"] else "**the training step itself**"


def _range(held: dict[str, Any]) -> str:
    bad = [f"{held[key]} {kind}" for key, kind in (("nan", "NaN"), ("inf", "Inf")) if held[key]]
    span = "no finite value" if held["low"] == "nan" else f"{_number(held['low'])} … {_number(held['high'])}"
    return f"{held['dtype']}{held['shape']}: {span}" + (f" ({', '.join(bad)})" if bad else "")


def _extreme(extreme: dict[str, Any]) -> str:
    place = extreme["module"] or "training step"
    text = f"`{place}` {extreme['phase']} `{extreme['operator']}`: largest {_number(extreme['largest'])}"
    near = extreme["fraction"] >= _WORTH_SAYING
    return f"{text}, {extreme['fraction']:.2g} of the largest {extreme['dtype']}" if near else text


def _number(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
