"""The *Gradient flow* tab: its routes. What it shows is in ``static/``."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import Request, Response, wrappers

from lightning_gradguard.tensorboard.assets import CONTENT_TYPES, read_assets
from lightning_gradguard.tensorboard.curve import curve_of
from lightning_gradguard.tensorboard.flow import LAYER_STATS, PLUGIN_NAME
from lightning_gradguard.tensorboard.frame import encode_frame
from lightning_gradguard.tensorboard.store import FlowStore

Answer = Callable[[Request], Response]
App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class GradientFlowPlugin(base_plugin.TBPlugin):
    """Serves the pictures of gradients over layers and steps, and the page that draws them.

    Routes, all read-only: ``/runs``, with those that cannot be read and why; ``/flow?run=&optimizer=&stat=``;
    ``/events?run=&optimizer=``; ``/whatif?run=&optimizer=&clip=``, the total norm of every step and what a policy would
    have done to it; and each file of ``static/`` under its own name, listed once at start, so that no
    request reaches another file.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._static = read_assets()

    def get_plugin_apps(self) -> dict[str, App]:
        """Route to WSGI application."""
        apps = {"/runs": _app(self._runs), "/flow": _app(self._flow), "/events": _app(self._events)}
        apps["/whatif"] = _app(self._whatif)
        return apps | {f"/static/{name}": _app(self._static_answer(name)) for name in self._static}

    def is_active(self) -> bool:
        """``False``: TensorBoard shows the tab by itself as soon as a run has data of this plugin."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Returns where the page begins, and what the tab is called."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Gradient flow")

    def _store(self, request: Request) -> FlowStore:
        environ = request.environ
        return FlowStore(self._provider, plugin_util.context(environ), plugin_util.experiment_id(environ))

    def _runs(self, request: Request) -> Response:
        store = self._store(request)
        return http_util.Respond(request, {"runs": store.runs(), "unreadable": store.unreadable}, "application/json")

    def _flow(self, request: Request) -> Response:
        stat = request.args.get("stat", LAYER_STATS[0])
        try:
            flow = self._store(request).flow(*_run_and_optimizer(request))
            body = encode_frame(flow, stat)
        except (ValueError, KeyError) as error:
            return _refusal(request, error)
        return http_util.Respond(request, gzip.compress(body, 1), "application/octet-stream", content_encoding="gzip")

    def _events(self, request: Request) -> Response:
        try:
            events = self._store(request).events(*_run_and_optimizer(request))
        except (ValueError, KeyError) as error:
            return _refusal(request, error)
        return http_util.Respond(request, events, "application/json")

    def _whatif(self, request: Request) -> Response:
        try:
            series = self._store(request).norms(*_run_and_optimizer(request))
        except (ValueError, KeyError) as error:
            return _refusal(request, error)
        try:
            answer = curve_of(series, request.args.get("clip", ""))
        except ValueError as error:  # a policy that cannot be tried is an answer: the curve is shown without it
            answer = curve_of(series) | {"problem": str(error)}
        return http_util.Respond(request, answer, "application/json")

    def _static_answer(self, name: str) -> Answer:
        return lambda request: http_util.Respond(request, self._static[name], CONTENT_TYPES[Path(name).suffix])


def _app(answer: Answer) -> App:
    """Returns the answer to a request as a WSGI application."""
    application: Any = wrappers.Request.application(answer)
    return application


def _run_and_optimizer(request: Request) -> tuple[str, int]:
    optimizer = request.args.get("optimizer", "0")
    if "run" not in request.args or not optimizer.isdecimal():
        raise ValueError(f"expected ?run=NAME&optimizer=NUMBER, got {request.query_string.decode()!r}")
    return request.args["run"], int(optimizer)


def _refusal(request: Request, error: ValueError | KeyError) -> Response:
    code = 404 if isinstance(error, KeyError) else 400
    return http_util.Respond(request, {"error": str(error.args[0])}, "application/json", code=code)
