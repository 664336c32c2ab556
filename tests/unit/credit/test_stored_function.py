"""Stored functions: a saved function loads unchanged, and an invalid file is an error that names the file."""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qllm_exp.config import registry, schema
from qllm_exp.config.load import config_class
from qllm_exp.credit import stored_function
from qllm_exp.credit.program import Program
from qllm_exp.credit.stored_function import StoredFunction, bundled_path, load
from qllm_exp.envs import make_env
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.coder_evaluator import generate
from qllm_exp.generation.verify import Accepted, verify_all
from qllm_exp.llm import CallFailed, Reply, Request
from qllm_exp.llm.folder import Config as FolderConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig

PROGRAM = {
    "version": 1,
    "n_agents": 3,
    "state_dim": 18,
    "constants": [],
    "operations": [["mean.dim", [{"ref": 0}, [1], True], {}]],
    "output": 3,
}


def make_function() -> StoredFunction:
    return StoredFunction(
        env="mpe",
        task="simple_spread",
        source="def credit_assignment(agents_q, global_state):\n    return agents_q.mean(1, keepdim=True)  # Ø\n",
        function="credit_assignment",
        program=Program(PROGRAM),
        prompt_hash="ab" * 32,
        key="cd" * 32,
        request={"llm": {"model": "some-model"}, "prompts": "ab" * 32},
        provenance={"model": "some-model", "date": "2026-01-02", "procedure": "3 rounds of 3 candidates"},
        prompts={"coder": "You write.", "evaluator": "You judge."},
        transcript=(
            {"call": "round-1-coder-1", "messages": [{"role": "user", "content": "Write."}], "answer": "Done."},
        ),
        cost={"calls": 1, "tokens_in": 10, "tokens_out": 5, "usd": None},
        verdict="the simplest",
    )


def test_load_gives_what_save_wrote(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    make_function().save(path)
    assert load(path) == make_function() and load(path).path == path
    assert os.listdir(path.parent) == ["x.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    make_function().save(path)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        make_function().save(path)
    assert load(path) == make_function() and os.listdir(tmp_path) == ["x.json"]


def write_changed_file(path: Path, **values: Any) -> Path:
    """Write a stored function with other values for some keys; ... removes a key."""
    make_function().save(path)
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"format": 9}, "unknown format 9; this package reads format 2"),
        ({"format": ...}, "no 'format'"),
        ({"source": ...}, r"missing keys \['source'\]"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"source": "def credit_assignment(q, s): return q"}, "content does not match its hash: the file was edited"),
        ({"transcript": []}, "the file was edited"),
        ({"prompt_hash": "00" * 32}, "the file was edited"),
        ({"hash": "00" * 32}, "the file was edited"),
        ({"n_agents": 4}, "the file was edited"),
        ({"env": 3}, "env must be a string"),
        ({"function": "mixer"}, "'mixer' is not one of credit_assignment, QLLMNetwork"),
        ({"provenance": 3}, "provenance must be a dictionary"),
        ({"transcript": ["user"]}, "transcript must be"),
    ],
)
def test_an_invalid_file_is_named_with_its_fault(tmp_path: Path, values: dict, reason: str) -> None:
    path = write_changed_file(tmp_path / "x.json", **values)
    with pytest.raises(UserError, match=reason) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"program": {**PROGRAM, "operations": [["system.default", [], {}]]}}, "not valid: operation 'system.default'"),
        ({"n_agents": 4}, "n_agents=4, but its program is for 3"),
        ({"state_dim": 17}, "state_dim=17, but its program is for 18"),
    ],
)
def test_a_file_with_a_matching_hash_is_checked_as_well(tmp_path: Path, values: dict, reason: str) -> None:
    path = write_changed_file(tmp_path / "x.json", **values)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"hash": stored_function.content_hash(data)}))
    with pytest.raises(UserError, match=reason):
        load(path)


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is not JSON"), ("[1]", "not a TFCAF file"), ("\udcff", "is not JSON")]
)
def test_a_file_that_is_not_a_stored_function_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=reason):
        load(path)


def test_a_missing_file_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist\. Pass an existing file with mixer\.file="):
        load(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


def make_env_with_sizes(n_agents: int, state_dim: int) -> TeamEnv:
    task = SimpleNamespace(env="mpe", task="simple_tag")
    return cast(TeamEnv, SimpleNamespace(task=task, n_agents=n_agents, state_dim=state_dim))


def test_fit_is_checked_against_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    make_function().save(path)
    load(path).check_fits(make_env_with_sizes(3, 18))
    with pytest.raises(
        UserError, match=r"x\.json is for 3 agents and a state of 18 columns, but env mpe/simple_tag has 2 agents"
    ):
        load(path).check_fits(make_env_with_sizes(2, 12))


def test_bundled_path_finds_the_task_or_lists_the_bundled_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_function, "BUNDLED", tmp_path)
    make_function().save(tmp_path / "mpe" / "simple_spread.json")
    assert load(bundled_path("mpe", "simple_spread")).task == "simple_spread"
    with pytest.raises(UserError, match=r"No TFCAF for lbf/x.*Bundled: mpe/simple_spread\..*mixer\.file="):
        bundled_path("lbf", "x")
    with pytest.raises(UserError, match="No TFCAF"):
        bundled_path("..", "x")


def test_every_bundled_file_loads_and_is_filed_under_its_task() -> None:
    for path in stored_function.BUNDLED.glob("*/*.json"):
        stored = load(path)
        assert (stored.env, stored.task) == (path.parent.name, path.stem)


BUNDLED_FILES = sorted(stored_function.BUNDLED.glob("*/*.json"))
PAPER_TASKS = {
    "mpe": ("simple_spread", "simple_adversary", "simple_tag"),
    "lbf": ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s", "15x15-4p-3f-2s"),
    "grf": (
        "academy_3_vs_1_with_keeper",
        "academy_pass_and_shoot_with_keeper",
        "academy_counterattack_easy",
        "academy_counterattack_hard",
    ),
    "matrix": ("climbing", "penalty-0", "penalty-25", "penalty-50", "penalty-75", "penalty-100"),
    "pettingzoo": ("mpe2.simple_spread_v3",),
}


class RecordedModel:
    """A language model that answers the conversations of a transcript as recorded, and no others."""

    def __init__(self, stored: StoredFunction) -> None:
        self.rows = {row["call"]: row for row in stored.transcript}

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        assert all(list(request.messages[1:]) == self.rows[request.name]["messages"] for request in requests)
        rows = [self.rows[request.name] for request in requests]
        return [Reply(row["answer"], row["model"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("path", BUNDLED_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_bundled_functions_are_reproduced_from_the_recorded_answers_to_the_current_prompts(path: Path) -> None:
    """Fails when a prompt, a task's description, a state layout or the procedure has changed, which makes the function stale."""
    stored = load(path)
    options = schema.GenerationConfig(**{**stored.request["procedure"], "probe": schema.ProbeConfig()})
    llm = FolderConfig(**{"path": "answers", **stored.request["llm"]})
    env_config = config_class("env", stored.env)(task=stored.task)
    run = schema.RunConfig(env=env_config, mixer=TfcafConfig(), llm=llm, tfcaf=options)
    prompts = provide.prompts_for(run)
    assert stored.prompts == {"coder": prompts.coder_system, "evaluator": prompts.evaluator_system}
    assert (stored.request, stored.key) == (provide.request_for(run), provide.key_for(run))
    with provide.small_environment(run) as env:
        enforce = provide.igm_enforced(run, env)
        outcome = generate(prompts, options, RecordedModel(stored), lambda sources: verify_all(sources, env, enforce))
    assert outcome.accepted.source == stored.source and outcome.accepted.program.hash == stored.program.hash
    assert [row["outcome"] for row in outcome.transcript] == [row["outcome"] for row in stored.transcript]
    assert stored.provenance["model"] == "a large language model" and stored.provenance["date"].startswith("2026-")


def test_every_default_task_and_every_task_of_the_papers_has_a_bundled_function() -> None:
    bundled_tasks = {(path.parent.name, path.stem) for path in BUNDLED_FILES}
    assert {(name, config_class("env", name)().task) for name in registry.choices("env")} <= bundled_tasks
    assert {(name, task) for name, tasks in PAPER_TASKS.items() for task in tasks} <= bundled_tasks


def test_the_same_source_imported_for_another_size_of_a_task_is_another_function() -> None:
    accepted = Accepted("def f(): ...", "f", cast(Any, SimpleNamespace(hash="")), True, ())
    configs = [MpeConfig(), MpeConfig(options={"n_agents": 6}), MpeConfig()]
    keys = [provide.import_function(accepted, make_env(config, 2, 0), "a file").key for config in configs]
    assert keys[0] == keys[2] != keys[1]


def test_a_mixer_without_a_function_has_no_igm_gate() -> None:
    run = schema.RunConfig(mixer=QmixConfig())
    with pytest.raises(UserError, match=r"mixer=qmix does not use a credit-assignment function.*mixer=tfcaf"):
        provide.igm_enforced(run, make_env(run.env, 2, 0))
