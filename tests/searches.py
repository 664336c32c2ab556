"""A search without a language model and without training: scripted answers, and runs whose returns follow from their function."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qllm_exp.config.compose import compose_run
from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.config.schema import RunConfig
from qllm_exp.credit import stored_function
from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.envs import make_env
from qllm_exp.envs.base import TeamEnv
from qllm_exp.experiment import build_algorithm
from qllm_exp.generation import provide
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import Backend, CallFailed, Reply, Request
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.search import procedure, trainings
from qllm_exp.search.search_directory import SearchDirectory
from qllm_exp.sweep.launcher import Work
from qllm_exp.sweep.plan import Plan, plan_configs
from qllm_exp.sweep.pool import RunOutcome
from qllm_exp.training.checkpoint import to_bytes
from qllm_exp.utils.files import strict_json, write_atomically

OPTIONS = [
    *(
        "env=lbf",
        "env.task=5x5-2p-1f",
        "env.num_envs=4",
        "env.episode_limit=6",
        "train=quick",
        "train.hidden=8",
        "llm=folder",
    ),
    *(
        "llm.path=unused",
        "tfcaf.candidates=3",
        "tfcaf.retries=1",
        "tfcaf.search.method=evolve",
        "tfcaf.search.generations=3",
    ),
    *("tfcaf.search.steps=[100,200]", "tfcaf.search.seeds=[1,2]", "tfcaf.search.migration=2"),
]


def source(share: float) -> str:
    """Return a function that gives agent 0 a share of the credit."""
    return (
        "import torch\n\n"
        "def credit_assignment(agents_q, global_state):\n"
        f"    return {share} * agents_q[:, :1] + {round(1 - share, 4)} * agents_q[:, 1:2]\n"
    )


def answer(text: str) -> str:
    """Return the answer of a model that writes a source."""
    return f"The nearer agent decides.\n```python\n{text}```\n"


def shares(request: Request) -> str:
    """Answer with another function for each call: agent 0 has 0.6, 0.61, ... of the credit."""
    generation, candidate = map(int, re.findall(r"\d+", request.name)[:2])
    return answer(source(round(0.6 + 0.03 * generation + 0.01 * candidate, 4)))


class Model(Backend):
    """A language model that answers by a function of the request.

    Attributes:
        calls: names of the calls that were paid for.
        requests: requests by name.
    """

    def __init__(self, script: Callable[[Request], str] = shares, usd: float = 0.01) -> None:
        self.script, self.usd = script, usd
        self.calls: list[str] = []
        self.requests: dict[str, Request] = {}

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        self.calls += [request.name for request in requests]
        self.requests |= {request.name: request for request in requests}
        return [Reply(self.script(request), "scripted", 100, 10, self.usd) for request in requests]

    def worst_case_usd(self, requests: Sequence[Request]) -> float:
        return self.usd * len(requests)


def share_of(directory: RunDirectory) -> float:
    """Return the share of agent 0 in the function of a run; 0.5 for a baseline."""
    if not directory.tfcaf.exists():
        return 0.5
    constants = stored_function.load(directory.tfcaf).program.with_literals_as_constants(0.0).constants
    return float(next(iter(constants.values())))


class Launcher:
    """Ends runs at once: their returns rise linearly to a value that follows from the function and the seed.

    Args:
        value: the last return of a run; None: it has diverged.

    Attributes:
        started: names of all runs that were started.
        configs: configurations of the runs, which take longer to read than everything else here.
    """

    waits = True

    def __init__(self, value: Callable[[RunDirectory], float | None] = share_of) -> None:
        self.value = value
        self.started: list[str] = []
        self.configs: dict[Path, RunConfig] = {}

    def options(self) -> dict[str, Any]:
        return {"name": "local"}

    def device_resolver(self) -> DeviceResolver:
        return resolve_device

    def memory(self) -> None:
        return None

    def max_parallel(self, device: str) -> int:
        return 1

    def start(self, sweep: Sweep, work: Work) -> list[RunOutcome]:
        for directory in work.directories:
            work.create(directory)
            self.started.append(directory.path.name)
            self.end(directory)
        return [RunOutcome(directory) for directory in work.directories]

    def end(self, directory: RunDirectory) -> None:
        """Write what a run leaves behind."""
        run, last = self.configs[directory.path], self.value(directory)
        if last is None:
            directory.set_status_from_outside("failed", error="Training diverged: at step 100")
            return
        steps = run.train.total_steps
        rows = [
            {
                "kind": "evaluation",
                "env_step": steps * point // 10,
                "env_step_exact": steps * point // 10,
                "return_mean": last * point / 10,
            }
            for point in range(11)
        ]
        training = {"kind": "training", "env_step": steps, "grad_norm": 2.0}
        directory.metrics.write_text("".join(strict_json(row) + "\n" for row in [*rows, training]))
        env = make_env(run.env, 4, 0)
        algorithm = build_algorithm(run, directory, env)
        if run.mixer.name == "tfcaf" and run.mixer.trainable_constants:  # type: ignore[attr-defined]  # of its Config
            for name, theta in algorithm.mixer.named_parameters():
                theta.data.fill_(0.1 if name == min(name for name, _ in algorithm.mixer.named_parameters()) else 0.0)
        parameters = algorithm.policy_state_dict()
        write_atomically(directory.policy, to_bytes({"last": parameters, "best": parameters}))
        directory.finish({"final_return": last, "absolute_return": last, "env_steps": steps, "wall_s": 36.0})


def accept_all(sources: Sequence[str], env: TeamEnv, enforce: bool) -> list[Accepted | Refused]:
    """Accept sources with two weights in them, without a sandbox: the program is their weighted sum of two agents' Qs."""
    return [Accepted(source, "credit_assignment", weighted_sum(source, env.state_dim), True, ()) for source in sources]


def weighted_sum(source: str, state_dim: int) -> Program:
    """Return the program of the first two decimal numbers of a source as weights."""
    first, second = (float(number) for number in re.findall(r"\d+\.\d+", source)[:2])
    operations = [
        ["slice.Tensor", [{"ref": 0}, 1, 0, 1], {}],
        ["mul.Tensor", [{"ref": 3}, first], {}],
        ["slice.Tensor", [{"ref": 0}, 1, 1, 2], {}],
        ["mul.Tensor", [{"ref": 5}, second], {}],
        ["add.Tensor", [{"ref": 4}, {"ref": 6}], {}],
    ]
    sizes = {"n_agents": 2, "state_dim": state_dim}
    return Program({"version": 1, **sizes, "constants": [], "operations": operations, "output": 7})


class Probes:
    """Accepts every program."""

    def __init__(self, *arguments: Any) -> None: ...

    def check(self, program: Program) -> tuple[bool, tuple[str, ...]]:
        return True, ()


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    """Return the configuration of a search, which no test changes; composing it takes as long as half a search."""
    return compose_run([*OPTIONS, *overrides])


class Searches:
    """Runs searches in a folder.

    Args:
        folder: of cache and runs.
        monkeypatch: replaces model and verification.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.setattr(procedure, "verify_all", accept_all)
        monkeypatch.setattr(procedure, "Probe", Probes)

    def config(self, *overrides: str) -> RunConfig:
        run = _composed(overrides)
        tfcaf = replace(run.tfcaf, cache=str(self.folder / "cache"))
        return replace(run, dir=str(self.folder / "runs"), tfcaf=tfcaf)

    def run(self, *overrides: str, model: Model | None = None, launcher: Launcher | None = None) -> SearchDirectory:
        """Run a search under the claim of the store, as the command does, and return its directory."""
        scripted = model or Model()
        self.monkeypatch.setattr(procedure.llm, "make_backend", lambda config: scripted)
        return self.search(self.config(*overrides), launcher or Launcher())

    def search(self, run: RunConfig, launcher: Launcher) -> SearchDirectory:
        """Run a search with the models that `make_backend` makes."""

        def plan(configs: Sequence[RunConfig], *others: Any) -> Plan:
            planned = plan_configs(configs, *others)
            launcher.configs |= {ready.directory.path: ready.config for ready in planned.runs}
            return planned

        self.monkeypatch.setattr(trainings, "plan_configs", plan)
        provide.provide(run, lambda checked: procedure.search(checked, launcher))
        return SearchDirectory(procedure.search_path(run))


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Searches:
    return Searches(tmp_path, monkeypatch)
