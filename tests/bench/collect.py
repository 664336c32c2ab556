"""How long collecting takes. `python tests/bench/collect.py [RUNS]`: makes that many folders (10,000), then collects them twice.

The runs have 40 evaluations and 200 rows of training figures each (as 2M environment steps give), two mixers, three tasks and a
learning rate of their own for every tenth of a method's runs; half of them carry a credit-assignment function.
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


def runs(count: int) -> list[schema.RunConfig]:
    mixers = (QmixConfig(), TfcafConfig())
    groups = [(task, mixer, rate) for task in TASKS for mixer in mixers for rate in range(RATES)]
    return [
        schema.RunConfig(
            env=LbfConfig(task=task, num_envs=128),
            mixer=mixer,
            train=schema.TrainConfig(learning_rate=1e-4 * (1 + rate)),
            seed=at // len(groups),
        )
        for at in range(count)
        for task, mixer, rate in [groups[at % len(groups)]]
    ]


def metrics(run: schema.RunConfig) -> str:
    every = run.train.total_steps // TRAINING
    lines = []
    for at in range(1, TRAINING + 1):
        figures = {"return_mean": 0.1234567 + run.seed, "length_mean": 49.8, "loss": 1.36608146, "grad_norm": 0.87016}
        figures |= {"q_tot": 0.31712788, "epsilon": 0.7568, "wall_s": 0.931 * at}
        lines.append({"kind": "training", "env_step": at * every, "episodes": at * 200, "updates": at * 50, **figures})
        if at % (TRAINING // EVALUATIONS) == 0:
            figures = {"return_mean": 0.031253 * at, "return_std": 0.1210307, "length_mean": 50.0, "episodes": 100}
            lines.append({"kind": "evaluation", "env_step": at * every, "env_step_exact": at * every, **figures})
    lines.append({"kind": "absolute", "env_step": run.train.total_steps, "return_mean": 0.9, "return_std": 0.1})
    return "".join(json.dumps(line) + "\n" for line in lines)


def make(folder: Path, every: list[schema.RunConfig]) -> None:
    from omegaconf import OmegaConf

    texts: dict[str, str] = {}
    for run in every:
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
    with tempfile.TemporaryDirectory() as place:
        every = runs(count)
        begin = time.perf_counter()
        make(Path(place), every)
        print(f"{count:,} folders made in {time.perf_counter() - begin:.1f} s; now collected, on one core:")
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for _ in range(2):
            begin = time.perf_counter()
            found = collect([Path(place)])
            took = time.perf_counter() - begin
            names = len({(one.task, one.method) for one in found.finished})
            print(f"{found.counts()}, {names} methods on tasks: {took:.2f} s")
            assert len(found.finished) == count and names == min(count, 2 * RATES * len(TASKS))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
