"""``gradguard whatif``: what other clipping policies would have done to the runs below a log folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from lightning_gradguard.hindsight.notation import read_policy
from lightning_gradguard.hindsight.table import WhatIf, whatif
from lightning_gradguard.report.options import log_parser
from lightning_gradguard.report.runs import read_runs
from lightning_gradguard.tensorboard.events import finite

_EPILOG = """examples:
  gradguard whatif lightning_logs/version_0
  gradguard whatif lightning_logs --clip 'ZClip(z=3.0)' --clip 'Chain([ZClip(), NormClip(1.0)])'
  gradguard whatif lightning_logs --format md

exit status:
  0  every run was read, and every policy tried
  2  a run has no norms or cannot be read (it is named), a policy needs more than norms, or a text is no policy
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for what cannot be read or tried, in one line each."""
    options = _parser().parse_args(argv)
    try:
        policies = [read_policy(text) for text in options.clip]
        runs, unreadable = read_runs(options.logdir)
    except (OSError, ValueError) as error:
        print(f"whatif: {error}", file=sys.stderr)
        return 2
    problems = [f"{run.run} cannot be read: {run.reason}" for run in unreadable]
    found: list[WhatIf] = []
    for run in runs:
        try:
            found.append(whatif(run.records, policies, name=run.name))
        except ValueError as error:
            problems.append(str(error))
    if found:
        print(_FORMATS[options.format](found))
    for problem in dict.fromkeys(problems):  # a policy that needs more needs it in every run
        print(f"whatif: {problem}", file=sys.stderr)
    return 2 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = log_parser(
        "whatif",
        "Runs clipping policies over the gradient norms of runs that are over: how often each would have clipped, how "
        "hard, and which clip the norms ask for.",
        _EPILOG,
        formats=_FORMATS,
        printed="how the tables are printed",
    )
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="POLICY",
        help="one more policy, such as 'ZClip(z=3.0)'; may be given several times",
    )
    return parser


def _text(found: Sequence[WhatIf]) -> str:
    return "\n\n".join(map(str, found))


def _markdown(found: Sequence[WhatIf]) -> str:
    return "\n".join(table.markdown() for table in found).rstrip("\n")


def _json(found: Sequence[WhatIf]) -> str:
    return json.dumps(finite({"runs": [table.as_json() for table in found]}), indent=1, allow_nan=False)


_FORMATS: dict[str, Callable[[Sequence[WhatIf]], str]] = {"text": _text, "md": _markdown, "json": _json}
