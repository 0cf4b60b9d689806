"""The command ``python -m lightning_gradguard replay``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from torch import nn

from lightning_gradguard.incident.bundle import BundleError
from lightning_gradguard.incident.read import read_bundle
from lightning_gradguard.incident.replay import ReplayReport, replay

REPRODUCED, NOT_REPRODUCED, UNUSABLE, FAILED = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0 if the incident was reproduced, 1 if not, 2 if bundle, module or arguments cannot be used (one line says what
        they lack), 3 if the replay itself failed or its result could not be shown: no verdict.
    """
    try:
        _print_anything(sys.stdout)
        _print_anything(sys.stderr)
        arguments = _parser().parse_args(argv)
        try:
            report = _run(arguments)
        except BundleError as problem:
            print(f"error: {_harmless(str(problem))}", file=sys.stderr)
            return UNUSABLE
        print(_harmless(str(report)))
        sys.stdout.flush()
        return REPRODUCED if report.reproduced else NOT_REPRODUCED
    except BrokenPipeError:  # whoever read the result has gone
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return FAILED
    except Exception:
        traceback.print_exc()
        print("error: the replay itself failed, which says nothing about the incident", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_gradguard replay",
        description="Runs the step of an incident again, without a Trainer, and names where it began.",
        epilog="Exit status: 0 reproduced, 1 not reproduced, 2 unusable bundle, module or arguments, 3 no verdict.",
    )
    parser.add_argument("bundle", help="folder of the incident, e.g. incidents/step-000412-opt0")
    parser.add_argument("--module", required=True, metavar="my.module:factory", help="returns the module; no arguments")
    parser.add_argument(
        "--step", metavar="my.module:step", help="step(module, batch) -> loss, where there is no training_step"
    )
    parser.add_argument("--samples", action="store_true", help="find out which samples of the batch did it")
    parser.add_argument("--anomaly", action="store_true", help="add the trace of autograd's anomaly detection")
    parser.add_argument("--device", default=None, help="e.g. cuda; the module's own if not given")
    return parser


def _run(arguments: argparse.Namespace) -> ReplayReport:
    read_bundle(arguments.bundle)  # before any of the user's code is imported
    with _blamed_on(f"--module {arguments.module}"):
        module = _load(arguments.module)()
        if not isinstance(module, nn.Module):
            raise TypeError(f"returned a {type(module).__name__}, not a torch.nn.Module")
    if arguments.device is not None:
        with _blamed_on(f"--device {arguments.device}"):
            module.to(arguments.device)
    step = None
    if arguments.step is not None:
        with _blamed_on(f"--step {arguments.step}"):
            step = _load(arguments.step)
    elif not callable(getattr(module, "training_step", None)):
        raise BundleError(f"{type(module).__name__} has no training_step; pass --step my.module:step")
    return replay(arguments.bundle, module, step=step, anomaly=arguments.anomaly, samples=arguments.samples)


@contextlib.contextmanager
def _blamed_on(argument: str) -> Iterator[None]:
    """Blames what the user passed for what goes wrong within."""
    try:
        yield
    except (Exception, SystemExit) as problem:
        words = " ".join(str(problem).split())
        raise BundleError(f"{argument}: {type(problem).__name__}: {words}") from problem


def _load(name: str) -> Any:
    """Returns the object that ``package.module:name`` names; the working folder is searched too."""
    module, separator, attribute = name.partition(":")
    if not separator or not attribute:
        raise ValueError(f"expected my.module:factory, got {name!r}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _print_anything(stream: TextIO) -> None:
    """Lets a terminal that knows only ASCII show what it can, instead of failing."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _harmless(text: str) -> str:
    """Returns the text without control characters: what comes from a bundle must not steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
