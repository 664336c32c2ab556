"""The football engine without drawing: its episodes are those of the published engine, and it refuses to draw."""

import json
import platform
import subprocess
import sys
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
