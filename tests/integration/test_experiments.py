"""Every experiment preset of conf/experiment: composed as it is, and run to its end with tiny budgets."""

import os
import re
from dataclasses import replace
from pathlib import Path

import commands
import pytest
from loopback_llm import Call, Loopback
from omegaconf import OmegaConf

from qllm_exp.config import schema
from qllm_exp.config.compose import CONF, compose_run
from qllm_exp.search.progress import steps_left

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CALLS_MODEL = {
    "evaluator",
    "rounds",
    "candidates",
    "feedback",
    "state_description",
    "llm",
}  # ablations that call a language model
TINY = [
    *("seed=0", "train.total_steps=1200", "train.evaluation.every=600", "train.evaluation.episodes=4"),
    *("train.evaluation.absolute_episodes=4", "train.hidden=8", "train.batch_episodes=4"),
]
SOURCE = (
    "import torch\n\n\ndef credit_assignment(agents_q, global_state):\n    return agents_q.mean(dim=1, keepdim=True)\n"
)


def model(call: Call) -> str:
    """Answer as a language model whose evaluator selects the first candidate."""
    if "You judge functions" not in call.messages[0]["content"]:
        return f"```python\n{SOURCE}```"
    candidates = call.prompt.count("Candidate ")
    return str([1] + [0] * (candidates - 1)) if candidates else "Use the state."


def call(*overrides: str, imports: str = "") -> tuple[int, str]:
    environment = os.environ | {
        "OPENAI_API_KEY": "sk-none",
        "DEEPSEEK_API_KEY": "sk-none",
        "ANTHROPIC_API_KEY": "sk-none",
    }
    process = commands.run(["-m", "qllm_exp", "-m", *overrides], timeout=280, env=environment, imports=imports)
    return process.returncode, process.stdout + process.stderr


def header(name: str) -> str:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", NAMES)
def test_the_header_states_the_command_the_number_of_runs_and_what_the_plan_says_of_their_time(name, tmp_path):
    example = re.search(
        r"-m qllm_exp -m (experiment=\S+.*?)\s{2,}(\d+) runs.*?about ([\d.]+) core (hour|minute)", header(name)
    )
    assert example, "the command, the number of runs, and the time"
    code, text = call(*example[1].split(), f"dir={tmp_path}", f"tfcaf.cache={tmp_path / 'cache'}", "--dry-run")
    assert code == 0, text
    assert f"{example[2]} runs: 0 finished" in text, text
    if name != "ablation_search":  # the plan leaves out the trainings of a search, the header does not
        hours, minutes, seconds = (
            int(match[1]) if (match := re.search(rf"(\d+) {unit}\b[^;,]*of computing", text)) else 0
            for unit in ("h", "min", "s")
        )
        planned = hours + minutes / 60 + seconds / 3600
        assert float(example[3]) / {"hour": 1, "minute": 60}[example[4]] == pytest.approx(planned, rel=0.2), text


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ablation_search"])  # test_search.py runs that
def test_it_ends_with_a_table_and_a_figure(name, tmp_path):
    arguments = [f"experiment={name}", *TINY, f"dir={tmp_path / 'runs'}"]
    narrowed = {
        "ablation_search_tuning": ["train.learning_rate=0.0005,0.001"],
        "baselines": ["env=mpe"],
        "compatibility": ["env=mpe"],
        "matrix_games": ["env.task=climbing,penalty-50"],
        "methods": ["env=matrix", "env.task=climbing"],
        "smoke": ["env=lbf,matrix"],
        "tuned": ["env=mpe", "sweep.tune.trials=2", "sweep.tune.seeds=1"],
    }
    arguments += narrowed.get(name, [])
    with Loopback(model) as server:
        axis = name.removeprefix("ablation_")
        if axis in CALLS_MODEL:
            arguments += ["llm=openai", f"llm.api_base={server.url}", f"tfcaf.cache={tmp_path / 'cache'}", "env=lbf"]
            arguments.append("llm.model=openai/one,openai/other" if axis == "llm" else "llm.model=openai/one")
            for key in ("candidates", "rounds"):
                arguments.append(f"tfcaf.{key}=1,2" if axis == key else f"tfcaf.{key}=1")
            if axis != "llm":
                arguments.append("tfcaf.sample=0")
        code, text = call(*arguments, imports="litellm" if axis in CALLS_MODEL else "")
    assert code == 0, text
    assert "(n=1)" in (tmp_path / "runs" / name / "table.md").read_text()
    assert (tmp_path / "runs" / name / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_takes_precedence_over_the_experiment(tmp_path):
    code, text = call("experiment=baselines", "env=lbf", "seed=0-9", "mixer=vdn", f"dir={tmp_path}", "--dry-run")
    assert code == 0 and "30 runs: 0 finished" in text, text
    code, text = call("experiment=baselines", "env=matrix", f"dir={tmp_path}", "--dry-run")
    assert code == 2 and "No case of the experiment matches" in text
    process = commands.run(["-m", "qllm_exp", "experiment=smoke", f"dir={tmp_path}"])
    assert process.returncode == 2 and "is a sweep: add -m" in process.stderr
    assert not list(Path(tmp_path).iterdir())


def test_the_baselines_are_tuned_with_the_steps_of_a_search_and_seeds_that_no_table_has():
    search, tuning = (
        OmegaConf.load(CONF / "experiment" / f"ablation_search{suffix}.yaml") for suffix in ("", "_tuning")
    )
    grid = tuning.hydra.sweeper.params
    trainings = len(grid["train.learning_rate"]) * len(grid["algorithm.td_lambda"]) * len(integers(grid.seed))
    run = compose_run(["mixer=tfcaf", "tfcaf.search.method=evolve", "tfcaf.search.reflection.baselines=false"])
    options = replace(
        run.tfcaf,
        candidates=search.tfcaf.candidates,
        search=replace(run.tfcaf.search, generations=search.tfcaf.search.generations),
    )
    steps = trainings * tuning.train.total_steps
    assert 1 <= steps / steps_left([], options, 1) < 1.2 and tuning.train.total_steps == options.search.steps[-1]
    assert not {*integers(grid.seed)} & {*integers(search.hydra.sweeper.params.seed), *schema.SEARCH_SEEDS}
    assert run.train.learning_rate in grid["train.learning_rate"], "the settings that the ablation has by default"
    assert run.algorithm.td_lambda in grid["algorithm.td_lambda"]


def integers(text: str) -> range:
    """Return the seeds of 'FIRST-LAST'."""
    first, last = map(int, text.split("-"))
    return range(first, last + 1)
