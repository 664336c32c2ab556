"""A Weights & Biases server on this machine: what the unmodified client talks to in tests.

    with LoopbackWandb() as server:
        ...  # WANDB_BASE_URL=<server.url> WANDB_API_KEY=<server.key>
        server.runs["lbf_..."].history

It knows the GraphQL operations that the client's core and its `Api()` send when a run is tracked, resumed, listed, read back
and given artifacts, and when a workspace is saved; any other one is refused by name. History arrives as the service takes it:
lines from an offset on, in place of what was there.
"""

import base64
import gzip
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from loopback_wandb.artifacts import Artifacts
from loopback_wandb.kept import ENTITY, Artifact, Run, View
from loopback_wandb.reading import Reading
from loopback_wandb.tracking import Tracking

__all__ = ["ENTITY", "Artifact", "LoopbackWandb", "Run", "View"]

_HISTORY, _SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


class LoopbackWandb(Tracking, Artifacts, Reading):
    """The server; it listens on a free port of 127.0.0.1 while the `with` block runs.

    Attributes:
        url: WANDB_BASE_URL. key: WANDB_API_KEY; another one is refused.
        runs: by the name that is shown. artifacts, views: in the order of arrival.
        asked: how often each operation was asked for.
        received: everything that any client sent, as one text per request, without the header that carries the key.
        lost: set it to have every connection closed without an answer. wait_s: seconds before every answer.
        lost_after: operations after so many of which the server is lost.
        swallowed: operations that are done, and never answered.
    """

    key = "k" * 40

    def __init__(self) -> None:
        super().__init__()
        self.received: list[str] = []
        self.refused: list[str] = []  # operations that this server does not know
        self.lost, self.wait_s = False, 0.0
        self.swallowed: set[str] = set()
        self.lost_after: dict[str, int] = {}
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LoopbackWandb":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Take a request in, and answer it."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.lost:
            self._stopping.wait(self.wait_s)
        if self.lost or self._stopping.is_set():
            request.close_connection = True
            return
        headers = {k: v for k, v in request.headers.items() if k.lower() != "authorization"}
        with self._lock:
            self.received.append(f"{request.command} {request.path}\n{headers}\n{body.decode(errors='replace')}")
            status, answer = self._answer(request, body)
        if self.lost or any(f"mutation {name} " in body.decode(errors="replace") for name in self.swallowed):
            request.close_connection = True
            return
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)
        request.wfile.flush()

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        path = unquote(request.path)
        if path.startswith("/upload/") and request.command == "PUT":
            self._uploads[path] = body
            return 200, b"{}"
        if path.startswith("/upload/"):
            return (200, self._uploads[path]) if path in self._uploads else (404, b"{}")
        given = request.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(given) != f"api:{self.key}".encode():
            return 401, b'{"errors": [{"message": "invalid API key"}]}'
        if path.endswith("/file_stream"):
            self._stream(self._by_id[path.split("/")[-2]], json.loads(body))
            return 200, b'{"limits": {}}'
        if path.startswith("/artifacts"):
            return 200, self._content(path)
        asked = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else ""
        self.asked[name] += 1
        self.lost = self.lost or self.asked[name] > self.lost_after.get(name, self.asked[name])
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        known: Callable[[dict[str, Any]], Any] | None = getattr(self, f"_on_{method}", None)
        if path != "/graphql" or known is None:
            self.refused.append(f"{name} {json.dumps(asked)}")
            return 400, json.dumps({"errors": [{"message": f"this server does not know {name}"}]}).encode()
        return 200, json.dumps({"data": known(asked.get("variables") or {})}).encode()

    def _stream(self, run: Run, sent: dict[str, Any]) -> None:
        """Lines from an offset on take the place of what was there."""
        files = sent.get("files") or {}
        if _HISTORY in files:
            at, lines = files[_HISTORY]["offset"], files[_HISTORY]["content"]
            assert at <= len(run.lines), "a gap in the history"
            run.lines[at : at + len(lines)] = lines
        if _SUMMARY in files:
            run.summary = json.loads(files[_SUMMARY]["content"][-1])
        if sent.get("preempting"):
            run.state = "preempting"
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
            run.state = "preempted" if run.state == "preempting" else "failed" if run.exit_code else "finished"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left early is no news."""


def _handler(loopback: LoopbackWandb) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as the service keeps them
        wbufsize = -1  # an answer leaves in one piece

        def do_POST(self) -> None:
            loopback.answer(self)

        def do_GET(self) -> None:
            loopback.answer(self)

        def do_PUT(self) -> None:
            loopback.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Tests are quiet."""

    return Handler
