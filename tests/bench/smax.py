"""Speed of env=smax beside the published jaxmarl, map by map in the same round, and their agreement.

    python tests/bench/smax.py --seconds 5 --rounds 3 --core 0

Environment steps of copies that are playing, per second of processor time, with 128 copies and random available actions. jaxmarl's
compilation is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from qllm_exp.envs import make_env
from qllm_exp.envs.smax import Config, tasks

ROOT = Path(__file__).parents[2]
COPIES = 128


def measure(task: str, seconds: float) -> float:
    """Environment steps per second of this package."""
    torch.set_num_threads(1)
    env = make_env(Config(task=task), COPIES, 0)

    def play() -> int:
        """Play an episode in every copy, and return the number of steps."""
        steps, available = 0, env.reset().available_actions
        playing = torch.ones(COPIES, dtype=torch.bool)
        while playing.any():
            steps += int(playing.sum())
            step = env.step((torch.rand(available.shape) * available).argmax(-1))
            available = step.available_actions
            playing &= ~(step.terminated | step.truncated)
        return steps

    play()
    steps, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        steps += play()
    return steps / (time.process_time() - start)


def run(core: int, command: list[str]) -> dict:
    """Return the JSON object in the last line that a command prints, run on one core."""
    process = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, cwd=ROOT)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    result: dict = json.loads(process.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=tasks())
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--one", action="store_true", help="measure this package alone, and print a line of JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"env_steps_per_s": measure(options.tasks[0], options.seconds)}))
        return
    jaxmarl = [str(ROOT / ".venv-jaxmarl/bin/python"), "-W", "ignore", "tests/parity/jaxmarl_smax.py", "speed"]
    print(
        "| map | env steps/s | jaxmarl's | ratio (median, lowest, highest) | its compilation, s |\n|---|---|---|---|---|"
    )
    for task in options.tasks:
        pairs = []
        for _ in range(options.rounds):
            seconds = ["--seconds", str(options.seconds)]
            theirs = run(options.core, [*jaxmarl, task, *seconds])
            ours = run(options.core, [sys.executable, __file__, task, "--one", *seconds])
            pairs.append((ours["env_steps_per_s"], theirs["env_steps_per_s"], theirs["compilation_s"]))
        ours, theirs, compilation = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios = [own / other for own, other, _ in pairs]
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}, {max(ratios):.1f})"
        print(f"| {task} | {ours:,.0f} | {theirs:,.0f} | {ratio} | {compilation:.0f} |", flush=True)


if __name__ == "__main__":
    main()
