"""Text keeps its letters, whatever number it looks like."""

import pytest

from qllm_exp.config.compose import compose_run
from qllm_exp.config.overrides import combinations
from qllm_exp.config.text_options import is_text, quote

LOOK_LIKE_NUMBERS = [
    *("8609e12", "1e3", "1_000", "1.10", "0x10", "007", "+5", "-0", "2026-11-30", "2026", "1.", ".5e1", "inf", "NaN"),
    *("yes", "no", "on", "true", "False", "1:30", "8609e12abc", "1_0e3", "12-34"),
]


@pytest.mark.parametrize("text", LOOK_LIKE_NUMBERS)
def test_text_is_the_text_that_was_typed(text):
    run = compose_run([f"sweep.name={text}", f"sweep.tags=[a,{text}]", f"dir={text}", f"mixer.file={text}"])
    assert (run.sweep.name, run.sweep.tags, run.dir, run.mixer.file) == (text, ["a", text], text, text)


def test_text_of_a_sweep_is_the_text_that_was_typed():
    typed = [quote("mixer.file=8609e12,86aa,1_000"), "seed=0-1"]
    files = [compose_run(overrides).mixer.file for overrides in combinations(typed)]
    assert files == ["8609e12", "8609e12", "86aa", "86aa", "1_000", "1_000"]


@pytest.mark.parametrize(
    "typed",
    [
        *("train.learning_rate=1e-3", "train.total_steps=1_000", "train.share_parameters=true", "env.num_envs=1_6"),
        *("env.options.version=1.10", "seed=0,1", "hydra.launcher.mem_gb_per_run=1e1", "hydra.launcher.time=1:00:00"),
        *("mixer.file='8609e12'", 'sweep.tags=["1,1e3"]', "sweep.name=a1e3", "sweep.name=${env.name}", "sweep.tags=[]"),
    ],
)
def test_numbers_and_plain_or_quoted_text_stay_as_they_are(typed):
    assert quote(typed) == typed


@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("tracking.project=2024_01", "tracking.project='2024_01'"),
        ("++tracking.tags=[1.10, b,${env.name}]", "++tracking.tags=['1.10', b,${env.name}]"),
        ("llm.model=1e3", "llm.model='1e3'"),
        ("env.task=1e3,1e4", "env.task='1e3','1e4'"),
        ("hydra.launcher.partition=1e3", "hydra.launcher.partition='1e3'"),
        ("sweep.tags=[choice,1e3]", "sweep.tags=[choice,'1e3']"),
    ],
)
def test_what_hydra_would_change_is_quoted(typed, quoted):
    assert quote(typed) == quoted


def test_options_of_a_group_whose_choices_are_no_modules_stay_as_they_are():
    assert quote("train.learning_rate=5e-4,5e-3", ["train=quick", "train.learning_rate=5e-4,5e-3"]).endswith(
        "=5e-4,5e-3"
    )
    assert quote("tracking.project=1_000", ["tracking=wandb", "tracking.project=1_000"]) == "tracking.project='1_000'"


def test_an_option_of_a_users_own_choice_may_be_text(tmp_path, monkeypatch):
    (tmp_path / "own_env_with_text.py").write_text(
        "from dataclasses import dataclass\n"
        "from qllm_exp.config.schema import EnvConfig\n"
        "@dataclass\n"
        "class Config(EnvConfig):\n"
        "    release: str = '1.0'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_text("env.release")
    assert quote("env.release=1.10", ["env=own_env_with_text", "env.release=1.10"]) == "env.release='1.10'"
