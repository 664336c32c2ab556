"""Stored functions: many ask, one generates; what is killed is taken over; what fails is told to those who wait."""

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
from test_tfcaf_entry import make_entry

from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.errors import UserError
from qllm_exp.generation.ledger import Ledger
from qllm_exp.generation.store import Store
from qllm_exp.llm import CallFailed, Reply, Request

KEY = "ab" * 32


def store(folder: Path, stale_s: float = 60.0) -> Store:
    return Store(folder, beat_s=0.05, stale_s=stale_s, poll_s=0.02)


def test_what_is_made_is_stored_and_not_made_again(tmp_path: Path) -> None:
    here, made = store(tmp_path / "new"), []

    def make() -> StoredFunction:
        made.append(1)
        return make_entry()

    assert here.get(KEY) is None
    assert here.obtain(KEY, make) == here.obtain(KEY, make) == here.get(KEY) == make_entry()
    assert made == [1] and os.listdir(here.folder) == [f"{KEY}.json"]
    assert here.find("abab") == here.path(KEY)
    with pytest.raises(UserError, match="No stored function"):
        here.find("cd")


def test_of_many_who_ask_at_once_one_generates(tmp_path: Path) -> None:
    made, waited = [], []

    def make() -> StoredFunction:
        made.append(1)
        time.sleep(0.3)
        return make_entry()

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: store(tmp_path).obtain(KEY, make, waited.append), range(32)))
    assert made == [1] and all(one == make_entry() for one in answers)
    assert len(waited) == 31 and all(f"process {os.getpid()}" in owner for owner in waited)


def test_a_failure_is_told_to_those_who_wait_and_the_next_call_tries_again(tmp_path: Path) -> None:
    started, calls = threading.Event(), []

    def fail() -> StoredFunction:
        calls.append(1)
        started.set()
        time.sleep(0.3)
        raise UserError("no candidate was accepted")

    def wait() -> StoredFunction:
        started.wait(10)
        return store(tmp_path).obtain(KEY, fail)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(store(tmp_path).obtain, KEY, fail), *(pool.submit(wait) for _ in range(3))]
        for one in futures:
            with pytest.raises(UserError, match="no candidate was accepted"):
                one.result(20)
    assert calls == [1]
    assert store(tmp_path).obtain(KEY, make_entry) == make_entry() and os.listdir(tmp_path) == [f"{KEY}.json"]


DIES = """
import os, sys, time
from pathlib import Path
from qllm_exp.generation.store import Store
def make():
    Path(sys.argv[1], "started").touch()
    time.sleep(600)
Store(Path(sys.argv[1]) / "store").obtain("ab" * 32, make)
"""


def started_elsewhere(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", DIES, str(folder)])
    deadline = time.monotonic() + 60
    while not (folder / "started").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def test_a_killed_generation_is_taken_over_by_one(tmp_path: Path) -> None:
    process = started_elsewhere(tmp_path)
    process.kill()
    process.wait()
    (claim,) = (tmp_path / "store").glob("*.claim.1")
    assert json.loads(claim.read_text())["pid"] == str(process.pid)
    os.utime(claim, (time.time() - 100, time.time() - 100))
    made = []

    def make() -> StoredFunction:
        made.append(1)
        time.sleep(0.2)
        return make_entry()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: store(tmp_path / "store").obtain(KEY, make), range(8)))
    assert made == [1] and answers == [make_entry()] * 8 and os.listdir(tmp_path / "store") == [f"{KEY}.json"]


def test_a_generation_that_lives_is_not_taken_over(tmp_path: Path) -> None:
    slow = store(tmp_path, stale_s=0.4)
    running = threading.Thread(target=slow.obtain, args=(KEY, lambda: (time.sleep(1.5), make_entry())[1]))
    running.start()
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob("*.claim.1")):
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def never() -> StoredFunction:
        raise AssertionError("it lives: its claim is touched again and again")

    assert store(tmp_path, stale_s=0.4).obtain(KEY, never) == make_entry()
    running.join()


def test_one_who_was_taken_over_leaves_the_claim_of_the_successor(tmp_path: Path) -> None:
    here = store(tmp_path)

    def slow() -> StoredFunction:
        (tmp_path / f"{KEY}.claim.2").write_text("{}")  # somebody took this process for gone
        raise UserError("the model went away")

    with pytest.raises(UserError, match="went away"):
        here.obtain(KEY, slow)
    assert [path.name for path in tmp_path.glob("*.claim.*")] == [f"{KEY}.claim.2"]


def test_an_edited_entry_is_refused(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.obtain(KEY, make_entry)
    text = here.path(KEY).read_text()
    here.path(KEY).write_text(text.replace("agents_q.mean", "agents_q.sum"))
    with pytest.raises(UserError, match="the file was edited"):
        here.obtain(KEY, make_entry)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*tfcaf\.cache"):
        store(tmp_path / "file" / "x").obtain(KEY, make_entry)


class Paid:
    """A backend whose every answer costs the same."""

    def __init__(
        self, price: float | None = 0.1, answer: Callable[[Request], Reply | CallFailed] | None = None
    ) -> None:
        self.price, self.asked = price, list[str]()
        self.answer = answer or (lambda one: Reply(f"answer to {one.name}", "m", cost_usd=price))

    def ask(self, requests: list[Request]) -> list[Reply | CallFailed]:
        self.asked += [one.name for one in requests]
        return [self.answer(one) for one in requests]

    def worst_case_usd(self, requests: list[Request]) -> float | None:
        return None if self.price is None else 2 * self.price * len(requests)


def request(name: str, text: str = "hello") -> Request:
    return Request(({"role": "system", "content": "s"}, {"role": "user", "content": text}), name)


def test_what_is_paid_for_is_not_asked_again_after_a_kill(tmp_path: Path) -> None:
    journal, backend = tmp_path / "journal", Paid()
    first = Ledger(backend, journal, None).ask([request("a"), request("b")])
    journal.write_text(journal.read_text() + '{"name": "c", "mess')  # killed while writing
    ledger = Ledger(backend, journal, None)
    assert ledger.ask([request("a"), request("b")]) == first and backend.asked == ["a", "b"]
    assert ledger.spent_usd == pytest.approx(0.2) and ledger.calls == 0
    ledger.ask([request("a", "another question"), request("c")])
    assert backend.asked == ["a", "b", "a", "c"], "an answer belongs to its question"


def test_the_budget_stops_before_it_is_passed(tmp_path: Path) -> None:
    backend = Paid(0.1)  # a call may cost 0.2
    ledger = Ledger(backend, tmp_path / "journal", 0.55)
    ledger.ask([request("a"), request("b")])
    ledger.ask([request("c")])
    with pytest.raises(
        UserError, match=r"budget_usd=0\.55: 0\.3000 is spent, and the next 2 calls may cost up to 0\.4000"
    ):
        ledger.ask([request("d"), request("e")])
    assert backend.asked == ["a", "b", "c"]
    Ledger(backend, tmp_path / "journal", 0.75).ask([request("d"), request("e")])


def test_answers_that_were_cut_off_count_towards_the_budget(tmp_path: Path) -> None:
    backend = Paid(0.1, lambda one: CallFailed("cut off", 0.1))
    ledger = Ledger(backend, tmp_path / "journal", 0.35)
    ledger.ask([request("a")])
    assert ledger.spent_usd == Ledger(backend, tmp_path / "journal", None).spent_usd == pytest.approx(0.1)
    ledger.ask([request("a")])
    with pytest.raises(UserError, match="stops before"):
        ledger.ask([request("a")])


def test_a_budget_without_a_price_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="usd_per_million_in"):
        Ledger(Paid(None), tmp_path / "journal", 1.0).ask([request("a")])
