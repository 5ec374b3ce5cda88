"""The stage of the tests: an HTTP app, a gRPC app and a tester, each with a sidecar of its own."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sidecar import BACKEND, RESOURCES, Place, free_ports, tail, until  # noqa: E402

# The SDK reads where its sidecar is when it is imported, so the tester's ports must be known before.
TESTER_PORTS = free_ports(4)
os.environ.update(
    DAPR_HTTP_PORT=str(TESTER_PORTS[0]),
    DAPR_GRPC_PORT=str(TESTER_PORTS[1]),
    DAPR_HTTP_ENDPOINT=f"http://127.0.0.1:{TESTER_PORTS[0]}",
    DAPR_GRPC_ENDPOINT=f"http://127.0.0.1:{TESTER_PORTS[1]}",
)

from dapr.clients import DaprClient  # noqa: E402
from dapr.conf import settings  # noqa: E402


SCENARIOS = json.loads((RESOURCES.parent / "scenarios.json").read_text())


def pytest_collection_modifyitems(config, items):
    """Leaves out what is not for the backend under test."""
    others = SCENARIOS["servers"] if BACKEND == "embedded" else SCENARIOS["embedded"]
    left_out = [item for item in items if item.originalname.removeprefix("test_") in others]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


class Stage:
    """What the tests play on."""

    def __init__(self, place: Place):
        self.place = place
        ports = free_ports(2)
        http = place.sidecar("http-app", "--app-port", str(ports[0]))
        grpc = place.sidecar("grpc-app", "--app-port", str(ports[1]), "--app-protocol", "grpc")
        tester = place.sidecar("tester", ports=TESTER_PORTS)
        place.app("http_app.py", ports[0], http)
        place.app("grpc_app.py", ports[1], grpc)
        for sidecar in (http, grpc, tester):
            sidecar.wait_until_ready()
        self.tester = tester
        settings.DAPR_API_METHOD_INVOCATION_PROTOCOL = "http"
        self.http_invoker = DaprClient()
        settings.DAPR_API_METHOD_INVOCATION_PROTOCOL = "grpc"
        self.dapr = DaprClient()

    def inbox(self, app_id: str) -> dict:
        """What an app has received so far: {"events": {topic: [event]}, "ticks": number}."""
        return json.loads(self.dapr.invoke_method(app_id, "inbox", b"{}", http_verb="POST").data)

    def received(self, app_id: str, box: str, id: str, times: int = 1) -> dict:
        """Waits until an app has received an event of this id that often; returns the last of them."""

        def look():
            events = [e for e in self.inbox(app_id)["events"].get(box, []) if e["id"] == id]
            return events[-1] if len(events) >= times else None

        return until(f"{app_id} has {box} {id}", look)

    def close(self) -> None:
        self.dapr.close()
        self.http_invoker.close()


@pytest.fixture(scope="session")
def place():
    with tempfile.TemporaryDirectory(prefix="mecha-sdk-") as folder:
        place = Place(Path(folder))
        try:
            yield place
        finally:
            place.close()


@pytest.fixture(scope="session")
def stage(place):
    stage = Stage(place)
    yield stage
    stage.close()


@pytest.fixture
def dapr(stage):
    return stage.dapr


@pytest.fixture(scope="session")
def backend():
    """What backend.json says of the backend under test."""
    return json.loads((RESOURCES / BACKEND / "backend.json").read_text())


@pytest.fixture
def server(dapr, backend):
    return Server(dapr, backend)


class Server:
    """Writes and reads configuration through the binding of its server."""

    def __init__(self, dapr: DaprClient, backend: dict):
        self.dapr = dapr
        self.backend = backend

    def write(self, key: str, value: str, version: str) -> None:
        self.invoke("write", key, value, version)

    def invoke(self, what: str, key: str, value: str, version: str) -> tuple[bytes, bytes]:
        """The answer, and what it has to be."""

        def fill(text: str) -> str:
            return text.replace("{key}", key).replace("{value}", value).replace("{version}", version)

        call = self.backend[what]
        metadata = {name: fill(text) for name, text in call["metadata"].items()}
        answer = self.dapr.invoke_binding("settings", call["operation"], fill(call.get("data", "")), metadata)
        return answer.data, fill(call.get("answer", "")).encode()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what the sidecars said."""
    report = yield
    stage = item.funcargs.get("stage")
    if report.failed and stage:
        for child in stage.place.children:
            report.sections.append((child.name, tail(child.log)))
    return report
