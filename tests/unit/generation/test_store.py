"""The store: of many processes one generates; a killed one is replaced; waiting processes receive the error of a failure."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.generation.ledger import Ledger
from qllm_exp.generation.store import Store
from qllm_exp.llm import CallFailed, Reply, Request
from tests.unit.credit.test_stored_function import make_function

KEY = "ab" * 32


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
    assert folder_store.find("abab") == folder_store.path(KEY)
    with pytest.raises(UserError, match="No stored function"):
        folder_store.find("cd")


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
Store(Path(sys.argv[1]) / "store").get_or_generate("ab" * 32, generate)
"""


def start_generating_process(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SLOW_PROCESS, str(folder)])
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


class PricedBackend:
    """A backend that charges the same price for every answer."""

    def __init__(
        self, price: float | None = 0.1, answer: Callable[[Request], Reply | CallFailed] | None = None
    ) -> None:
        self.price, self.request_names = price, list[str]()
        self.answer = answer or (lambda request: Reply(f"answer to {request.name}", "m", cost_usd=price))

    def ask(self, requests: list[Request]) -> list[Reply | CallFailed]:
        self.request_names += [request.name for request in requests]
        return [self.answer(request) for request in requests]

    def worst_case_usd(self, requests: list[Request]) -> float | None:
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
    ledger.ask([request("a", "another question"), request("c")])
    assert backend.request_names == ["a", "b", "a", "c"], "an answer belongs to its question"


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
