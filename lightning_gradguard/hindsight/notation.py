"""Policies in writing: ``ZClip(z=3.0)``, or ``{"class_path": "ZClip", "init_args": {"z": 3.0}}`` as in YAML."""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any

from lightning_gradguard.clip.adagc import AdaGC
from lightning_gradguard.clip.agc import AGC
from lightning_gradguard.clip.autoclip import AutoClip
from lightning_gradguard.clip.base import ClipPolicy
from lightning_gradguard.clip.chain import Chain
from lightning_gradguard.clip.maxclip import MaxClip
from lightning_gradguard.clip.norm import NormClip
from lightning_gradguard.clip.quantile import QuantileClip
from lightning_gradguard.clip.value import ValueClip
from lightning_gradguard.clip.zclip import ZClip

POLICIES: dict[str, type[ClipPolicy]] = {
    kind.__name__: kind for kind in (NormClip, ZClip, AutoClip, QuantileClip, AGC, AdaGC, MaxClip, ValueClip, Chain)
}
_MAX_LENGTH = 1000  # characters: a policy is a line
_MAX_WHOLE = 1_000_000  # a window is memory


def read_policy(text: str) -> ClipPolicy:
    """Returns the policy that a text names: one of ours, with plain values as arguments. Nothing in it is run.

    Args:
        text: a call such as ``ZClip(z=3.0)`` or ``Chain([ZClip(), NormClip(1.0)])``, a bare name for a policy without
            arguments, or the mapping with ``class_path`` and ``init_args`` that YAML files have, as JSON.

    Raises:
        ValueError: if it is none; one line that says what was got, and what may be.

    Example:
        >>> read_policy("NormClip(0.5)")
        NormClip(max_norm=0.5)
        >>> read_policy("open('x')")
        Traceback (most recent call last):
        ValueError: "open('x')" is no policy: open is none of NormClip, ZClip, AutoClip, QuantileClip, AGC, AdaGC, \
MaxClip, ValueClip, Chain
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"{text[:40]!r}... is no policy: it has {len(text):,} characters, at most {_MAX_LENGTH:,} do")
    try:
        if text.lstrip().startswith("{"):
            found = _of_mapping(json.loads(text))
        else:
            found = _of_expression(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"{text!r} is no policy: write one as ZClip(z=3.0)") from None
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no policy: {' '.join(str(error).split())}") from None
    if not isinstance(found, ClipPolicy):
        raise ValueError(f"{text!r} is no policy: write one as ZClip(z=3.0)")
    return found


def written(policy: ClipPolicy) -> str:
    """Returns a policy as a constructor call, without the arguments that are as they are by default.

    Example:
        >>> written(ZClip(z=3.0))
        'ZClip(z=3.0)'
    """
    if isinstance(policy, Chain):
        return f"Chain([{', '.join(map(written, policy.policies))}])"
    given = [
        f"{name}={getattr(policy, name)!r}"
        for name, parameter in inspect.signature(type(policy)).parameters.items()
        if hasattr(policy, name) and getattr(policy, name) not in (parameter.default, parameter.default or ())
    ]
    return f"{type(policy).__name__}({', '.join(given)})"


def _of_expression(node: ast.expr) -> Any:
    """Returns the value of a node: a policy for a call, a list for a list, a plain value for the rest."""
    if isinstance(node, ast.Call):
        return _make(_name_of(node.func), [_of_expression(a) for a in node.args], _keywords(node))
    if isinstance(node, ast.Name | ast.Attribute):
        return _make(_name_of(node), [], {})
    if isinstance(node, ast.List | ast.Tuple):
        return [_of_expression(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is no plain value") from None


def _keywords(node: ast.Call) -> dict[str, Any]:
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("** is not understood: write each argument by name")
    return {str(keyword.arg): _of_expression(keyword.value) for keyword in node.keywords}


def _name_of(node: ast.expr) -> str:
    return ast.unparse(node).removeprefix("lightning_gradguard.")


def _of_mapping(entry: Any) -> Any:
    """Returns the object of a ``class_path`` and its ``init_args``, at any depth; other values as they are."""
    if isinstance(entry, list):
        return [_of_mapping(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    if "class_path" not in entry:
        raise ValueError("a mapping needs a class_path")
    arguments = entry.get("init_args", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"init_args must be a mapping, got {arguments!r}")
    name = str(entry["class_path"]).removeprefix("lightning_gradguard.")
    return _make(name, [], {str(key): _of_mapping(value) for key, value in arguments.items()})


def _make(name: str, positional: list[Any], named: dict[str, Any]) -> ClipPolicy:
    if name not in POLICIES:
        raise ValueError(f"{name} is none of {', '.join(POLICIES)}")
    kind = POLICIES[name]
    signature = inspect.signature(kind)
    try:
        bound = signature.bind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"{error}; {name} takes {', '.join(signature.parameters)}") from None
    for argument, value in bound.arguments.items():
        if isinstance(value, int) and value > _MAX_WHOLE:
            raise ValueError(f"{argument}={value} is more than {_MAX_WHOLE:,}")
    return kind(*bound.args, **bound.kwargs)
