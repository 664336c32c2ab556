"""A language model behind HTTP on this machine that answers from a script, for tests with litellm.

    with Loopback(["first answer", failure(500), "second answer"]) as server:
        ...  # llm=openai llm.model=openai/any llm.api_base=<server.url>

A script is a list with an answer per call in the order of arrival, or a function of the `Call`, which several threads may
call at once. An answer is an `Answer`, or a text for an ordinary one. The interfaces of OpenAI and of Ollama are supported.
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
    """A received request.

    Attributes:
        number: number of the request, from 0.
        path: path of the address.
        body: parsed JSON.
        headers: headers by lower-case name.
        time_s: time of arrival by time.monotonic(), in seconds.
    """

    number: int
    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]
    time_s: float

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
        """The API key of the request; '' if it has none."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass(frozen=True)
class Answer:
    """How the server answers a call.

    Attributes:
        text: text of the model; None sends a null in its place.
        finish: why the model stopped; 'length' if it reached its limit.
        tokens_in: reported tokens of the prompt.
        tokens_out: reported tokens of the answer.
        status: HTTP status.
        headers: additional headers.
        raw: body to send in place of a completion.
        declared: announced length of the body; None for the true one.
        before: called before anything is sent, e.g. to wait at a barrier.
        wait_s: seconds before anything is sent.
        drip_s: seconds between two bytes.
        drop: whether to close the connection without an answer.
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


def failure(status: int, message: str = "the server refuses", **headers: str) -> Answer:
    """Make an error in the format of OpenAI; `Retry_After='1'` sets the header Retry-After."""
    body = {"error": {"message": message, "type": "error", "code": str(status)}}
    http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status=status, raw=json.dumps(body).encode(), headers=http_headers)


def cut(text: str = "half a") -> Answer:
    """Make an answer that reached max_tokens."""
    return Answer(text, finish="length")


def slow(text: str, seconds: float) -> Answer:
    """Make an answer that is sent after a wait."""
    return Answer(text, wait_s=seconds)


def drip(text: str, seconds: float) -> Answer:
    """Make an answer that is sent byte by byte, with `seconds` between two bytes."""
    return Answer(text, drip_s=seconds)


NULL = Answer(None)
DROP = Answer(drop=True)
HTML = Answer(raw=b"<!DOCTYPE html><html><body>Bad gateway</body></html>", headers={"Content-Type": "text/html"})
EMPTY_JSON = Answer(raw=b"{}")
NO_CHOICE = Answer(raw=b'{"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}')
TRUNCATED = Answer(raw=b'{"id": "x", "object": "chat.completion", "choices": [{"index": 0, "mess')
SHORTER_THAN_DECLARED = Answer(raw=b'{"id": "x", "object"', declared=500)


class Loopback:
    """A server that listens on a free port of 127.0.0.1 inside its `with` block.

    Args:
        script: the answers.
        model: name of the model in the answers.

    Attributes:
        url: api_base of an OpenAI-compatible provider.
        root: the same without '/v1', as Ollama requires it.
        calls: every request so far, in the order of arrival.
        most_in_flight: largest number of requests that were open at the same time.
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

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request as the script says."""
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
            answer = self._script(call)
        elif call.number < len(self._script):
            answer = self._script[call.number]
        else:  # a status that clients do not retry
            answer = failure(400, f"the script has {len(self._script)} answers, and this is call {call.number + 1}")
        return Answer(answer) if isinstance(answer, str) else answer

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
            completion = {
                "model": self.model,
                "created_at": "2026-01-01T00:00:00Z",
                "message": message,
                "done": True,
                "prompt_eval_count": answer.tokens_in,
                "eval_count": answer.tokens_out,
                "done_reason": answer.finish,
            }
            return json.dumps(completion).encode()
        usage = {"prompt_tokens": answer.tokens_in, "completion_tokens": answer.tokens_out}
        usage["total_tokens"] = answer.tokens_in + answer.tokens_out
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        completion = {"id": f"call-{call.number}", "object": "chat.completion", "created": 1, "model": self.model}
        return json.dumps(completion | {"choices": [choice], "usage": usage}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect early."""


def _handler(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open, as providers do

        def do_POST(self) -> None:
            loopback.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler
