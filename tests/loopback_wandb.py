"""A Weights & Biases server on this machine: what the unmodified client talks to in tests.

    with LoopbackWandb() as server:
        ...  # WANDB_BASE_URL=<server.url> WANDB_API_KEY=<server.key>
        server.runs["lbf_..."].history

It knows the GraphQL operations that the client's core and its `Api()` send when a run is tracked, resumed, read back and given
artifacts; any other one is refused by name. History arrives as the service takes it: lines from an offset on, in place of what
was there.
"""

import base64
import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

ENTITY = "team"
_HISTORY, _SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class Run:
    """A run as the server has it. `begun`: how often a client began it, or went on with it."""

    id: str
    project: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # of the history
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    begun: int = 0

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows as logged, without the client's own figures but for `_step`."""
        rows = [json.loads(line) for line in self.lines]
        return [{k: v for k, v in row.items() if k == "_step" or not k.startswith("_")} for row in rows]

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}


@dataclass
class Artifact:
    """A version of an artifact. `files`: name to content."""

    id: str
    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)  # that logged it
    state: str = "PENDING"


class LoopbackWandb:
    """The server; it listens on a free port of 127.0.0.1 while the `with` block runs.

    Attributes:
        url: WANDB_BASE_URL. key: WANDB_API_KEY; another one is refused.
        runs: by the name that is shown. artifacts: in the order of arrival.
        received: everything that any client sent, as one text per request, without the header that carries the key.
        lost: set it to have every connection closed without an answer. wait_s: seconds before every answer.
        swallowed: operations that are done, and never answered.
    """

    key = "k" * 40

    def __init__(self) -> None:
        self._by_id: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.received: list[str] = []
        self.refused: list[str] = []  # operations that this server does not know
        self.lost, self.wait_s = False, 0.0
        self.swallowed: set[str] = set()
        self._uploads: dict[str, bytes] = {}
        self._lock = threading.Lock()
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

    @property
    def runs(self) -> dict[str, Run]:
        with self._lock:
            return {run.name: run for run in self._by_id.values()}

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
        if any(f"mutation {name} " in body.decode(errors="replace") for name in self.swallowed):
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
        asked = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found[1] if found else ""
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

    # Operations, by their names; each returns the data

    def _on_viewer(self, v: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "v", "entity": ENTITY, "username": "user", "email": "", "flags": "{}", "teams": teams}}

    def _on_get_default_entity(self, v: dict[str, Any]) -> Any:
        return {"viewer": {"id": "v", "entity": ENTITY}}

    def _on_server_features_query(self, v: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _on_run_resume_status(self, v: dict[str, Any]) -> Any:
        run = self._by_id.get(v["name"])
        entity = {"id": "e", "name": ENTITY}
        return {"model": {"id": "p", "name": v["project"], "entity": entity, "bucket": run and _resumed(run)}}

    def _on_upsert_bucket(self, v: dict[str, Any]) -> Any:
        new = v["name"] not in self._by_id
        run = self._by_id.setdefault(v["name"], Run(v["name"], v["project"]))
        run.name = v.get("displayName") or run.name
        run.group = v.get("groupName") or run.group
        run.job_type = v.get("jobType") or run.job_type
        run.tags = v["tags"] if v.get("tags") is not None else run.tags
        if v.get("displayName"):  # later ones change the configuration only
            run.begun += 1
            run.state, run.exit_code = "running", None
        run.raw_config |= json.loads(v.get("config") or "{}")
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": run.id, "name": run.id, "displayName": run.name, "description": "", "sweepName": None}
        more = {"config": json.dumps(run.raw_config), "historyLineCount": len(run.lines), "project": project}
        return {"upsertBucket": {"bucket": bucket | more, "inserted": new}}

    def _on_create_run_files(self, v: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def _on_artifact_type(self, v: dict[str, Any]) -> Any:
        name = v["name"].partition(":")[0]
        types = [{"artifactType": {"name": one.type}} for one in self.artifacts if one.name == name]
        return {"project": {"artifact": types[-1] if types else None}}

    def _on_create_artifact(self, v: dict[str, Any]) -> Any:
        """One that is there with the same content is the same version."""
        asked = v["input"]
        name, digest = asked["artifactCollectionName"], asked["digest"]
        alike = [one for one in self.artifacts if (one.name, one.digest) == (name, digest)]
        metadata = json.loads(asked["metadata"] or "{}")
        one = (alike or [Artifact(f"a{len(self.artifacts)}", name, asked["artifactTypeName"], digest, metadata)])[0]
        if not alike:
            self.artifacts.append(one)
        if asked["runName"] not in one.runs:
            one.runs.append(asked["runName"])
        sequence = {"latestArtifact": {"id": one.id} if one.state == "COMMITTED" else None}
        return {"createArtifact": {"artifact": {"id": one.id, "state": one.state, "artifactSequence": sequence}}}

    def _on_create_artifact_manifest(self, v: dict[str, Any]) -> Any:
        id_ = f"{v['artifactID']}-manifest"
        file = {"id": id_, "uploadUrl": f"{self.url}/upload/{id_}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": id_, "file": file}}}

    def _on_update_artifact_manifest(self, v: dict[str, Any]) -> Any:
        id_ = v["artifactManifestID"]
        file = {"id": id_, "uploadUrl": f"{self.url}/upload/{id_}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": id_, "file": file}}}

    def _on_create_artifact_files(self, v: dict[str, Any]) -> Any:
        edges = []
        for file in v["input"]["artifactFiles"]:
            path = f"{file['artifactID']}-files/{file['name']}"
            own = {"artifact": {"id": file["artifactID"]}, "uploadMultipartUrls": None, "uploadHeaders": []}
            edges.append({"node": {"storagePath": path, "uploadUrl": f"{self.url}/upload/{path}", **own}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_commit_artifact(self, v: dict[str, Any]) -> Any:
        one = next(one for one in self.artifacts if one.id == v["artifactID"])
        one.state, start = "COMMITTED", f"/upload/{one.id}-files/"
        one.files = {path.removeprefix(start): text for path, text in self._uploads.items() if path.startswith(start)}
        return {"commitArtifact": {"artifact": {"id": one.id, "digest": one.digest}}}

    def _on_run_history_keys(self, v: dict[str, Any]) -> Any:
        return {"project": {"run": {"historyKeys": _keys(self._by_id[v["name"]])}}}

    def _on_run_parquet_history(self, v: dict[str, Any]) -> Any:
        """Nothing has been moved to parquet files: all rows are live."""
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    def _on_history_page(self, v: dict[str, Any]) -> Any:
        lines = self._by_id[v["run"]].lines
        steps = [json.loads(line)["_step"] for line in lines]
        chosen = [line for line, at in zip(lines, steps, strict=True) if v["minStep"] <= at < v["maxStep"]]
        return {"project": {"run": {"history": chosen}}}

    def _on_run(self, v: dict[str, Any]) -> Any:
        run = self._by_id.get(v["name"])
        return {"project": {"run": run and _shown(run)}}


def _resumed(run: Run) -> dict[str, Any]:
    counts = {"historyLineCount": len(run.lines), "logLineCount": 0, "eventsLineCount": 0}
    tails = {"historyTail": json.dumps(run.lines[-1:]), "eventsTail": "[]"}
    texts = {"config": json.dumps(run.raw_config), "summaryMetrics": json.dumps(run.summary), "notes": ""}
    own = {"wandbConfig": json.dumps({"t": 1}), "tags": run.tags}
    return {"id": run.id, "name": run.id, "displayName": run.name, **counts, **tails, **texts, **own}


def _shown(run: Run) -> dict[str, Any]:
    """A run as `Api()` reads it."""
    texts = {"config": json.dumps(run.raw_config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}"}
    own = {"group": run.group, "jobType": run.job_type, "tags": run.tags, "state": run.state}
    counts = {"historyLineCount": len(run.lines), "historyKeys": _keys(run)}
    return {"id": run.id, "name": run.id, "displayName": run.name, "projectId": "1", **texts, **own, **counts}


def _keys(run: Run) -> dict[str, Any]:
    return {"lastStep": run.history[-1]["_step"] if run.lines else -1, "keys": {}}


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
