"""Environment steps per processor second of one program's football, random actions, resets included.

    .venv/bin/python tests/bench/peers/football.py ours academy_3_vs_1_with_keeper
    .venv-gfootball/bin/python tests/bench/peers/football.py gfootball academy_3_vs_1_with_keeper
    .venv-envpool/bin/python tests/bench/peers/football.py envpool academy_3_vs_1_with_keeper

ours: this package's environment, 16 matches in one worker. gfootball: its own environment, one match at a time, on the engine
that is installed beside it. envpool: 16 matches on one thread, a single agent and images as observations, which is all that it
offers. A step is one of one match; episodes are cut off after 150 steps. Processor time is that of the process and of its
children. The last line on standard output is one JSON object.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

MATCHES, LIMIT = 16, 150
AGENTS = {"academy_3_vs_1_with_keeper": 4, "academy_counterattack_hard": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("task", choices=AGENTS)
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    play = PROGRAMS[options.program](options.task, np.random.default_rng(0))
    next(play)  # loads the game
    steps, begin, processor = 0, time.perf_counter(), processor_time(os.getpid())
    while time.perf_counter() - begin < options.seconds:
        steps += next(play)
    speed = steps / (processor_time(os.getpid()) - processor)
    package = {"ours": "qllm_exp"}.get(options.program, options.program)
    print(json.dumps({"name": options.program, "version": version(package), "steps_per_processor_s": speed}))


def processor_time(pid: int) -> float:
    """Return the processor seconds of a process and of its living children."""
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for children in process.glob("task/*/children"):
        seconds += sum(processor_time(int(child)) for child in children.read_text().split())
    return seconds


def ours(task: str, generator: np.random.Generator) -> Iterator[int]:
    """Yield the number of steps of each round of episodes."""
    import torch

    from qllm_exp.envs import make_env
    from qllm_exp.envs.grf.env import Config

    torch.set_num_threads(1)
    env = make_env(Config(task=task, num_envs=MATCHES, workers=1, episode_limit=LIMIT), MATCHES, 0)
    while True:
        env.reset()
        steps, playing = 0, torch.ones(MATCHES, dtype=torch.bool)
        while playing.any():
            steps += int(playing.sum())
            step = env.step(torch.from_numpy(generator.integers(19, size=(MATCHES, env.n_agents))))
            playing &= ~(step.terminated | step.truncated)
        yield steps


def gfootball(task: str, generator: np.random.Generator) -> Iterator[int]:
    """Yield the number of steps of each episode."""
    import gfootball.env

    env = gfootball.env.create_environment(
        env_name=task,
        representation="simple115v2",
        rewards="scoring,checkpoints",
        number_of_left_players_agent_controls=AGENTS[task],
    )
    while True:
        env.reset()
        done, steps = False, 0
        while not done and steps < LIMIT:
            _, _, done, _ = env.step(generator.integers(19, size=AGENTS[task]))
            steps += 1
        yield steps


def envpool(task: str, generator: np.random.Generator) -> Iterator[int]:
    """Yield the number of steps of each call; episodes that have ended begin anew."""
    import envpool

    name = f"gfootball/{task}-v1"
    env = envpool.make(name, env_type="gymnasium", num_envs=MATCHES, num_threads=1, max_episode_steps=LIMIT, seed=0)
    env.reset()
    while True:
        env.step(generator.integers(19, size=MATCHES))
        yield MATCHES


PROGRAMS = {"ours": ours, "gfootball": gfootball, "envpool": envpool}

if __name__ == "__main__":
    main()
