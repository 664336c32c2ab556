"""--only filters runs by the values of their keys, unfinished runs too."""

import json
from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.config import schema
from qllm_exp.envs.grf.env import Config as GrfConfig
from qllm_exp.errors import UserError
from qllm_exp.mixers.vdn import Config as VdnConfig
from qllm_exp.results.records.collect import Collection, collect, filter_runs

OTHER = "10x10-3p-3f-2s"


@pytest.fixture
def runs(tmp_path: Path) -> Collection:
    for task in ("8x8-2p-2f-coop-2s", OTHER):
        for mixer in ("qmix", "vdn", "none"):
            for seed in range(3):
                make_run(tmp_path, run_config(mixer, seed, task), 0.5)
    for rate in (1e-3, 1e-4):
        make_run(
            tmp_path, run_config("qmix", 0, "climbing", "matrix", train=schema.TrainConfig(learning_rate=rate)), 1.0
        )
    make_unfinished_run(tmp_path, run_config("vdn", 7), "failed")
    make_unfinished_run(
        tmp_path, run_config("qmix", 8, "climbing", "matrix", train=schema.TrainConfig(learning_rate=1e-4)), "failed"
    )
    (tmp_path / "sweep").mkdir()
    missing = ["lbf_10x10-3p-3f-2s_q-learning_none_s9_00000000", "x"]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"runs": missing}))
    return collect([tmp_path])


def kept(runs: Collection, *conditions: str) -> tuple[int, list[str]]:
    """Return the number of finished runs, and method and seed of the others."""
    filtered = filter_runs(runs, conditions)
    return len(filtered.finished), sorted(f"{run.method}{run.seed}" for run in filtered.unfinished)


def test_without_a_condition_nothing_changes(runs: Collection) -> None:
    assert filter_runs(runs, []) == runs and len(runs.finished) == 20 and len(runs.unfinished) == 4


@pytest.mark.parametrize(
    ("conditions", "finished", "others"),
    [
        (["mixer=qmix,vdn"], 14, ["None", "qmix8", "vdn7"]),
        (["mixer=none"], 6, ["None", "none9"]),
        (["env=lbf"], 18, ["None", "none9", "vdn7"]),
        (["task=climbing"], 2, ["None", "qmix8"]),
        (["mixer=qmix", f"env.task={OTHER}"], 3, ["None"]),
        (["seed=0-1"], 14, ["None"]),
        (["seed=2,7-9"], 6, ["None", "none9", "qmix8", "vdn7"]),
        (["train.learning_rate=0.0001"], 1, ["None", "none9", "qmix8"]),
        (["train.learning_rate=1e-4"], 1, ["None", "none9", "qmix8"]),
        (["train.total_steps=2e6"], 20, ["None", "none9", "qmix8", "vdn7"]),
        (["method=vdn"], 6, ["None", "vdn7"]),
        (["method=qmix learning_rate=0.0001"], 1, ["None", "qmix8"]),
        (["algorithm=q_learning"], 20, ["None", "none9", "qmix8", "vdn7"]),
    ],
)
def test_all_conditions_hold(runs: Collection, conditions: list[str], finished: int, others: list[str]) -> None:
    """'None' is the folder of which nothing is known: it may be of any kind."""
    left, names = kept(runs, *conditions)
    assert (left, [name.removesuffix("None") or "None" for name in names]) == (finished, others)


def test_a_run_that_is_not_there_is_known_by_its_name(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, run_config("none", seed), 0.5)
    (tmp_path / "sweep").mkdir()
    names = [f"lbf_8x8-2p-2f-coop-2s_{method}_s9_00000000" for method in ("mappo_none", "q-learning_none")]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"runs": names}))
    runs = collect([tmp_path])
    assert kept(runs, "mixer=none") == (2, ["mappo9", "none9"])
    assert kept(runs, "algorithm=mappo") == (0, ["mappo9"])


def test_a_value_with_a_comma_is_given_as_a_whole(tmp_path: Path) -> None:
    for rewards in ("scoring", "scoring,checkpoints"):
        run = schema.RunConfig(env=GrfConfig(rewards=rewards), mixer=VdnConfig())
        make_run(tmp_path, run, 0.5)
    both = collect([tmp_path])
    assert kept(both, "env.rewards=scoring,checkpoints")[0] == kept(both, "env.rewards=scoring")[0] == 1


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("qmix", r"--only qmix: expected KEY=VALUE"),
        ("mixer=qmx", r"has mixer=qmx\. Did you mean 'qmix'\? Available: qmix, vdn, none\."),
        ("mixer=vdn,qmx", r"has mixer=qmx\. Did you mean 'qmix'"),
        ("mixr=qmix", r"'mixr' is not a key of these runs\. Did you mean 'mixer'"),
        ("seed=20-30", r"has seed=20\. Available: 0, 1, 2, 7, 8, 9\."),
        ("seed=4-2", r"runs backwards"),
    ],
)
def test_what_no_run_has_is_refused(runs: Collection, condition: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        filter_runs(runs, [condition])


def test_conditions_that_hold_for_no_run_together_are_refused(runs: Collection) -> None:
    with pytest.raises(UserError, match="no remaining run has env=matrix"):
        filter_runs(runs, ["mixer=vdn", "env=matrix"])
