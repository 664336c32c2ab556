"""Every experiment of conf/experiment: composed as it is, and run whole with tiny budgets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_llm import Call, Loopback

from qllm_exp.config.compose import CONF

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
ASKING = {"evaluator", "rounds", "candidates", "feedback", "state_description", "llm"}  # ablations that ask a model
TINY = [
    *("seed=0", "train.total_steps=3000", "train.evaluation.every=1500", "train.evaluation.episodes=8"),
    *("train.evaluation.absolute_episodes=8", "train.hidden=8"),
]
SOURCE = (
    "import torch\n\n\ndef credit_assignment(agents_q, global_state):\n    return agents_q.mean(dim=1, keepdim=True)\n"
)


def model(call: Call) -> str:
    """A model whose evaluator takes the first candidate."""
    if "You judge functions" not in call.messages[0]["content"]:
        return f"```python\n{SOURCE}```"
    number = call.prompt.count("Candidate ")
    return str([1] + [0] * (number - 1)) if number else "Use the state."


def call(*overrides: str) -> tuple[int, str]:
    environment = os.environ | {
        "OPENAI_API_KEY": "sk-none",
        "DEEPSEEK_API_KEY": "sk-none",
        "ANTHROPIC_API_KEY": "sk-none",
    }
    done = subprocess.run(
        [sys.executable, "-m", "qllm_exp", "-m", *overrides],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


def header(name: str) -> str:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_how_many_runs_it_is(name, tmp_path):
    typed = re.search(r"-m qllm_exp -m (experiment=\S+.*?)\s{2,}(\d+) runs", header(name))
    assert typed and "core" in header(name), "the command, the number of runs, and about how long"
    code, text = call(*typed[1].split(), f"dir={tmp_path}", f"tfcaf.cache={tmp_path / 'cache'}", "--dry-run")
    assert code == 0, text
    assert f"{typed[2]} runs: 0 done" in text, text


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_ends_in_its_own_table_and_figure(name, tmp_path):
    given = [f"experiment={name}", *TINY, f"dir={tmp_path / 'runs'}"]
    given += {"baselines": ["env=lbf,mpe"], "methods": ["env=matrix", "env.task=climbing"]}.get(name, [])
    with Loopback(model) as server:
        axis = name.removeprefix("ablation_")
        if axis in ASKING:
            given += ["llm=openai", f"llm.api_base={server.url}", f"tfcaf.cache={tmp_path / 'cache'}", "env=lbf"]
            given += [f"llm.model=openai/one{',openai/other' * (axis == 'llm')}"]
            given += [f"tfcaf.{one}=1{',2' * (axis == one)}" for one in ("candidates", "rounds")]
            given += ["tfcaf.sample=0"] * (axis != "llm")
        code, text = call(*given)
    assert code == 0, text
    assert "(n=1)" in (tmp_path / "runs" / name / "table.md").read_text()
    assert (tmp_path / "runs" / name / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_counts_more_than_the_experiment(tmp_path):
    code, text = call("experiment=baselines", "env=lbf", "seed=0-9", "mixer=vdn", f"dir={tmp_path}", "--dry-run")
    assert code == 0 and "30 runs: 0 done" in text, text
    code, text = call("experiment=baselines", "env=matrix", f"dir={tmp_path}", "--dry-run")
    assert code == 2 and "None of the experiment's cases goes with" in text
    done = subprocess.run(
        [sys.executable, "-m", "qllm_exp", "experiment=smoke", f"dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "is a sweep: add -m" in done.stderr and not list(Path(tmp_path).iterdir())
