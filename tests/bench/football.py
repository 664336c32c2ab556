"""Joint steps per second of the football engine with random actions: this package's environment, and gfootball's wrappers
around the same build of the engine (peers/gfootball_wrappers.py has the build that pip makes).

Both play academy_3_vs_1_with_keeper with four agents, in turn, on the core that the caller pins this process to. Resets are
included; the first ones, which load the game, are not.
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
    given = parser.parse_args()
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
    while time.perf_counter() - begin < given.seconds:
        segments["ours"].append(play_ours(ours, generator))
        segments["wrappers"].append(play_wrappers(theirs, generator))
    ours.close()
    theirs.close()
    ratios = [a / b for a, b in zip(segments["ours"], segments["wrappers"], strict=True)]
    figures = {name: statistics.median(values) for name, values in segments.items()}
    same_engine = statistics.median(ratios)
    print(json.dumps({"name": "football", "joint_steps_per_s": figures["ours"], "ratio_same_engine": same_engine}))


def play_ours(env, generator: np.random.Generator) -> float:
    """Joint steps per second of whole episodes, resets included."""
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
    """The same through gfootball's own environment, one match at a time."""
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
