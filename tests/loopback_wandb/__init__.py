"""A stand-in for the Weights & Biases server, which the unmodified client talks to in tests.

    with LoopbackWandb() as server:
        ...  # WANDB_BASE_URL=<server.url> WANDB_API_KEY=<server.key>
        server.runs["lbf_..."].history

It knows the GraphQL operations that the client's service and its `Api()` send when a run is tracked, resumed, listed, read and
given artifacts, and when a workspace is saved. It rejects any other operation by name. History arrives as at the real server:
lines from an offset on, which replace the lines there.
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
from loopback_wandb.reading import Reading
from loopback_wandb.state import ENTITY, Artifact, Run, View
from loopback_wandb.tracking import Tracking

__all__ = ["ENTITY", "Artifact", "LoopbackWandb", "Run", "View"]

_HISTORY, _SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


class LoopbackWandb(Tracking, Artifacts, Reading):
    """The server; it listens on a free port of 127.0.0.1 while the `with` block runs.

    Attributes:
        url: value of WANDB_BASE_URL.
        key: value of WANDB_API_KEY; any other key is rejected.
        runs: by display name.
        artifacts: in the order of arrival.
        views: in the order of arrival.
        requests: how often each operation was requested.
        received: everything that any client sent, as one text per request, without the header that carries the key.
        refused: requests for operations that this server does not know.
        lost: whether every connection is closed without an answer.
        wait_s: seconds before every answer.
        lost_after: for an operation, the number of requests after which `lost` is set.
        unanswered: operations that are executed but never answered.
    """

    key = "k" * 40

    def __init__(self) -> None:
        super().__init__()
        self.received: list[str] = []
        self.refused: list[str] = []
        self.lost, self.wait_s = False, 0.0
        self.unanswered: set[str] = set()
        self.lost_after: dict[str, int] = {}
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LoopbackWandb":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Receive a request and answer it."""
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
        if self.lost or any(f"mutation {name} " in body.decode(errors="replace") for name in self.unanswered):
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
        credentials = request.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(credentials) != f"api:{self.key}".encode():
            return 401, b'{"errors": [{"message": "invalid API key"}]}'
        if path.endswith("/file_stream"):
            self._stream(self._by_id[path.split("/")[-2]], json.loads(body))
            return 200, b'{"limits": {}}'
        if path.startswith("/artifacts"):
            return 200, self._content(path)
        operation = json.loads(body)
        match = re.search(r"(?:query|mutation)\s+(\w+)", operation["query"])
        name = match[1] if match else ""
        self.requests[name] += 1
        self.lost = self.lost or self.requests[name] > self.lost_after.get(name, self.requests[name])
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        handler: Callable[[dict[str, Any]], Any] | None = getattr(self, f"_on_{method}", None)
        if path != "/graphql" or handler is None:
            self.refused.append(f"{name} {json.dumps(operation)}")
            return 400, json.dumps({"errors": [{"message": f"this server does not know {name}"}]}).encode()
        return 200, json.dumps({"data": handler(operation.get("variables") or {})}).encode()

    def _stream(self, run: Run, update: dict[str, Any]) -> None:
        """Store what a client streams: lines from an offset on, the summary, and the end of the run."""
        files = update.get("files") or {}
        if _HISTORY in files:
            offset, lines = files[_HISTORY]["offset"], files[_HISTORY]["content"]
            assert offset <= len(run.lines), "a gap in the history"
            run.lines[offset : offset + len(lines)] = lines
        if _SUMMARY in files:
            run.summary = json.loads(files[_SUMMARY]["content"][-1])
        if update.get("preempting"):
            run.state = "preempting"
        if update.get("complete"):
            run.exit_code = update["exitcode"]
            if run.state == "preempting":
                run.state = "preempted"
            else:
                run.state = "failed" if run.exit_code else "finished"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection early."""


def _handler(loopback: LoopbackWandb) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, as the service does
        wbufsize = -1  # an answer is sent in one piece

        def do_POST(self) -> None:
            loopback.answer(self)

        def do_GET(self) -> None:
            loopback.answer(self)

        def do_PUT(self) -> None:
            loopback.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler
