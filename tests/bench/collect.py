"""Time to collect runs. `python tests/bench/collect.py [RUNS]` creates RUNS directories (10,000) and collects them twice.

Each run has 40 evaluations and 200 rows of training metrics, as after 2M environment steps. There are three tasks, two mixers and
ten learning rates. The runs of one mixer have a credit-assignment function.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from qllm_exp.config import schema
from qllm_exp.config.load import run_name, to_dict
from qllm_exp.credit.stored_function import BUNDLED
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.results.records.collect import collect

EVALUATIONS, TRAINING = 40, 200
RATES = 10
TASKS = ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s", "15x15-4p-3f-2s")


def configs(count: int) -> list[schema.RunConfig]:
    """Return the configurations of `count` runs, evenly distributed over tasks, mixers and learning rates."""
    mixers = (QmixConfig(), TfcafConfig())
    groups = [(task, mixer, rate) for task in TASKS for mixer in mixers for rate in range(RATES)]
    return [
        schema.RunConfig(
            env=LbfConfig(task=task, num_envs=128),
            mixer=mixer,
            train=schema.TrainConfig(learning_rate=1e-4 * (1 + rate)),
            seed=number // len(groups),
        )
        for number in range(count)
        for task, mixer, rate in [groups[number % len(groups)]]
    ]


def metrics(run: schema.RunConfig) -> str:
    """Return the content of metrics.jsonl."""
    interval = run.train.total_steps // TRAINING
    rows = []
    for number in range(1, TRAINING + 1):
        step = number * interval
        values = {"return_mean": 0.1234567 + run.seed, "length_mean": 49.8, "loss": 1.36608146, "grad_norm": 0.87016}
        values |= {"q_tot": 0.31712788, "epsilon": 0.7568, "wall_s": 0.931 * number}
        rows.append({"kind": "training", "env_step": step, "episodes": number * 200, "updates": number * 50, **values})
        if number % (TRAINING // EVALUATIONS) == 0:
            values = {"return_mean": 0.031253 * number, "return_std": 0.1210307, "length_mean": 50.0, "episodes": 100}
            rows.append({"kind": "evaluation", "env_step": step, "env_step_exact": step, **values})
    rows.append({"kind": "absolute", "env_step": run.train.total_steps, "return_mean": 0.9, "return_std": 0.1})
    return "".join(json.dumps(row) + "\n" for row in rows)


def make(folder: Path, runs: list[schema.RunConfig]) -> None:
    """Create the directories of the runs."""
    from omegaconf import OmegaConf

    texts: dict[str, str] = {}
    for run in runs:
        path = folder / run_name(run, "")
        path.mkdir()
        key = repr(replace(run, seed=0))
        if key not in texts:
            texts[key] = OmegaConf.to_yaml(OmegaConf.create(to_dict(replace(run, seed=0))))
        (path / "config.yaml").write_text(texts[key].replace("\nseed: 0\n", f"\nseed: {run.seed}\n"))
        (path / "metrics.jsonl").write_text(metrics(run))
        (path / "versions.json").write_text(json.dumps({"qllm_exp": "0.1.0", "host": f"node{run.seed % 8}"}))
        parameters = {"agent": 26310, "mixer": 0}
        result = {"final_return": 0.9, "absolute_return": 0.9, "parameters": parameters, "wall_s": 1234.5}
        (path / "result.json").write_text(json.dumps(result, indent=1))
        if isinstance(run.mixer, TfcafConfig):
            (path / "tfcaf.json").write_text((BUNDLED / "lbf" / f"{run.env.task}.json").read_text())


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = configs(count)
        begin = time.perf_counter()
        make(Path(folder), runs)
        print(f"{count:,} directories created in {time.perf_counter() - begin:.1f} s; now collected, on one core:")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for _ in range(2):
            begin = time.perf_counter()
            collection = collect([Path(folder)])
            seconds = time.perf_counter() - begin
            methods = len({(record.task, record.method) for record in collection.finished})
            print(f"{collection.counts()}, {methods} pairs of task and method: {seconds:.2f} s")
            assert len(collection.finished) == count and methods == min(count, 2 * RATES * len(TASKS))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
