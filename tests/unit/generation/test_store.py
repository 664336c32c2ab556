"""The store: of many processes one generates; a killed one is replaced; waiting processes receive the error of a failure."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from qllm_exp.credit.program_json import canonical_json
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.generation import ledger as ledger_module
from qllm_exp.generation.ledger import Ledger
from qllm_exp.generation.store import Store
from qllm_exp.llm import Backend, CallFailed, OnAnswer, Reply, Request
from tests.unit.credit import test_stored_function

REQUEST = {"llm": {"model": "some-model"}}
KEY = hashlib.sha256(canonical_json(REQUEST).encode()).hexdigest()


def make_function() -> StoredFunction:
    cost = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "usd": None}
    function = test_stored_function.make_function()
    return replace(function, key=KEY, request=REQUEST, cost=cost, transcript=())


def store(folder: Path, stale_s: float = 60.0) -> Store:
    return Store(folder, beat_s=0.05, stale_s=stale_s, poll_s=0.02)


def test_a_generated_function_is_stored_and_not_generated_again(tmp_path: Path) -> None:
    folder_store, generated = store(tmp_path / "new"), []

    def generate() -> StoredFunction:
        generated.append(1)
        return make_function()

    assert folder_store.get(KEY) is None
    assert (
        folder_store.get_or_generate(KEY, generate)
        == folder_store.get_or_generate(KEY, generate)
        == folder_store.get(KEY)
        == make_function()
    )
    assert generated == [1] and os.listdir(folder_store.folder) == [f"{KEY}.json"]
    assert folder_store.find(KEY[:6]) == folder_store.path(KEY)
    with pytest.raises(UserError, match="No stored function"):
        folder_store.find("xy")


def test_of_many_concurrent_requests_one_generates(tmp_path: Path) -> None:
    generated, waited = [], []

    def generate() -> StoredFunction:
        generated.append(1)
        time.sleep(0.3)
        return make_function()

    with ThreadPoolExecutor(32) as pool:
        functions = list(pool.map(lambda _: store(tmp_path).get_or_generate(KEY, generate, waited.append), range(32)))
    assert generated == [1] and all(function == make_function() for function in functions)
    assert len(waited) == 31 and all(f"process {os.getpid()}" in owner for owner in waited)


def test_waiting_processes_receive_the_error_and_the_next_call_tries_again(tmp_path: Path) -> None:
    started, calls = threading.Event(), []

    def fail() -> StoredFunction:
        calls.append(1)
        started.set()
        time.sleep(0.3)
        raise UserError("no candidate was accepted")

    def wait() -> StoredFunction:
        started.wait(10)
        return store(tmp_path).get_or_generate(KEY, fail)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(store(tmp_path).get_or_generate, KEY, fail), *(pool.submit(wait) for _ in range(3))]
        for future in futures:
            with pytest.raises(UserError, match="no candidate was accepted"):
                future.result(20)
    assert calls == [1]
    assert store(tmp_path).get_or_generate(KEY, make_function) == make_function() and os.listdir(tmp_path) == [
        f"{KEY}.json"
    ]


SLOW_PROCESS = """
import os, sys, time
from pathlib import Path
from qllm_exp.generation.store import Store
def generate():
    Path(sys.argv[1], "started").touch()
    time.sleep(600)
Store(Path(sys.argv[1]) / "store").get_or_generate(sys.argv[2], generate)
"""


def start_generating_process(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SLOW_PROCESS, str(folder), KEY])
    deadline = time.monotonic() + 60
    while not (folder / "started").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def test_a_killed_generation_is_taken_over_by_one_process(tmp_path: Path) -> None:
    process = start_generating_process(tmp_path)
    process.kill()
    process.wait()
    (claim,) = (tmp_path / "store").glob("*.claim.1")
    assert json.loads(claim.read_text())["pid"] == str(process.pid)
    os.utime(claim, (time.time() - 100, time.time() - 100))
    generated = []

    def generate() -> StoredFunction:
        generated.append(1)
        time.sleep(0.2)
        return make_function()

    with ThreadPoolExecutor(8) as pool:
        functions = list(pool.map(lambda _: store(tmp_path / "store").get_or_generate(KEY, generate), range(8)))
    assert generated == [1] and functions == [make_function()] * 8 and os.listdir(tmp_path / "store") == [f"{KEY}.json"]


def test_a_live_generation_is_not_taken_over(tmp_path: Path) -> None:
    slow = store(tmp_path, stale_s=0.4)
    running = threading.Thread(target=slow.get_or_generate, args=(KEY, lambda: (time.sleep(1.5), make_function())[1]))
    running.start()
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob("*.claim.1")):
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def never() -> StoredFunction:
        raise AssertionError("the owner is alive and touches its claim")

    assert store(tmp_path, stale_s=0.4).get_or_generate(KEY, never) == make_function()
    running.join()


def test_a_process_that_was_taken_over_keeps_the_claim_of_its_successor(tmp_path: Path) -> None:
    folder_store = store(tmp_path)

    def slow() -> StoredFunction:
        (tmp_path / f"{KEY}.claim.2").write_text("{}")  # another process considers this one dead
        raise UserError("the model went away")

    with pytest.raises(UserError, match="went away"):
        folder_store.get_or_generate(KEY, slow)
    assert [path.name for path in tmp_path.glob("*.claim.*")] == [f"{KEY}.claim.2"]


def test_an_edited_file_is_an_error(tmp_path: Path) -> None:
    folder_store = store(tmp_path)
    folder_store.get_or_generate(KEY, make_function)
    text = folder_store.path(KEY).read_text()
    folder_store.path(KEY).write_text(text.replace("agents_q.mean", "agents_q.sum"))
    with pytest.raises(UserError, match="the file was edited"):
        folder_store.get_or_generate(KEY, make_function)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*tfcaf\.cache"):
        store(tmp_path / "file" / "x").get_or_generate(KEY, make_function)


def start_thread(folder_store: Store, generate: Callable[[], StoredFunction]) -> threading.Thread:
    """Generate in a thread, and return once its claim exists."""
    thread = threading.Thread(target=folder_store.get_or_generate, args=(KEY, generate))
    thread.start()
    deadline = time.monotonic() + 10
    while not list(folder_store.folder.glob("*.claim.1")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return thread


def never() -> StoredFunction:
    raise AssertionError("a second generation was started")


@pytest.mark.parametrize("age_s", [1e6, -1e6], ids=["old", "future"])
def test_a_live_process_keeps_a_claim_of_any_date(tmp_path: Path, age_s: float) -> None:
    waited = threading.Event()

    def generate() -> StoredFunction:
        assert waited.wait(20)
        return make_function()

    owner = Store(tmp_path, beat_s=60, poll_s=0.01)  # it does not correct the date
    thread = start_thread(owner, generate)
    (claim,) = tmp_path.glob("*.claim.1")
    os.utime(claim, (time.time() - age_s, time.time() - age_s))
    threading.Timer(0.5, waited.set).start()
    assert store(tmp_path, stale_s=0.1).get_or_generate(KEY, never) == make_function()
    thread.join()


@pytest.mark.parametrize("age_s", [0, 1e6, -1e6], ids=["new", "old", "future"])
@pytest.mark.parametrize("change", ["pid", "start"])
def test_the_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(
    tmp_path: Path, age_s: float, change: str
) -> None:
    claim, owner = tmp_path / f"{KEY}.claim.1", dict[str, str]()

    def generate() -> StoredFunction:
        owner.update(json.loads(claim.read_text()))
        return make_function()

    patient = Store(tmp_path, beat_s=1e3, stale_s=1e4, poll_s=0.01)
    patient.get_or_generate(KEY, generate)
    patient.path(KEY).unlink()
    ended = subprocess.Popen(["true"])
    ended.wait()
    values = {"pid": str(ended.pid), "start": "1"}  # the second: another process has got the number since
    claim.write_text(json.dumps(owner | {change: values[change]}))
    os.utime(claim, (time.time() - age_s, time.time() - age_s))
    assert patient.get_or_generate(KEY, make_function) == make_function()


def claim_of_another_machine(folder: Path, age_s: float) -> Path:
    claim = folder / f"{KEY}.claim.1"
    claim.write_text(json.dumps({"pid": str(os.getpid()), "host": "elsewhere", "token": "x", "machine": "another"}))
    os.utime(claim, (time.time() - age_s, time.time() - age_s))
    return claim


@pytest.mark.parametrize("age_s", [0, 1e6, -1e6], ids=["new", "old", "future"])
def test_a_claim_of_another_machine_that_nobody_touches_is_taken_over(tmp_path: Path, age_s: float) -> None:
    claim_of_another_machine(tmp_path, age_s)
    assert store(tmp_path, stale_s=0.3).get_or_generate(KEY, make_function) == make_function()
    assert os.listdir(tmp_path) == [f"{KEY}.json"]


@pytest.mark.slow
@pytest.mark.parametrize("age_s", [1e6, -1e6], ids=["old", "future"])
def test_a_claim_of_another_machine_that_is_touched_is_waited_for(tmp_path: Path, age_s: float) -> None:
    claim, start = claim_of_another_machine(tmp_path, age_s), time.monotonic()
    looks: list[float] = []
    waiting = Store(tmp_path, beat_s=0.3, stale_s=1.0, poll_s=0.02)

    def touch() -> None:
        while time.monotonic() - start < 2.5:
            date = time.time() - age_s + len(looks)  # the clock of the server stays wrong
            os.utime(claim, (date, date))
            looks.append(date)
            time.sleep(0.1)

    thread = threading.Thread(target=touch)
    thread.start()

    def generate() -> StoredFunction:
        assert time.monotonic() - start > 2.5, "the claim was still touched"
        return make_function()

    assert waiting.get_or_generate(KEY, generate) == make_function()
    thread.join()


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"pid": 7}', '{"pid": "9999999999999999999"}'])
def test_a_claim_that_cannot_be_read_is_taken_over_as_well(tmp_path: Path, content: str) -> None:
    (tmp_path / f"{KEY}.claim.1").write_text(content)
    assert store(tmp_path, stale_s=0.1).get_or_generate(KEY, make_function) == make_function()


def test_waiting_processes_do_not_repeat_a_generation_that_broke_down(tmp_path: Path) -> None:
    calls: list[int] = []

    def break_down() -> StoredFunction:
        calls.append(1)
        time.sleep(0.3)
        raise ZeroDivisionError("a defect")

    def run(_: int) -> str:
        try:
            store(tmp_path).get_or_generate(KEY, break_down)
        except ZeroDivisionError:
            return "owner"
        except UserError as error:
            assert "a defect" in str(error)
            return "waiting"
        return ""

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(run, range(6))) == ["owner", *["waiting"] * 5]
    assert calls == [1]


def test_a_folder_that_cannot_be_written_to_any_longer_is_one_error_and_no_second_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_link, calls, started = os.link, list[int](), threading.Event()

    def link(source: str, target: str) -> None:
        if calls:
            raise OSError(errno.EROFS, "Read-only file system")
        real_link(source, target)

    def generate() -> StoredFunction:
        calls.append(1)
        started.set()
        time.sleep(0.2)
        return make_function()

    def wait(number: int) -> str:
        assert number == 0 or started.wait(10)
        with pytest.raises(UserError) as error:
            store(tmp_path).get_or_generate(KEY, generate)
        return str(error.value)

    monkeypatch.setattr(os, "link", link)
    with ThreadPoolExecutor(6) as pool:
        messages = list(pool.map(wait, range(6)))
    assert calls == [1] and all("Read-only file system" in message and "tfcaf.cache" in message for message in messages)


class PricedBackend(Backend):
    """A backend that charges the same price for every answer."""

    def __init__(
        self, price: float | None = 0.1, answer: Callable[[Request], Reply | CallFailed] | None = None
    ) -> None:
        self.price, self.request_names = price, list[str]()
        self.answer = answer or (lambda request: Reply(f"answer to {request.name}", "m", cost_usd=price))

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        self.request_names += [request.name for request in requests]
        return [self.answer(request) for request in requests]

    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        return None if self.price is None else 2 * self.price * len(requests)


def request(name: str, text: str = "hello") -> Request:
    return Request(({"role": "system", "content": "s"}, {"role": "user", "content": text}), name)


def test_paid_answers_are_not_requested_again_after_a_kill(tmp_path: Path) -> None:
    journal, backend = tmp_path / "journal", PricedBackend()
    first = Ledger(backend, journal, None).ask([request("a"), request("b")])
    journal.write_text(journal.read_text() + '{"name": "c", "mess')  # killed while writing
    ledger = Ledger(backend, journal, None)
    assert ledger.ask([request("a"), request("b")]) == first and backend.request_names == ["a", "b"]
    assert ledger.spent_usd == pytest.approx(0.2) and ledger.calls == 0
    answers = ledger.ask([request("a", "another question"), request("c")])
    assert backend.request_names == ["a", "b", "a", "c"], "an answer belongs to its question"
    assert Ledger(backend, journal, None).ask([request("a", "another question"), request("c")]) == answers
    assert len(backend.request_names) == 4, "no answer is appended to the incomplete line"


class Killed(BaseException):
    """The process ends here."""


class BackendKilledAfterOne(PricedBackend):
    """A backend whose process is killed after the first answer of a batch."""

    def ask_each(self, requests: Sequence[Request], on_answer: OnAnswer) -> list[Reply | CallFailed]:
        (reply,) = self.ask(requests[:1])
        on_answer(requests[0], reply)
        raise Killed


def test_an_answer_that_has_arrived_is_kept_when_the_process_is_killed_in_the_batch(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Ledger(BackendKilledAfterOne(), tmp_path / "journal", None).ask([request("a"), request("b")])
    backend = PricedBackend()
    Ledger(backend, tmp_path / "journal", None).ask([request("a"), request("b")])
    assert backend.request_names == ["b"]


def test_nothing_is_paid_if_the_answer_cannot_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = PricedBackend()
    (tmp_path / "device").symlink_to("/dev/full")

    def no_space(descriptor: int, offset: int, length: int) -> None:
        assert length > ledger_module.RESERVED_BYTES
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"device cannot be read"):
        Ledger(backend, tmp_path / "device", None).ask([request("a")])
    (tmp_path / "folder").mkdir()
    ledger = Ledger(backend, tmp_path / "folder" / "journal", None)
    (tmp_path / "folder").rmdir()
    (tmp_path / "folder").touch()
    with pytest.raises(UserError, match=r"cannot be stored in .*exists.*tfcaf\.cache"):
        ledger.ask([request("a")])
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="No space left"):
        Ledger(backend, tmp_path / "other", None).ask([request("a")])
    assert backend.request_names == []


def test_answers_that_are_stored_are_not_paid_again_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, ledger = PricedBackend(), Ledger(PricedBackend(), tmp_path / "journal", None)
    real_fsync, writes = os.fsync, list[int]()

    def fsync(descriptor: int) -> None:
        writes.append(1)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left"):
        ledger.ask([request("a"), request("b")])
    monkeypatch.setattr(os, "fsync", real_fsync)
    Ledger(backend, tmp_path / "journal", None).ask([request("a")])
    assert backend.request_names == []


BAD_LINES = ["null", "7", "[" * 100_000, '{"name": "a"}', '{"lost_usd": NaN}', '{"lost_usd": -1}', '{"lost_usd": "x"}']
BAD_LINES += [
    '{"name": "a", "messages": [], "reply": {"text": 1, "model": "m"}}',
    "\udcff",
    '{"name": "a", "reply": {}}',
]


def test_lines_of_a_journal_that_are_not_valid_are_ignored(tmp_path: Path) -> None:
    journal, backend = tmp_path / "journal", PricedBackend()
    journal.write_bytes("\n".join(BAD_LINES).encode(errors="surrogateescape"))
    ledger = Ledger(backend, journal, None)
    assert ledger.spent_usd == 0
    ledger.ask([request("a")])
    assert Ledger(backend, journal, None).spent_usd == pytest.approx(0.1)


def test_journals_of_the_first_version_and_of_later_ones_are_read(tmp_path: Path) -> None:
    messages = list(request("a").messages)
    old = {"text": "x", "model": "m", "tokens_in": 1, "tokens_out": 1, "cost_usd": 0.1, "seconds": 1.0, "attempts": 1}
    for extra in ({}, {"estimated": True}, {"unknown": 1}):
        journal = tmp_path / f"journal{len(extra)}"
        journal.write_text(json.dumps({"name": "a", "messages": messages, "reply": old | extra}) + "\n")
        backend = PricedBackend()
        (reply,) = Ledger(backend, journal, None).ask([request("a")])
        assert isinstance(reply, Reply) and reply.text == "x" and not backend.request_names
        assert reply.estimated == ("estimated" in extra)


def test_the_budget_binds_for_estimated_costs_and_says_so(tmp_path: Path) -> None:
    backend = PricedBackend(0.1, lambda request: Reply("x", "m", cost_usd=0.1, estimated=True))
    ledger = Ledger(backend, tmp_path / "journal", 0.25)
    ledger.ask([request("a")])
    with pytest.raises(UserError, match=r"0\.1000 USD is spent \(an estimate\)"):
        ledger.ask([request("b")])


def test_the_generation_stops_before_it_exceeds_the_budget(tmp_path: Path) -> None:
    backend = PricedBackend(0.1)  # a call may cost 0.2
    ledger = Ledger(backend, tmp_path / "journal", 0.55)
    ledger.ask([request("a"), request("b")])
    ledger.ask([request("c")])
    with pytest.raises(
        UserError, match=r"budget_usd=0\.55: 0\.3000 USD is spent, and the next 2 calls may cost up to 0\.4000"
    ):
        ledger.ask([request("d"), request("e")])
    assert backend.request_names == ["a", "b", "c"]
    Ledger(backend, tmp_path / "journal", 0.75).ask([request("d"), request("e")])


def test_truncated_answers_count_towards_the_budget(tmp_path: Path) -> None:
    backend = PricedBackend(0.1, lambda request: CallFailed("cut off", 0.1))
    ledger = Ledger(backend, tmp_path / "journal", 0.35)
    ledger.ask([request("a")])
    assert ledger.spent_usd == Ledger(backend, tmp_path / "journal", None).spent_usd == pytest.approx(0.1)
    ledger.ask([request("a")])
    with pytest.raises(UserError, match="stops before"):
        ledger.ask([request("a")])


def test_a_budget_without_a_price_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="usd_per_million_in"):
        Ledger(PricedBackend(None), tmp_path / "journal", 1.0).ask([request("a")])
