"""The documented example of an environment, a mixer, an algorithm and a sweep preset from outside the package."""

import json
import os
from pathlib import Path

import commands
import torch
from attentive import Attentive

OWN = Path(__file__).parents[2] / "docs" / "examples" / "own"
TINY = ["train=quick", "train.total_steps=2000", "train.evaluation.every=1000", "train.evaluation.absolute_episodes=20"]


def call(*arguments: str, module: str = "qllm_exp") -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(OWN)}
    process = commands.run(["-m", module, *arguments], timeout=240, env=environment)
    return process.returncode, process.stdout + process.stderr


def test_they_are_swept_together_with_those_of_the_package(tmp_path: Path) -> None:
    choices = ["env=meeting,matrix", "mixer=attentive,vdn", "seed=0-1"]
    arguments = ["-m", "--config-dir", str(OWN / "conf"), *choices, *TINY, f"dir={tmp_path}"]
    code, text = call(*arguments)
    assert code == 0, text
    assert "| env/task" in text and "| vdn" in text and "| attentive" in text
    assert len(list(tmp_path.glob("meeting_2p_q-learning_attentive_s?_*/result.json"))) == 2
    assert len(list(tmp_path.glob("matrix_climbing_*/result.json"))) == 4
    code, text = call(*arguments)
    assert code == 0 and "8 finished, 0 running, 0 queued, 0 to run" in text, "the same command has nothing left to do"
    code, text = call("table", str(tmp_path), "--only", "env=meeting", module="qllm_exp.results")
    assert code == 0 and "meeting/2p" in text and "attentive" in text


def test_their_options_are_checked_like_those_of_the_package() -> None:
    own = ["--config-dir", str(OWN / "conf")]
    for overrides, message in (
        (["mixer=atentive"], "mixer=atentive is unknown. Did you mean 'attentive'? Allowed: attentive, none,"),
        (["env=meeting", "env.cels=9"], "Unknown key 'env.cels'. Did you mean 'env.cells'?"),
        (["env=meeting", "env.cells=1"], "env.cells=1 is out of bounds. Allowed: 2 to 100."),
        (["env=meeting", "env.task=9p"], "env.task='9p' is unknown. Allowed: 2p, 3p, 4p."),
    ):
        code, text = call(*own, *overrides)
        assert (code, text.count("\n")) == (2, 1) and message in text, text
    code, text = call("--config-dir", "nowhere")
    assert code == 2 and "--config-dir nowhere: this folder does not exist." in text


def test_the_algorithm_trains_and_logs_its_metric(tmp_path: Path) -> None:
    arguments = ["--config-dir", str(OWN / "conf"), "env=matrix", "algorithm=calm", f"dir={tmp_path}"]
    code, text = call(
        *arguments, "mixer=vdn", "algorithm.penalty=0.1", "env.num_envs=16", *TINY, "train.total_steps=20000"
    )
    assert code == 0, text
    (metrics,) = tmp_path.glob("matrix_climbing_calm_vdn_s0_*/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert any(row.get("squared_q", 0) > 0 for row in rows if row["kind"] == "training")
    code, text = call(*arguments, "mixer=qplex")
    assert code == 2 and "algorithm=calm does not accept mixer=qplex. It accepts: vdn, qmix, none." in text


def test_the_sweep_preset_has_its_runs(tmp_path: Path) -> None:
    arguments = ("-m", "--config-dir", str(OWN / "conf"), "experiment=meeting_mixers", f"dir={tmp_path}", "--dry-run")
    code, text = call(*arguments)
    assert code == 0 and "30 runs" in text, text
    code, text = call(*arguments, "env=meeting", "seed=0-1")
    assert code == 0 and "6 runs" in text, text


def test_a_language_model_can_write_a_function_for_them() -> None:
    arguments = ("generate", "--config-dir", str(OWN / "conf"), "env=meeting", "env.cells=9", "llm=openai", "--dry-run")
    code, text = call(*arguments, module="qllm_exp.tfcaf")
    assert code == 0 and "agent 1 cell  0 to 8 cells" in text and "row of 9 cells" in text, text


def test_the_mixer_is_monotone_and_its_credits_sum_to_the_number_of_agents() -> None:
    mixer = Attentive(n_agents=3, state_dim=2, temperature=0.5)
    qs, state = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)
    (slopes,) = torch.autograd.grad(mixer(qs, state).sum(), qs)
    assert (slopes > 0).all() and torch.allclose(slopes.sum(-1), torch.full((4,), 3.0))
