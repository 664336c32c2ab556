"""Threads of the football worker: how they share the matches."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from qllm_exp.envs.grf.worker import play


class FakeMatch(SimpleNamespace):
    """A match that records who plays it, and first waits for `released`."""

    def step(self, actions: list[int]) -> None:
        self.released.wait(10.0)
        self.steps.append((self.number, actions, threading.current_thread().name))
        self.after()


def test_no_thread_waits_while_a_match_is_left() -> None:
    steps: list[Any] = []
    released, slow = threading.Event(), threading.Event()
    released.set()
    common = {"steps": steps, "goals": (1, 0), "terminated": False, "truncated": True}
    matches: list[Any] = [
        # The first match ends when all others have been played, whoever plays them.
        FakeMatch(number=i, released=released if i else slow, after=lambda: len(steps) == 7 and slow.set(), **common)
        for i in range(8)
    ]
    arrays: Any = SimpleNamespace(
        actions=np.arange(16).reshape(8, 2),
        goals=np.zeros((8, 2), int),
        terminated=np.ones(8, bool),
        truncated=np.zeros(8, bool),
        playing=np.ones(8, bool),
    )
    turns = iter(range(8))
    threads = [threading.Thread(target=play, args=(matches, arrays, turns, False)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number, _, _ in steps] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert len({name for _, _, name in steps[:-1]}) == 1
    assert all(actions == [2 * number, 2 * number + 1] for number, actions, _ in steps)
    assert arrays.goals.tolist() == [[1, 0]] * 8
    assert not arrays.terminated.any() and arrays.truncated.all() and not arrays.playing.any()
