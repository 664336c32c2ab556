"""The football engine without drawing: its episodes are those of the published engine, and what it refuses."""

import json
import platform
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gfootball_engine
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "football_episodes.py"
PUBLISHED = Path(__file__).with_name("football_episodes.json")  # written by SCRIPT, on the unchanged sources


def test_episodes_are_bit_for_bit_those_of_the_published_engine() -> None:
    published = json.loads(PUBLISHED.read_text())
    here = " ".join(platform.libc_ver()), platform.machine()
    if here != (published["libc"], published["machine"]):
        pytest.skip(f"the stored digests were made with {published['libc']} on {published['machine']}: type make bench")
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--episodes", "4"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["digests"] == published["digests"]


@pytest.mark.skipif("headless" not in version("gfootball"), reason="this engine can draw")
def test_drawing_is_refused() -> None:
    env = gfootball_engine.GameEnv()
    env.game_config.render = True
    with pytest.raises(RuntimeError, match=r"built without drawing\. Leave out render"):
        env.start_game()
    env.game_config.render = False
    env.start_game()
    with pytest.raises(RuntimeError, match="built without drawing"):
        env.render(True)
    env.game_config.render = True
    for call in (env.step, lambda: env.reset(gfootball_engine.ScenarioConfig.make(), False)):
        with pytest.raises(RuntimeError, match="built without drawing"):
            call()


def test_a_fatal_error_is_reported_before_the_crash() -> None:
    code = """
import gfootball_engine, signal
env = gfootball_engine.GameEnv()
env.start_game()
signal.signal(signal.SIGSEGV, signal.SIG_DFL)
env.set_state(b"another engine's")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.returncode == -signal.SIGSEGV
    assert "state is invalid" in process.stdout


def test_a_step_leaves_pythons_lock_to_other_threads() -> None:
    env, obs, facts = new_match(0), np.zeros((1, 115), np.float32), np.zeros(7, np.int32)
    turns, ready, end = [0], threading.Event(), threading.Event()

    def count() -> None:
        while not end.is_set():
            turns[0] += 1
            ready.set()

    thread = threading.Thread(target=count)
    thread.start()
    ready.wait()
    before = turns[0]
    try:
        assert env.advance(300, 10_000, obs, facts)
        assert turns[0] > before + 1000
    finally:
        end.set()
        thread.join()


def test_arrays_of_another_size_are_refused() -> None:
    env = new_match(0)
    obs, facts = np.zeros((1, 115), np.float32), np.zeros(7, np.int32)
    for wrong in (
        (obs.astype(np.float64), facts),
        (obs[:, :-1].copy(), facts),
        (obs, facts[:-1]),
        (obs[:0], facts[:-1]),
    ):
        with pytest.raises(ValueError, match=r"obs \[agents, 115\] float32 and facts \[6 \+ agents\] int32"):
            env.advance(1, 10_000, *wrong)
    many = np.zeros((6, 115), np.float32), np.zeros(12, np.int32)
    with pytest.raises(IndexError):
        env.advance(1, 10_000, *many)  # our team has five players
    obs.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        env.advance(1, 10_000, obs, facts)


def test_a_ball_that_does_not_come_into_play_is_reported() -> None:
    env, obs, facts = new_match(0), np.full((1, 115), 7.0, np.float32), np.zeros(7, np.int32)
    while env.get_info().is_in_play:
        env.step()
    assert not env.advance(0, 0, obs, facts)
    assert (obs == 7.0).all()


def test_matches_in_several_threads_play_the_episodes_that_they_play_alone() -> None:
    alone = [play_in_thread(index) for index in range(2)]
    threads = ThreadPoolExecutor(2)
    assert list(threads.map(play_in_thread, range(2))) == alone


def new_match(seed: int) -> Any:
    """A match of five against five, at its start."""
    env = gfootball_engine.GameEnv()
    env.game_config.physics_steps_per_frame = 10
    env.start_game()
    env.state = gfootball_engine.GameState.game_running
    config = gfootball_engine.ScenarioConfig.make()
    roles = gfootball_engine.e_PlayerRole
    for side in (config.left_team, config.right_team):
        for player in range(5):
            role = roles.e_PlayerRole_CM if player else roles.e_PlayerRole_GK
            side.append(gfootball_engine.FormationEntry(-1.0 + player * 0.3, 0.1 * player, role, False, True))
    config.real_time = False
    config.game_engine_random_seed = seed
    env.reset(config, False)
    return env


def play_in_thread(index: int) -> list[float]:
    """Positions of our players and the ball over a match of its own, played in the calling thread."""
    env = new_match(index)
    numbers: list[float] = []
    for _ in range(200):
        env.step()
        info = env.get_info()
        numbers += [info.ball_position[0], info.ball_position[1]]
        numbers += [player.position[axis] for player in info.left_team for axis in range(2)]
    return numbers
