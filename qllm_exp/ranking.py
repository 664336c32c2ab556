"""Short training runs that rank candidate credit-assignment functions (tfcaf.selection=probe)."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qllm_exp import schema
from qllm_exp.errors import UserError
from qllm_exp.preparation import check, prepare
from qllm_exp.tfcaf import provide
from qllm_exp.tfcaf.coder_evaluator import Rank
from qllm_exp.tfcaf.verify import Accepted


def ranking(run: schema.Run) -> Rank:
    """Gives each candidate the mean return, over `run.tfcaf.probe.seeds`, of the last evaluation of a short training with it."""

    def rank(candidates: Sequence[Accepted]) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="qllm_exp-") as folder:
            return [_short_training(run, one, Path(folder) / str(number)) for number, one in enumerate(candidates)]

    return rank


def _short_training(run: schema.Run, candidate: Accepted, folder: Path) -> float:
    assert isinstance(run.mixer, schema.Tfcaf)
    file = folder / "candidate.json"
    with provide.environment(run) as env:
        provide.imported(candidate, env, "a candidate").save(file)
    steps = run.tfcaf.probe.total_steps
    evaluation = replace(run.train.evaluation, every=steps, absolute_episodes=1)
    train = replace(run.train, total_steps=steps, evaluation=evaluation)
    mixer = replace(run.mixer, file=str(file))
    returns = []
    for seed in range(run.tfcaf.probe.seeds):
        ready = prepare(check(replace(run, mixer=mixer, train=train, seed=seed, dir=str(folder), device="auto")))
        ready.directory.create(ready.run, ready.tfcaf)
        command = [sys.executable, "-m", "qllm_exp.experiment", str(ready.directory.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        result = ready.directory.result()
        if result is None:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"A short training for tfcaf.selection=probe failed: {said[-1]}")
        returns.append(float(result["final_return"]))
    return sum(returns) / len(returns)
