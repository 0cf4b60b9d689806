"""Writes what a person reads first about an incident: what, where, why, and how to run it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lightning_gradguard.incident.advice import advice
from lightning_gradguard.incident.trace import BY_A_MASK

_WORTH_SAYING = 1e-3  # a fraction of the dtype's largest number below this is of no interest


def to_markdown(report: dict[str, Any], path: Path) -> str:
    """Returns the text of ``report.md``.

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
        *_raised(report),
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
    if not report["gradients"]:
        return "There were no gradients yet."
    if not bad:
        return f"All {len(report['gradients'])} gradients are finite."
    lines = [f"{len(bad)} of {len(report['gradients'])} parameters have a non-finite gradient:", ""]
    lines += [f"- `{name}`: {found['nan']} NaN, {found['inf']} Inf" for name, found in list(bad.items())[:10]]
    if len(bad) > 10:
        lines.append(f"- and {len(bad) - 10} more, in `report.json`")
    return "\n".join(lines)


def _raised(report: dict[str, Any]) -> list[str]:
    raised = report["exception"]
    return [] if raised is None else [f"The step raised **`{raised['type']}`**: {raised['message']}"]


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
    if origin["place"] == "loss scale":
        scale = _number(origin["held"]["low"])
        lines.append(f"Gradients are finite until the **loss scale** ({scale}) is divided out of them.")
    elif origin["place"] != "operator":
        lines.append(
            f"**{origin['place']} `{origin['name']}`** was not finite before the step: {_range(origin['held'])}."
        )
    if call is not None:
        verb = "First made by" if origin["place"] == "operator" else "First used by"
        lines.append(f"{verb} **`{call['operator']}`** in the {call['phase']} pass{_node(call)} of {_module(call)}.")
        if call["source"]:
            lines.append(f"Called at `{call['source']}`.")
        masked = origin["place"] == "operator"
        lines += ["", *[f"- input {i}: {_range(given, masked=masked)}" for i, given in enumerate(call["inputs"])]]
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
    if report["left_out"]:
        lines = ["**This incident cannot be replayed**, for want of:", ""]
        return "\n".join(lines + [f"- {missing}" for missing in report["left_out"]])
    lines = [
        "```",
        f"python -m lightning_gradguard replay {shlex.quote(str(path))} --module my.module:factory",
        "```",
        "",
        "`factory` is a function without arguments that returns the module; its weights come from the bundle.",
    ]
    for note in report["notes"]:
        lines += ["", f"Note: {note}."]
    if report["unsaved"]:
        lines += [
            "",
            "Not saved, since it cannot be read back safely; a step that does not touch it runs all the same:",
            "",
        ]
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


def _range(held: dict[str, Any], *, masked: bool = False) -> str:
    bad = [f"{held[key]} {kind}" for key, kind in (("nan", "NaN"), ("inf", "Inf")) if held[key]]
    span = "no finite value" if held["low"] == "nan" else f"{_number(held['low'])} … {_number(held['high'])}"
    shape = ", ".join(map(str, held["shape"]))
    meant = BY_A_MASK if masked and held["inf"] else ""
    return f"{held['dtype']}[{shape}]: {span}" + (f" ({', '.join(bad)}{meant})" if bad else "")


def _extreme(extreme: dict[str, Any]) -> str:
    place = extreme["module"] or "training step"
    text = f"`{place}` {extreme['phase']} `{extreme['operator']}`: largest {_number(extreme['largest'])}"
    near = extreme["fraction"] >= _WORTH_SAYING
    return f"{text}, {extreme['fraction']:.2g} of the largest {extreme['dtype']}" if near else text


def _number(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"
