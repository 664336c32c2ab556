"""The football engine without drawing: its episodes are those of the published engine, and it refuses to draw."""

import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import gfootball_engine
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


def test_matches_in_several_threads_play_the_episodes_that_they_play_alone() -> None:
    alone = [play_in_thread(index) for index in range(2)]
    threads = ThreadPoolExecutor(2)
    assert list(threads.map(play_in_thread, range(2))) == alone


def play_in_thread(index: int) -> list[float]:
    """Positions of our players and the ball over a match of its own, played in the calling thread."""
    env = gfootball_engine.GameEnv()
    env.game_config.physics_steps_per_frame = 10
    env.start_game()
    env.state = gfootball_engine.GameState.game_running
    config = gfootball_engine.ScenarioConfig.make()
    for side in (config.left_team, config.right_team):
        for player in range(5):
            role = (
                gfootball_engine.e_PlayerRole.e_PlayerRole_GK
                if player == 0
                else gfootball_engine.e_PlayerRole.e_PlayerRole_CM
            )
            side.append(gfootball_engine.FormationEntry(-1.0 + player * 0.3, 0.1 * player, role, False, True))
    config.real_time = False
    config.game_engine_random_seed = index
    env.reset(config, False)
    numbers: list[float] = []
    for _ in range(200):
        env.step()
        info = env.get_info()
        numbers += [info.ball_position[0], info.ball_position[1]]
        numbers += [player.position[axis] for player in info.left_team for axis in range(2)]
    return numbers
