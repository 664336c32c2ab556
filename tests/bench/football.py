"""Football with random actions: environment steps per processor second of this package and of others, in turn, on one core.

python tests/bench/football.py --rounds 3

peers/football.py is the program that is run for each. A ratio is the median of the ratios within a round (lowest, highest).
"""

import argparse
import statistics
import sys
from pathlib import Path

from compare import HERE, ROOT, run, spread

PROGRAMS = {  # row of the table: virtual environment and program
    "ours": (".venv", "ours"),
    "gfootball's environment, engine of this package": (".venv", "gfootball"),
    "gfootball as pip builds it": (".venv-gfootball", "gfootball"),
    "EnvPool": (".venv-envpool", "envpool"),
}
TASKS = ("academy_3_vs_1_with_keeper", "academy_counterattack_hard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    print("\n| football | " + " | ".join(f"{task}: steps/s | ours to it" for task in TASKS) + " |")
    print("|---" * (1 + 2 * len(TASKS)) + "|", flush=True)
    speeds = {task: measure(task, options.seconds, options.rounds, options.core) for task in TASKS}
    for name in PROGRAMS:
        cells = []
        for task in TASKS:
            ratios = [own / other for own, other in zip(speeds[task]["ours"], speeds[task][name], strict=True)]
            cells += [f"{statistics.median(speeds[task][name]):,.0f}", spread(ratios) if name != "ours" else ""]
        print(f"| {name} | {' | '.join(cells)} |")


def measure(task: str, seconds: float, rounds: int, core: int) -> dict[str, list[float]]:
    """Return the environment steps per processor second in each round, by row of the table."""
    speeds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, (venv, program) in PROGRAMS.items():
            python = sys.executable if venv == ".venv" else str(ROOT / venv / "bin/python")
            script = str(Path(HERE) / "peers/football.py")
            result = run(core, [python, "-W", "ignore", script, program, task, "--seconds", str(seconds)])
            speeds[name].append(result["steps_per_processor_s"])
    return speeds


if __name__ == "__main__":
    main()
