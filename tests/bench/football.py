"""Joint steps per second of football with random actions, in this package's environment and in gfootball's wrappers.

Both use the same build of the engine; peers/gfootball_wrappers.py times the build that pip makes. They play
academy_3_vs_1_with_keeper with four agents, in turn, on the core that the caller pins this process to. Resets are included,
except the first ones, which load the game.
"""

import argparse
import json
import statistics
import time

import gfootball.env
import numpy as np
import torch

from qllm_exp.envs import make_env
from qllm_exp.envs.grf.env import Config as GrfConfig

MATCHES = 16
SEGMENT_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    ours = make_env(GrfConfig(num_envs=MATCHES, workers=1), MATCHES, 0)
    theirs = gfootball.env.create_environment(
        env_name="academy_3_vs_1_with_keeper",
        representation="simple115v2",
        rewards="scoring,checkpoints",
        number_of_left_players_agent_controls=4,
    )
    ours.reset()
    theirs.reset()
    segments: dict[str, list[float]] = {"ours": [], "wrappers": []}
    begin = time.perf_counter()
    while time.perf_counter() - begin < options.seconds:
        segments["ours"].append(play_ours(ours, generator))
        segments["wrappers"].append(play_wrappers(theirs, generator))
    ours.close()
    theirs.close()
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*segments.values(), strict=True))
    speed = statistics.median(segments["ours"])
    print(json.dumps({"name": "football", "joint_steps_per_s": speed, "ratio_same_engine": ratio}))


def play_ours(env, generator: np.random.Generator) -> float:
    """Return the joint steps per second of whole episodes in this package's environment, resets included."""
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SEGMENT_S:
        env.reset()
        playing = torch.ones(MATCHES, dtype=torch.bool)
        while playing.any():
            steps += int(playing.sum())
            step = env.step(torch.from_numpy(generator.integers(19, size=(MATCHES, 4))))
            playing &= ~(step.terminated | step.truncated)
    return steps / (time.perf_counter() - begin)


def play_wrappers(env, generator: np.random.Generator) -> float:
    """Return the same of gfootball's environment, one match at a time."""
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SEGMENT_S:
        env.reset()
        done, length = False, 0
        while not done and length < 150:
            _, _, done, _ = env.step(generator.integers(19, size=4))
            length += 1
        steps += length
    return steps / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
