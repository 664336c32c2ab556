"""The documented example of an environment and a mixer from outside the package, as its README says to run it."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from attentive import Attentive

OWN = Path(__file__).parents[1] / "own"
TINY = ["train=quick", "train.total_steps=2000", "train.evaluation.every=1000", "train.evaluation.absolute_episodes=20"]


def call(*words: str, module: str = "qllm_exp") -> tuple[int, str]:
    command = [sys.executable, "-m", module, *words]
    environment = os.environ | {"PYTHONPATH": str(OWN)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_they_are_swept_over_beside_those_of_the_package(tmp_path: Path) -> None:
    choices = ["env=meeting,matrix", "mixer=attentive,vdn", "seed=0-1"]
    words = ["-m", "--config-dir", str(OWN / "conf"), *choices, *TINY, f"dir={tmp_path}"]
    code, text = call(*words)
    assert code == 0, text
    assert "| env/task" in text and "| vdn" in text and "| attentive" in text
    assert len(list(tmp_path.glob("meeting_2p_q-learning_attentive_s?_*/result.json"))) == 2
    assert len(list(tmp_path.glob("matrix_climbing_*/result.json"))) == 4
    code, text = call(*words)
    assert code == 0 and "8 done, 0 running, 0 queued, 0 to run" in text, "the same command has nothing left to do"
    code, text = call("table", str(tmp_path), "--only", "env=meeting", module="qllm_exp.results")
    assert code == 0 and "meeting/2p" in text and "attentive" in text


def test_their_words_are_checked_like_others() -> None:
    own = ["--config-dir", str(OWN / "conf")]
    for wrong, said in (
        (["mixer=atentive"], "mixer=atentive is unknown. Did you mean 'attentive'? Allowed: attentive, none,"),
        (["env=meeting", "env.cels=9"], "Unknown key 'env.cels'. Did you mean 'env.cells'?"),
        (["env=meeting", "env.cells=1"], "env.cells=1 is out of bounds: it goes from 2 to 100."),
        (["env=meeting", "env.task=9p"], "env.task='9p' is unknown. Allowed: 2p, 3p, 4p."),
    ):
        code, text = call(*own, *wrong)
        assert (code, text.count("\n")) == (2, 1) and said in text, text
    code, text = call("--config-dir", "nowhere")
    assert code == 2 and "--config-dir nowhere: there is no such folder." in text


def test_a_language_model_can_be_asked_about_them() -> None:
    words = ("generate", "--config-dir", str(OWN / "conf"), "env=meeting", "env.cells=9", "llm=openai", "--dry-run")
    code, text = call(*words, module="qllm_exp.tfcaf")
    assert code == 0 and "agent 1 cell  0 to 8 cells" in text and "row of 9 cells" in text, text


def test_the_mixer_is_what_its_docstring_says() -> None:
    mixer = Attentive(n_agents=3, state_dim=2, temperature=0.5)
    qs, state = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)
    (slopes,) = torch.autograd.grad(mixer(qs, state).sum(), qs)
    assert (slopes > 0).all() and torch.allclose(slopes.sum(-1), torch.full((4,), 3.0))
