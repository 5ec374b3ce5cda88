"""Starts real sidecars and apps in a folder of their own, and ends them all."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Callable, Optional, TypeVar

HERE = Path(__file__).resolve().parent
RESOURCES = HERE.parent / "resources"
# What stands behind the components: a folder of RESOURCES.
BACKEND = os.environ.get("MECHA_SDK_BACKEND", "embedded")
# Generous: reached only when something is broken.
DEADLINE_SECONDS = 60.0
# How long something that asked to stop may take.
GRACE_SECONDS = 15.0

T = TypeVar("T")


def until(what: str, ask: Callable[[], Optional[T]]) -> T:
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_SECONDS:.0f} s; the last answer was {answer!r}"
        time.sleep(0.02)


# From a range that is nobody else's: the system gives away others again as soon as they are free.
next_port = int(os.environ.get("MECHA_SDK_PORTS", 0))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    global next_port
    sockets = []
    while len(sockets) < count:
        try:
            sockets.append(socket.create_server(("127.0.0.1", next_port)))
        except OSError:
            assert next_port, "there are no free ports"
        next_port += next_port > 0
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-30:] if path.exists() else []
    return f"\n--- the end of {path} ---\n" + "\n".join(lines)


class Place:
    """A folder with the documents of the tests, in which sidecars run that know each other."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "files").mkdir()
        shutil.copy(RESOURCES / "secrets.json", folder)
        self.children: list[Child] = []
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("DAPR_", "OTEL_", "MECHA"))}
        self.env["PYTHONDONTWRITEBYTECODE"] = "1"

    def sidecar(self, app_id: str, *flags: str, ports: Optional[list[int]] = None, **env: str) -> "Sidecar":
        sidecar = Sidecar(self, app_id, list(flags), ports or free_ports(4), env)
        self.children.append(sidecar)
        return sidecar

    def app(self, script: str, port: int, sidecar: "Sidecar") -> "Child":
        env = {**self.env, **sidecar.app_env(), "APP_PORT": str(port)}
        child = Child(self, f"{sidecar.app_id}.app", [sys.executable, str(HERE / "apps" / script)], env)
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in reversed(self.children):
            child.close()


class Child:
    """A process whose output goes to a log file."""

    def __init__(self, place: Place, name: str, command: list[str], env: dict[str, str]):
        self.name = name
        self.log = place.folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=place.folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def assert_alive(self) -> None:
        status = self.process.poll()
        assert status is None, f"{self.name} ended with status {status}{tail(self.log)}"

    def wait(self) -> int:
        """Waits for its end; returns its status."""
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Sidecar(Child):
    """A mechad, started as `mecha run` starts it."""

    def __init__(self, place: Place, app_id: str, flags: list[str], ports: list[int], more_env: dict[str, str]):
        self.app_id = app_id
        self.http, self.grpc, internal, metrics = ports
        env = {
            **place.env,
            **more_env,
            "MECHA_HOME": str(place.folder / "home"),
            "MECHA_NAME_REGISTRY": str(place.folder / "names.db"),
            "DAPR_HOST_IP": "127.0.0.1",
        }
        command = [os.environ["MECHAD"], "--mecha-strict", "--app-id", app_id, "--resources-path"]
        command += [f"{RESOURCES / 'common'},{RESOURCES / BACKEND}"]
        for flag, port in [
            ("--dapr-http-port", self.http),
            ("--dapr-grpc-port", self.grpc),
            ("--dapr-internal-grpc-port", internal),
            ("--metrics-port", metrics),
        ]:
            command += [flag, str(port)]
        super().__init__(place, app_id, command + flags, env)

    def app_env(self) -> dict[str, str]:
        """What tells an app where its sidecar is."""
        return {
            "APP_ID": self.app_id,
            "DAPR_HTTP_PORT": str(self.http),
            "DAPR_GRPC_PORT": str(self.grpc),
            "DAPR_HTTP_ENDPOINT": f"http://127.0.0.1:{self.http}",
            "DAPR_GRPC_ENDPOINT": f"http://127.0.0.1:{self.grpc}",
        }

    def wait_until_ready(self) -> "Sidecar":
        def is_ready() -> bool:
            self.assert_alive()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v1.0/healthz", timeout=5) as answer:
                    return answer.status == 204
            except (urllib.error.URLError, OSError):
                return False

        try:
            until(f"{self.name} is ready", is_ready)
        except AssertionError as error:
            raise AssertionError(f"{error}{tail(self.log)}") from None
        return self
