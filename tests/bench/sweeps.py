"""Overhead of a sweep: planning it, and starting a run, here and on Slurm. `python tests/bench/sweeps.py`

Planning: wall time of `--dry-run` for 100, 1,000 and 10,000 runs, beside the time in which Hydra composes their configurations.
Starting: runs train for one environment step, one run at a time; a sweep of 41 runs minus a sweep of 1 run, divided by 40.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTHING = (
    "train=quick train.total_steps=1 train.evaluation.episodes=1 train.evaluation.absolute_episodes=1 env.num_envs=1"
)
RUN = ["env=matrix", "mixer=vdn", *NOTHING.split()]
TOOL = Path(__file__).parents[2] / "launch" / "slurm_local.sh"


def seconds(*overrides: str, environment: dict[str, str] | None = None) -> float:
    """Return the wall time of a sweep."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "qllm_exp", "-m", *overrides]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | (environment or {}))
    return time.perf_counter() - begin


def hydra_seconds(count: int) -> float:
    """Return the seconds in which Hydra composes `count` configurations one by one, as its own sweepers do."""
    from hydra import compose, initialize_config_dir

    from qllm_exp.config.compose import CONF

    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        begin = time.perf_counter()
        for seed in range(count):
            compose("config", ["env=lbf", "mixer=qmix", f"seed={seed}"])
        return time.perf_counter() - begin


def planning(folder: str) -> None:
    """Print the time to plan sweeps of several sizes."""
    hydra_per_run = hydra_seconds(20) / 20
    for count in (100, 1000, 10_000):
        seeds = f"seed=0-{count // 10 - 1}"
        plan = seconds(
            "env=lbf", "mixer=tfcaf,qmix", "train.gamma=0.8,0.9,0.95,0.99,1", seeds, f"dir={folder}", "--dry-run"
        )
        print(
            f"planning {count:6,} runs: {plan:6.1f} s    (composition by Hydra alone: {hydra_per_run * count:7.1f} s)"
        )


def starting(folder: str, *launcher: str, environment: dict[str, str] | None = None) -> float:
    """Return the seconds of one more run in a sweep."""

    def sweep(count: int) -> float:
        wall = seconds(*RUN, f"seed=0-{count - 1}", f"dir={folder}", *launcher, environment=environment)
        shutil.rmtree(folder)
        return wall

    return (sweep(41) - sweep(1)) / 40


def alone(folder: str) -> float:
    """Return the median seconds of the same run in its own process, `python -m qllm_exp.experiment`."""
    seconds(*RUN, f"dir={folder}")
    (run,) = (path.parent for path in Path(folder).glob("*/result.json"))
    times = []
    for _ in range(5):
        (run / "result.json").unlink()
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "qllm_exp.experiment", run], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    shutil.rmtree(folder)
    return statistics.median(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/runs"
        planning(folder)
        print(f"a run in its own Python process:         {alone(folder):5.2f} s")
        print(f"one more run of a local sweep:           {starting(folder, 'hydra.launcher.n_jobs=1'):5.2f} s")
        slurm = [*("hydra/launcher=slurm", "hydra.launcher.wait=true", "hydra.launcher.mem_gb_per_run=0.5")]
        environment = {"SLURM_LOCAL_PORT": "17990", "SLURM_CONF": f"{parent}/slurm/slurm.conf"}
        subprocess.run([TOOL, "start", f"{parent}/slurm"], check=True, env=os.environ | environment)
        try:
            packed = starting(folder, *slurm, "hydra.launcher.runs_per_job=50", environment=environment)
            single = starting(folder, *slurm, "hydra.launcher.array_parallelism=1", environment=environment)
        finally:
            subprocess.run([TOOL, "stop", f"{parent}/slurm"], check=True, env=os.environ | environment)
        print(f"one more run of a Slurm job:             {packed:5.2f} s")
        print(f"one more Slurm job with a single run:    {single:5.2f} s")


if __name__ == "__main__":
    main()
