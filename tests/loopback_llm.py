"""A language model behind HTTP on this machine: what litellm talks to in tests, answering from a script.

    with Loopback(["first answer", failure(500), "second answer"]) as server:
        ...  # llm=openai llm.model=openai/any llm.api_base=<server.url>

A script is a list, one entry per call in the order of arrival, or a function of the `Call`, which several threads
call at once. An entry is an `Answer`, or a text for an ordinary one. OpenAI's form of requests is understood, and Ollama's.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Call:
    """A request as it arrived. `number`: from 0. `headers`: by lower-case name. `at`: time.monotonic(), in seconds."""

    number: int
    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]
    at: float

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        return list(self.body.get("messages", []))

    @property
    def prompt(self) -> str:
        """The last message."""
        return self.messages[-1]["content"]

    @property
    def key(self) -> str:
        """The key that came with it; '' where none did."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass(frozen=True)
class Answer:
    """What the server does with a call.

    Attributes:
        text: the model's words; None for a null in their place.
        finish: why the model stopped, 'length' where it ran into its limit.
        raw: the body to send in place of a completion.
        declared: the length that is announced, where it is not that of the body.
        before: called before anything is sent, e.g. the wait of a barrier.
        wait_s: seconds before anything is sent; drip_s: seconds between two bytes.
        drop: close the connection without an answer.
    """

    text: str | None = ""
    finish: str = "stop"
    tokens_in: int = 100
    tokens_out: int = 50
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    declared: int | None = None
    before: Callable[[], object] | None = None
    wait_s: float = 0.0
    drip_s: float = 0.0
    drop: bool = False


Script = Callable[[Call], Answer | str] | Sequence[Answer | str]


def failure(status: int, message: str = "the server says no", **headers: str) -> Answer:
    """An error in OpenAI's form; `Retry_After='1'` gives the header Retry-After."""
    body = {"error": {"message": message, "type": "error", "code": str(status)}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, raw=json.dumps(body).encode(), headers=named)


def cut(text: str = "half a") -> Answer:
    """An answer that ran into max_tokens."""
    return Answer(text, finish="length")


def slow(text: str, seconds: float) -> Answer:
    """An answer that is long in coming."""
    return Answer(text, wait_s=seconds)


def drip(text: str, seconds: float) -> Answer:
    """An answer of which a byte comes every so many seconds."""
    return Answer(text, drip_s=seconds)


NULL = Answer(None)
DROP = Answer(drop=True)
HTML = Answer(raw=b"<!DOCTYPE html><html><body>Bad gateway</body></html>", headers={"Content-Type": "text/html"})
EMPTY_JSON = Answer(raw=b"{}")
NO_CHOICE = Answer(raw=b'{"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}')
TRUNCATED = Answer(raw=b'{"id": "x", "object": "chat.completion", "choices": [{"index": 0, "mess')
SHORTER_THAN_DECLARED = Answer(raw=b'{"id": "x", "object"', declared=500)


class Loopback:
    """The server; it listens on a free port of 127.0.0.1 while the `with` block runs.

    Attributes:
        url: the api_base of an OpenAI-compatible provider; root: the same without '/v1', as Ollama wants it.
        calls: every request so far, in the order of arrival.
        most_in_flight: the largest number of requests that were open at a time.
    """

    def __init__(self, script: Script, model: str = "loopback-1") -> None:
        self.model = model
        self.calls: list[Call] = []
        self.most_in_flight = 0
        self._script = script
        self._in_flight = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> "Loopback":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Does with a request what the script says."""
        body = json.loads(request.rfile.read(int(request.headers.get("Content-Length", 0))) or b"{}")
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            call = Call(len(self.calls), request.path, body, headers, time.monotonic())
            self.calls.append(call)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            self._send(request, call, self._scripted(call))
        finally:
            with self._lock:
                self._in_flight -= 1

    def _scripted(self, call: Call) -> Answer:
        if callable(self._script):
            given = self._script(call)
        elif call.number < len(self._script):
            given = self._script[call.number]
        else:  # a status that nobody tries again
            given = failure(400, f"the script has {len(self._script)} answers, and this is call {call.number + 1}")
        return Answer(given) if isinstance(given, str) else given

    def _send(self, request: BaseHTTPRequestHandler, call: Call, answer: Answer) -> None:
        if answer.before is not None:
            answer.before()
        self._stopping.wait(answer.wait_s)
        request.close_connection = answer.drop or answer.declared is not None or self._stopping.is_set()
        if answer.drop or self._stopping.is_set():
            return
        body = self._completion(call, answer) if answer.raw is None else answer.raw
        headers = {"Content-Type": "application/json", **answer.headers}
        headers["Content-Length"] = str(len(body) if answer.declared is None else answer.declared)
        request.send_response(answer.status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        pieces = [body[i : i + 1] for i in range(len(body))] if answer.drip_s else [body]
        for piece in pieces:
            request.wfile.write(piece)
            request.wfile.flush()
            if self._stopping.wait(answer.drip_s):
                request.close_connection = True
                return

    def _completion(self, call: Call, answer: Answer) -> bytes:
        message = {"role": "assistant", "content": answer.text}
        if call.path.startswith("/api/"):
            counts = {
                "prompt_eval_count": answer.tokens_in,
                "eval_count": answer.tokens_out,
                "done_reason": answer.finish,
            }
            made = {
                "model": self.model,
                "created_at": "2026-01-01T00:00:00Z",
                "message": message,
                "done": True,
                **counts,
            }
            return json.dumps(made).encode()
        usage = {"prompt_tokens": answer.tokens_in, "completion_tokens": answer.tokens_out}
        usage["total_tokens"] = answer.tokens_in + answer.tokens_out
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        made = {"id": f"call-{call.number}", "object": "chat.completion", "created": 1, "model": self.model}
        return json.dumps(made | {"choices": [choice], "usage": usage}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left early is no news."""


def _handler(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as providers keep them

        def do_POST(self) -> None:
            loopback.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Tests are quiet."""

    return Handler
