"""What a sweep costs beside its training: planning, and starting a run, here and on Slurm. `python tests/bench/sweeps.py`

Planning: `--dry-run` of 100, 1,000 and 10,000 runs, from typing the command to its end, beside Hydra's own way of composing them.
Starting: runs that train for one environment step, one at a time; the time of a sweep of 41 less that of a sweep of 1, a run.
"""

import os
import shutil
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
    begin = time.perf_counter()
    command = [sys.executable, "-m", "qllm_exp", "-m", *overrides]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | (environment or {}))
    return time.perf_counter() - begin


def hydras_way(count: int) -> float:
    """Seconds that Hydra takes to compose `count` configurations, as its own sweepers do, one by one."""
    from hydra import compose, initialize_config_dir

    from qllm_exp.config.compose import CONF

    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        begin = time.perf_counter()
        for seed in range(count):
            compose("config", ["env=lbf", "mixer=qmix", f"seed={seed}"])
        return time.perf_counter() - begin


def planning(folder: str) -> None:
    each = hydras_way(20) / 20
    for count in (100, 1000, 10_000):
        seeds = f"seed=0-{count // 10 - 1}"
        took = seconds(
            "env=lbf", "mixer=tfcaf,qmix", "train.gamma=0.8,0.9,0.95,0.99,1", seeds, f"dir={folder}", "--dry-run"
        )
        print(f"planning {count:6,} runs: {took:6.1f} s    (Hydra's composing alone: {each * count:7.1f} s)")


def starting(folder: str, *launcher: str, environment: dict[str, str] | None = None) -> float:
    def sweep(count: int) -> float:
        took = seconds(*RUN, f"seed=0-{count - 1}", f"dir={folder}", *launcher, environment=environment)
        shutil.rmtree(folder)
        return took

    return (sweep(41) - sweep(1)) / 40


def alone(folder: str) -> float:
    """Seconds of the same run in a process of its own, `python -m qllm_exp.experiment`."""
    seconds(*RUN, f"dir={folder}")
    (run,) = (path.parent for path in Path(folder).glob("*/result.json"))
    took = []
    for _ in range(5):
        (run / "result.json").unlink()
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "qllm_exp.experiment", run], check=True, capture_output=True)
        took.append(time.perf_counter() - begin)
    shutil.rmtree(folder)
    return sorted(took)[2]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = f"{place}/runs"
        planning(folder)
        print(f"a run in a Python of its own:            {alone(folder):5.2f} s")
        print(f"a run more in a sweep here:              {starting(folder, 'hydra.launcher.n_jobs=1'):5.2f} s")
        slurm = [*("hydra/launcher=slurm", "hydra.launcher.wait=true", "hydra.launcher.mem_gb_per_run=0.5")]
        environment = {"SLURM_LOCAL_PORT": "17990", "SLURM_CONF": f"{place}/slurm/slurm.conf"}
        subprocess.run([TOOL, "start", f"{place}/slurm"], check=True, env=os.environ | environment)
        try:
            packed = starting(folder, *slurm, "hydra.launcher.runs_per_job=50", environment=environment)
            single = starting(folder, *slurm, "hydra.launcher.array_parallelism=1", environment=environment)
        finally:
            subprocess.run([TOOL, "stop", f"{place}/slurm"], check=True, env=os.environ | environment)
        print(f"a run more in a Slurm job of many:       {packed:5.2f} s")
        print(f"a run more, each in a Slurm job:         {single:5.2f} s")


if __name__ == "__main__":
    main()
