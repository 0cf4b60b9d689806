import gzip
import json
import struct

import numpy as np
import pytest
from tensorboard.backend import experiment_id
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.util.tensor_util import make_tensor_proto
from werkzeug.test import Client

from lightning_gradguard.tensorboard.assets import STATIC
from lightning_gradguard.tensorboard.plugin import GradientFlowPlugin
from tests.tensorboard.synthetic import steady_run, write_foreign, write_run


@pytest.fixture(scope="module")
def plugin(provider):
    return GradientFlowPlugin(TBContext(data_provider=provider, logdir=""))


@pytest.fixture(scope="module")
def get(plugin):
    apps = plugin.get_plugin_apps()

    def fetch(address, **headers):
        route = address.partition("?")[0]
        environ = {experiment_id.WSGI_ENVIRON_KEY: ""}
        return Client(apps[route]).get(address, environ_overrides=environ, headers=headers)

    return fetch


def test_runs_are_listed_as_json(get):
    response = get("/runs")
    assert response.status_code == 200
    assert {run["name"] for run in response.get_json()["runs"]} == {"busy", "gan", "steady", "vanishing"}


@pytest.mark.parametrize("stat", ["norm", "ratio", "update", "coefficient"])
def test_a_flow_is_packed_and_gzipped(get, stat):
    response = get(f"/flow?run=busy&optimizer=0&stat={stat}", **{"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    body = gzip.decompress(response.data)
    (length,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + length])
    assert (header["stat"], len(header["layers"]), header["columns"]) == (stat, 26, 300)


def test_a_client_that_cannot_unpack_gets_it_unpacked(get):
    response = get("/flow?run=busy")
    assert "Content-Encoding" not in response.headers
    assert struct.unpack_from("<I", response.data)[0] < len(response.data)


def test_events_come_with_their_findings(get):
    answer = get("/events?run=vanishing&optimizer=0").get_json()
    assert [finding["rule"] for finding in answer["findings"]] == ["vanishing-over-depth"]


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/flow", 400, "expected ?run=NAME&optimizer=NUMBER"),
        ("/flow?run=busy&optimizer=first", 400, "expected ?run=NAME&optimizer=NUMBER"),
        ("/flow?run=busy&stat=mean", 400, "stat must be one of"),
        ("/flow?run=nowhere", 404, "no gradient flow of optimizer 0 in run 'nowhere'"),
        ("/events", 400, "expected ?run=NAME"),
    ],
    ids=["nothing", "optimizer", "stat", "run", "events"],
)
def test_a_wrong_request_is_told_what_is_wrong(get, address, status, words):
    response = get(address)
    assert response.status_code == status
    assert words in response.get_json()["error"]


def test_every_module_is_served_with_its_type_and_nothing_else_is(plugin, get):
    routes = {route for route in plugin.get_plugin_apps() if route.startswith("/static/")}
    assert routes == {f"/static/{path.name}" for path in STATIC.iterdir() if path.suffix in (".js", ".css")}
    for route in routes:
        response = get(route)
        kind = "text/css" if route.endswith(".css") else "text/javascript"
        assert response.headers["Content-Type"].startswith(kind)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.data == (STATIC / route.rpartition("/")[2]).read_bytes()


def test_the_page_begins_where_the_metadata_say(plugin):
    metadata = plugin.frontend_metadata()
    assert metadata.tab_name == "Gradient flow"
    assert metadata.es_module_path in plugin.get_plugin_apps()


def test_no_module_asks_another_host_or_writes_markup():
    for path in STATIC.glob("*.js"):
        source = path.read_text()
        for forbidden in (
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "document.write",
        ):
            assert forbidden not in source, f"{path.name} has {forbidden}"


def test_modules_import_only_modules_that_exist():
    names = {path.name for path in STATIC.iterdir()}
    for path in STATIC.glob("*.js"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "} from ")) and " from " in line:
                assert line.split('"')[1].removeprefix("./") in names, f"{path.name}: {line}"


FLOW = {"kind": "flow", "optimizer": 0, "layers": ["a", "b"], "layer_stats": ["norm"], "step_stats": ["total_norm"]}
EVENTS = {"kind": "events", "optimizer": 0}
MATRIX = make_tensor_proto(np.ones((3, 1), np.float32))
FOREIGN = {
    "no json": [("flow", b"not json", MATRIX)],
    "no text": [("flow", b"\xff\xfe", MATRIX)],
    "deeply nested": [("flow", b"[" * 100_000, MATRIX)],
    "another shape": [("flow", FLOW, make_tensor_proto(np.zeros((9, 9), np.float32)))],
    "words for numbers": [("flow", FLOW, make_tensor_proto([["x"], ["y"], ["z"]]))],
    "no statistics": [("flow", {**FLOW, "layer_stats": []}, MATRIX)],
    "lists for names": [("flow", {**FLOW, "layers": [["a"], ["b"]]}, MATRIX)],
    "no tensor": [("flow", FLOW, TensorProto(dtype=1, tensor_content=b"\0\0\0"))],
    "events of another kind": [("flow", FLOW, MATRIX), ("events", EVENTS, make_tensor_proto([b"[1, 2]"]))],
    "events that are no json": [("flow", FLOW, MATRIX), ("events", EVENTS, make_tensor_proto([b"{"]))],
    "findings without a rule": [
        ("flow", FLOW, MATRIX),
        ("events", EVENTS, make_tensor_proto([b'{"counts": {}, "events": [], "findings": [{}]}'])),
    ],
}


@pytest.fixture(scope="module")
def fetch_among_foreign(tmp_path_factory):
    """Asks a board on which one run is ours and all others hold something else under our name."""
    folder = tmp_path_factory.mktemp("foreign")
    write_run(folder / "good", steady_run(num_records=5))
    for name, values in FOREIGN.items():
        write_foreign(folder / name, values)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    apps = GradientFlowPlugin(TBContext(data_provider=provider, logdir="")).get_plugin_apps()
    environ = {experiment_id.WSGI_ENVIRON_KEY: ""}
    return lambda address: Client(apps[address.partition("?")[0]]).get(address, environ_overrides=environ)


def test_runs_with_what_is_not_ours_are_named_and_the_others_are_served(fetch_among_foreign):
    answer = fetch_among_foreign("/runs").get_json()
    assert [run["name"] for run in answer["runs"]] == ["good"]
    assert set(answer["unreadable"]) == set(FOREIGN)
    assert all("not ours" in reason for reason in answer["unreadable"].values())
    assert fetch_among_foreign("/flow?run=good").status_code == 200


@pytest.mark.parametrize("name", FOREIGN)
def test_a_run_with_what_is_not_ours_is_refused_in_words(fetch_among_foreign, name):
    answers = [fetch_among_foreign(f"/{route}?run={name}") for route in ("flow", "events")]
    assert any(answer.status_code == 400 for answer in answers)
    assert all(answer.status_code == 200 or name in answer.get_json()["error"] for answer in answers)
