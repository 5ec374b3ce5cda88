#!/usr/bin/env python3
"""Runs a command that tests an SDK, and starts the sidecars it asks for.

  stage.py COMMAND...

The command finds the address of a small HTTP server in MECHA_SDK_STAGE:

  POST /sidecars      {"appId", "flags": [...], "env": {...}, "wait": bool} starts a mechad on the documents of the
                      tests; with wait the answer comes when it is ready. Answer: {"appId", "http", "grpc"}
  POST /ready         {"appId"} waits until it is ready
  POST /ended         {"appId"} waits until it has ended; answer: {"status"}, negative for a signal
  POST /kill          {"appId"} kills it with SIGKILL and waits for its end; one of the same name may be started after

What goes wrong is answered with status 500 and says why, with the end of the log. When the command ends, so does
everything that was started. The status is the command's.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "python"))
sys.dont_write_bytecode = True
from sidecar import BACKEND, Place, Sidecar, tail  # noqa: E402


class Stage:
    """The sidecars, by app id."""

    def __init__(self, place: Place):
        self.place = place
        self.sidecars: dict[str, Sidecar] = {}
        self.lock = threading.Lock()

    def start(self, request: dict) -> dict:
        with self.lock:
            sidecar = self.place.sidecar(request["appId"], *request.get("flags", []), **request.get("env", {}))
            self.sidecars[sidecar.app_id] = sidecar
        if request.get("wait"):
            sidecar.wait_until_ready()
        return {"appId": sidecar.app_id, "http": sidecar.http, "grpc": sidecar.grpc}

    def ready(self, request: dict) -> dict:
        self.sidecars[request["appId"]].wait_until_ready()
        return {}

    def ended(self, request: dict) -> dict:
        sidecar = self.sidecars[request["appId"]]
        try:
            return {"status": sidecar.wait()}
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{error}{tail(sidecar.log)}") from None

    def kill(self, request: dict) -> dict:
        self.sidecars[request["appId"]].process.send_signal(signal.SIGKILL)
        return self.ended(request)


def server(stage: Stage) -> ThreadingHTTPServer:
    actions = {"/sidecars": stage.start, "/ready": stage.ready, "/ended": stage.ended, "/kill": stage.kill}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = 200, actions[self.path](request)
            except Exception as error:  # told to the test, which fails with it
                status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            # The server closes after each answer. Java's client takes the connection up again if it is not told.
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main(command: list[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mecha-sdk-") as folder:
        place = Place(Path(folder))
        with server(Stage(place)) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{http.server_port}"
            env = {**place.env, "MECHA_SDK_STAGE": address, "MECHA_SDK_BACKEND": BACKEND}
            try:
                status = subprocess.run(command, env=env).returncode
                if status:
                    for child in place.children:
                        print(tail(child.log), file=sys.stderr)
                return abs(status)
            finally:
                place.close()
                http.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
