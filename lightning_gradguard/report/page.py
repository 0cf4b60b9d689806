"""One HTML page that holds everything: the page of the tab, its style, and the data."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lightning_gradguard.report.picture import Picture
from lightning_gradguard.tensorboard.assets import read_assets
from lightning_gradguard.tensorboard.curve import curve_of
from lightning_gradguard.tensorboard.flow import HEAD_ROWS, LAYER_STATS, NOT_MEASURED
from lightning_gradguard.tensorboard.frame import encode_frame
from lightning_gradguard.tensorboard.overview import summarize

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
<script type="importmap">{modules}</script>
</head>
<body>
<h1>{title}</h1>
<noscript>{plain}</noscript>
{clips}
<script type="application/json" id="gradguard-report">{data}</script>
<script type="module">import {{ render }} from "gradguard/index.js"; render();</script>
</body>
</html>
"""


def build_page(
    pictures: Sequence[Picture],
    title: str,
    unreadable: Mapping[str, str] | None = None,
    *,
    clips: Sequence[str] = (),
) -> str:
    """Returns a page that needs no server, no network and no other file.

    The modules of the tab go in as they are, as data addresses under the names that they import each other by; the
    values as gzipped frames, which every browser since 2023 unpacks by itself. Without scripts the findings are shown.

    Args:
        pictures: of the runs, those of one run together.
        title: of the page.
        unreadable: runs that could not be read, with the reason.
        clips: which clip each run asks for, as HTML.
    """
    assets = {name: content.decode() for name, content in read_assets().items()}
    modules = {f"gradguard/{name}": _module(source) for name, source in assets.items() if name.endswith(".js")}
    return _PAGE.format(
        title=html.escape(title),
        style=assets["style.css"],
        modules=_embedded({"imports": modules}),
        plain=_plain(pictures),
        clips=f'<section id="clips"><h2>Which clip?</h2>{"".join(clips)}</section>' if clips else "",
        data=_embedded(_data(pictures) | {"unreadable": dict(unreadable or {})}),
    )


def _module(source: str) -> str:
    """A module as an address. One at such an address has no neighbours, so imports name the import map instead."""
    source = re.sub(r'(from|import) "\./([a-z]+\.js)"', r'\1 "gradguard/\2"', source)
    return "data:text/javascript;base64," + base64.b64encode(source.encode()).decode()


def _data(pictures: Sequence[Picture]) -> dict[str, Any]:
    flows, events, curves = {}, {}, {}
    for picture in pictures:
        flow = picture.flow
        events[f"{picture.run}\n{picture.optimizer}"] = picture.events
        if picture.series is not None:
            curves[f"{picture.run}\n{picture.optimizer}"] = curve_of(picture.series)
        for index, stat in enumerate(LAYER_STATS):
            if (flow.matrices[:, HEAD_ROWS:, index] != NOT_MEASURED).any():
                packed = gzip.compress(encode_frame(flow, stat), 9, mtime=0)
                flows[f"{picture.run}\n{picture.optimizer}\n{stat}"] = base64.b64encode(packed).decode()
    runs = [_run([*own]) for _, own in groupby(pictures, key=lambda picture: picture.run)]
    return {"runs": runs, "flows": flows, "events": events, "curves": curves}


def _run(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Returns what the list of runs shows of one; of each optimizer there is a picture."""
    last = {picture.optimizer: picture.flow.matrices[-1] for picture in pictures}
    return summarize(pictures[0].run, last, [picture.events for picture in pictures]) | {
        "last_step": max(int(picture.flow.steps[-1]) for picture in pictures),
        "wall_time": max(float(picture.flow.wall_times[-1]) for picture in pictures),
        "layers": max(len(picture.flow.layers) for picture in pictures),
    }


def _embedded(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def _plain(pictures: Sequence[Picture]) -> str:
    lines = [
        f"<li>{html.escape(picture.run)}: {html.escape(finding['rule'])}: {html.escape(finding['message'])}</li>"
        for picture in pictures
        for finding in picture.events["findings"]
    ]
    return f"<p>The picture needs scripts. Findings:</p><ul>{''.join(lines) or '<li>none</li>'}</ul>"
