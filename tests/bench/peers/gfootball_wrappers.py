"""Joint steps per second of gfootball's own environment, as pip builds and installs it, with random actions.

    .venv-gfootball/bin/python tests/bench/peers/gfootball_wrappers.py --seconds 20

One match of academy_3_vs_1_with_keeper at a time, four agents, observation simple115v2, rewards scoring,checkpoints, cut
off after 150 steps; resets included. The last line on standard output is one JSON object.
"""

import argparse
import json
import time
from importlib.metadata import version

import gfootball.env
import numpy as np

LIMIT = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    env = gfootball.env.create_environment(
        env_name="academy_3_vs_1_with_keeper",
        representation="simple115v2",
        rewards="scoring,checkpoints",
        number_of_left_players_agent_controls=4,
    )
    env.reset()
    steps, begin, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < options.seconds:
        env.reset()
        done, length = False, 0
        while not done and length < LIMIT:
            _, _, done, _ = env.step(generator.integers(19, size=4))
            length += 1
        steps += length
    wall = time.perf_counter() - begin
    share = (time.process_time() - processor) / wall
    env.close()
    result = {
        "name": "gfootball",
        "version": version("gfootball"),
        "joint_steps_per_s": steps / wall,
        "cpu_share": share,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
