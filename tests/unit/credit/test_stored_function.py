"""Stored functions: a saved function loads unchanged, and an invalid file is an error that names the file."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from qllm_exp.config import registry, schema
from qllm_exp.config.load import config_class
from qllm_exp.credit import stored_function
from qllm_exp.credit.probe_states import extreme_states, task_states
from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import canonical_json
from qllm_exp.credit.refused import Refused
from qllm_exp.credit.stored_function import StoredFunction, bundled_path, load
from qllm_exp.envs import make_env
from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.matrix import Config as MatrixConfig
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.coder_evaluator import generate
from qllm_exp.generation.prompt_rendering import extract_code
from qllm_exp.generation.verify import Accepted, verify, verify_all
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

REQUEST = {"llm": {"model": "some-model"}, "prompts": "ab" * 32}


def make_function() -> StoredFunction:
    return StoredFunction(
        env="mpe",
        task="simple_spread",
        source="def credit_assignment(agents_q, global_state):\n    return agents_q.mean(1, keepdim=True)  # Ø\n",
        function="credit_assignment",
        program=Program(PROGRAM),
        prompt_hash="ab" * 32,
        key=hashlib.sha256(canonical_json(REQUEST).encode()).hexdigest(),
        request=REQUEST,
        provenance={"model": "some-model", "date": "2026-01-02", "procedure": "3 rounds of 3 candidates"},
        prompts={"coder": "You write.", "evaluator": "You judge."},
        transcript=(
            {
                "call": "round-1-coder-1",
                "messages": [{"role": "user", "content": "Write."}],
                "answer": "Done.",
                "outcome": "accepted",
            },
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


ROW = make_function().transcript[0]
COST = make_function().cost


def write_changed_file(path: Path, rehash: bool = False, **values: Any) -> Path:
    """Write a stored function with other values for some keys; ... removes a key. `rehash`: with the hash that fits."""
    make_function().save(path)
    data = json.loads(path.read_text())
    data.update(values)
    if rehash:
        data["hash"] = stored_function.content_hash(data)
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
        ({"env": 3}, "env must be a string, got 3"),
        ({"provenance": 3}, "provenance must be a dictionary"),
        ({"format": True}, "unknown format True"),
        ({"format": 2.0}, r"unknown format 2\.0"),
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
        ({"n_agents": 3.0}, r"n_agents=3\.0, but"),
        ({"function": "mixer"}, "'mixer' is not one of credit_assignment, QLLMNetwork"),
        ({"env": "../lbf"}, r"env '\.\./lbf' is not a name"),
        ({"env": "lbf env.name=evil"}, "is not a name that a stored function may have"),
        ({"env": "x" * 129}, "is not a name"),
        ({"env": ""}, "is not a name"),
        ({"task": "${oc.env:OPENAI_API_KEY}"}, r"task '\$\{oc\.env:OPENAI_API_KEY\}' is not a name"),
        ({"task": "a,b"}, "is not a name"),
        ({"task": "a\nb"}, r"task 'a\\+nb' is not a name"),
        ({"task": "a/../b"}, "is not a name"),
        ({"task": "/etc"}, "is not a name"),
        ({"task": "٣"}, "is not a name"),
        ({"key": "/../../marks"}, "key must be 64 hexadecimal digits or empty"),
        ({"key": "CD" * 32}, "key must be 64 hexadecimal digits or empty"),
        ({"prompt_hash": "x"}, "prompt_hash must be 64 hexadecimal digits or empty"),
        ({"key": "cd" * 32}, "its key cdcdcdcdcdcd is not the hash of its request, or of its source"),
        ({"request": {"another": 1}}, "is not the hash of its request"),
        ({"request": {}}, "is not the hash of its request, or of its source"),
        ({"prompt_hash": "00" * 32}, "its prompt hash is not that of its request"),
        ({"provenance": {"model": 5}}, r"provenance\.model must be a string, got 5"),
        ({"provenance": {"model": ["\x1b"]}}, r"provenance\.model must be a string, got \['\\x1b'\]"),
        ({"prompts": {"coder": None}}, r"prompts\.coder must be a string, got None"),
        ({"cost": {}}, "cost has no calls, tokens_in, tokens_out, usd"),
        ({"cost": {**COST, "usd": "12"}}, r"cost\.usd must be a number from 0 or null, got '12'"),
        ({"cost": {**COST, "usd": -1}}, r"cost\.usd must be"),
        ({"cost": {**COST, "calls": True}}, r"cost\.calls must be a whole number"),
        ({"cost": {**COST, "tokens_in": 1.5}}, r"cost\.tokens_in must be a whole number"),
        ({"cost": {**COST, "x": [1]}}, r"cost\.x must be a number, a string or null"),
        ({"transcript": ["user"]}, "transcript must be a list of dictionaries"),
        ({"transcript": {"a": 1}}, "transcript must be a list of dictionaries"),
        ({"transcript": [{"x": 1}]}, "transcript row 1: call must be a string, got None"),
        ({"transcript": [{**ROW, "outcome": 1}]}, "transcript row 1: outcome must be a string"),
        ({"transcript": [ROW, {**ROW, "messages": []}]}, "transcript row 2: messages must be a list with at least one"),
        ({"transcript": [{**ROW, "messages": [{"role": "user"}]}]}, "a message must have the texts role and content"),
        ({"transcript": [{**ROW, "seconds": "long"}]}, "seconds must be a number from 0 or null"),
        ({"transcript": [{**ROW, "x": {}}]}, "x must be a number, a string or null"),
        (
            {"program": {**PROGRAM, "constants": [{"dtype": "int32", "shape": [1], "data": [2**31]}], "output": 4}},
            "an int32 constant contains 2147483648",
        ),
    ],
)
def test_a_file_with_a_matching_hash_is_checked_as_well(tmp_path: Path, values: dict, reason: str) -> None:
    path = write_changed_file(tmp_path / "x.json", rehash=True, **values)
    with pytest.raises(UserError, match=reason) as error:
        load(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 1_000


@pytest.mark.parametrize(
    "values",
    [
        {"task": "smac/3s5z_vs.3:v+1@x"},
        {"env": "package.module_2"},
        {"cost": {"calls": 1, "tokens_in": 1, "tokens_out": 2, "usd": 0.5, "estimated": True}},
        {"provenance": {}, "prompts": {}, "transcript": [], "verdict": ""},
        {"request": {}, "key": "", "prompt_hash": "", "cost": {}},
        {"source": "# \x1b[31m \u202e\n"},  # what shows it makes it inert
    ],
)
def test_unusual_content_that_is_valid_is_loaded(tmp_path: Path, values: dict) -> None:
    stored = load(write_changed_file(tmp_path / "x.json", rehash=True, **values))
    assert {name: getattr(stored, name) for name in values if name != "transcript"} == {
        name: value for name, value in values.items() if name != "transcript"
    }


@pytest.mark.parametrize("sizes", [[], [3, 18]])
def test_the_key_of_an_imported_function_is_the_hash_of_its_source(tmp_path: Path, sizes: list[int]) -> None:
    source = "def credit_assignment(q, s): ..."
    key = hashlib.sha256(canonical_json([source, "mpe", "simple_spread", *sizes]).encode()).hexdigest()
    values = {"source": source, "key": key, "request": {}, "prompt_hash": "", "cost": {}}
    assert load(write_changed_file(tmp_path / f"{key}.json", rehash=True, **values)).key == key


def test_a_file_that_is_named_by_a_key_has_the_function_of_that_key(tmp_path: Path) -> None:
    function = make_function()
    function.save(tmp_path / f"{function.key}.json")
    assert load(tmp_path / f"{function.key}.json").key == function.key
    function.save(tmp_path / f"{'ab' * 32}.json")
    with pytest.raises(
        UserError, match=f"filed under the key abababababab, but holds the function of key {function.key[:12]}"
    ):
        load(tmp_path / f"{'ab' * 32}.json")


def test_a_function_that_could_not_be_loaded_again_is_saved_so_that_it_can(tmp_path: Path) -> None:
    row = {**ROW, "answer": "half \ud800", "messages": [{"role": "user", "content": "x" * 6_000_000}] * 3}
    replace(make_function(), transcript=(row,)).save(tmp_path / "x.json")
    stored = load(tmp_path / "x.json")
    assert stored.transcript[0]["answer"] == "half ?" and len(stored.transcript[0]["messages"]) == 1
    replace(make_function(), transcript=(row, row, row)).save(tmp_path / "x.json")
    assert load(tmp_path / "x.json").transcript == ()
    with pytest.raises(UserError, match="is not a name that a stored function may have"):
        replace(make_function(), task="a b").save(tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


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
    with pytest.raises(UserError, match="cannot be read: it is not a regular file"):
        load(tmp_path)


def test_a_file_that_is_not_plain_json_is_refused_with_its_name_made_inert(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m.json"
    make_function().save(path)
    text = path.read_text()
    for content, reason in {
        text.replace('"usd": null', '"usd": NaN').encode(): "NaN is not a number of JSON",
        text.replace('"usd": null', '"usd": 1e999').encode(): "1e999 is too large",
        text.replace('"calls": 1', '"calls": 1, "calls": 2').encode(): "the key 'calls' occurs twice",
        text.encode("utf-16"): "byte 0 is not UTF-8",
        b"\xef\xbb\xbf" + text.encode(): "BOM",
        text[: len(text) // 2].encode(): "is not JSON",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason) as error:
            load(path)
        assert str(error.value).isprintable() and r"\x1b[31m.json" in str(error.value)


def make_env_with_sizes(
    n_agents: int, state_dim: int, task_name: str = "simple_tag", state_kind: str = "features"
) -> TeamEnv:
    task = SimpleNamespace(env="mpe", task=task_name)
    return cast(TeamEnv, SimpleNamespace(task=task, n_agents=n_agents, state_dim=state_dim, state_kind=state_kind))


def test_fit_is_checked_against_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    make_function().save(path)
    load(path).check_fits(make_env_with_sizes(3, 18))
    load(path).check_written_for(make_env_with_sizes(3, 18, "simple_spread"))
    with pytest.raises(
        UserError,
        match=r"is for mpe/simple_spread, not for mpe/simple_tag\..*mixer\.file=.*mixer\.written_for=mpe/simple_spread",
    ):
        load(path).check_written_for(make_env_with_sizes(3, 18))
    with pytest.raises(
        UserError, match=r"x\.json is for 3 agents and a state of 18 columns, but env mpe/simple_tag has 2 agents"
    ):
        load(path).check_fits(make_env_with_sizes(2, 12))
    with pytest.raises(UserError, match=r"verified with env\.state=features.*Type env\.state=features, or import"):
        load(path).check_fits(make_env_with_sizes(3, 18, state_kind="observations"))


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ([["mul.Scalar", [{"ref": 0}, {"float": "nan"}], {}]], "its value or a weight is not finite"),
        ([["mul.Scalar", [{"ref": 0}, 1e38], {}], ["mul.Scalar", [{"ref": 3}, 1e3], {}]], "is not finite"),
        (
            [["to.dtype", [{"ref": 1}, {"dtype": "int64"}], {}], ["gather.default", [{"ref": 0}, 1, {"ref": 3}], {}]],
            "does not work on the states of the task",
        ),
    ],
)
def test_a_program_that_was_never_verified_is_tried_on_states(operations: list, reason: str) -> None:
    last = 2 + len(operations)
    mean = ["mean.dim", [{"ref": last}, [1], True], {}]
    program = Program({**PROGRAM, "operations": [*operations, mean], "output": last + 1})
    with pytest.raises(UserError, match=reason):
        replace(make_function(), program=program).check_values(torch.full((4, 18), 7.0))
    make_function().check_values(torch.zeros(4, 18))


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


def test_a_task_may_have_several_bundled_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_function, "BUNDLED", tmp_path)
    for name in ("a", "a.sample-1", "b"):
        make_function().save(tmp_path / "matrix" / f"{name}.json")
    run = schema.RunConfig(env=MatrixConfig(task="a"), mixer=TfcafConfig(), tfcaf=schema.GenerationConfig(sample=1))
    assert provide.locate(run).path == tmp_path / "matrix" / "a.sample-1.json"
    for task, sample, allowed in (("a", 2, "0, 1"), ("b", 1, "0")):
        run = replace(run, env=MatrixConfig(task=task), tfcaf=schema.GenerationConfig(sample=sample))
        with pytest.raises(
            UserError, match=rf"tfcaf\.sample={sample} is not bundled .* matrix/{task}\. Allowed: {allowed}\."
        ):
            provide.locate(run)


def test_every_bundled_file_loads_and_is_filed_under_its_task() -> None:
    for path in stored_function.BUNDLED.glob("*/*.json"):
        stored = load(path)
        task, _, sample = path.stem.partition(".sample-")
        assert (stored.env, stored.task) == (path.parent.name, task)
        assert stored.request["procedure"]["sample"] == int(sample or 0)


BUNDLED_FILES = sorted(stored_function.BUNDLED.glob("*/*.json"))
OF_EACH_ENV = {path.parent.name: path for path in reversed(BUNDLED_FILES)}
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


def verdicts(stored: StoredFunction, env: TeamEnv, enforce: bool, in_full: bool) -> dict[str, Accepted | Refused]:
    """Return today's verdict on each source that a transcript contains.

    Unless `in_full`, a source that was accepted then and not chosen counts as accepted.
    """
    outcomes: dict[str, str] = {}
    for row in (row for row in stored.transcript if row["role"] == "coder"):
        with contextlib.suppress(Refused):  # an answer without a function
            outcomes[extract_code(row["answer"])] = row["outcome"]
    known = {
        source: Accepted(source, stored.function, stored.program, True, ())
        for source, outcome in outcomes.items()
        if outcome == "accepted" and source != stored.source and not in_full
    }
    unknown = [source for source in outcomes if source not in known]
    return known | dict(zip(unknown, verify_all(unknown, env, enforce), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", BUNDLED_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_bundled_functions_are_reproduced_from_the_recorded_answers_to_the_current_prompts(path: Path) -> None:
    """Fails when a prompt, a task's description, a state layout or the procedure has changed, which makes the function stale.

    Of one function of each environment, all candidates are verified; of the others the chosen and the refused ones.
    """
    stored = load(path)
    options = schema.GenerationConfig(**{k: v for k, v in stored.request["procedure"].items() if k != "selection"})
    llm = FolderConfig(**{"path": "answers", **stored.request["llm"]})
    env_config = config_class("env", stored.env)(task=stored.task)
    run = schema.RunConfig(env=env_config, mixer=TfcafConfig(), llm=llm, tfcaf=options)
    prompts = provide.prompts_for(run)
    assert stored.prompts == {"coder": prompts.coder_system, "evaluator": prompts.evaluator_system}
    assert (stored.request, stored.key) == (provide.request_for(run), provide.key_for(run))
    with provide.small_environment(run) as env:
        known = verdicts(stored, env, provide.igm_enforced(run, env), in_full=path in OF_EACH_ENV.values())
        outcome = generate(prompts, options, RecordedModel(stored), lambda sources: [known[key] for key in sources])
        states = torch.cat([task_states(env, 64), extreme_states(env)])
    assert outcome.accepted.source == stored.source
    # The stored programs were traced before 0.2, and keep their hashes, so that runs keep their names. The values are equal.
    q = torch.randn(len(states), stored.n_agents, generator=torch.Generator().manual_seed(0))
    traced, recorded = (program.weights_and_bias(states) for program in (outcome.accepted.program, stored.program))
    values = [program(q, states) for program in (outcome.accepted.program, stored.program)]
    assert all(map(torch.equal, (*traced, values[0]), (*recorded, values[1])))
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


def test_a_function_that_was_imported_for_observations_is_another_one_and_fits_no_features(tmp_path: Path) -> None:
    source = "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(1, keepdim=True)\n"
    features, observations = (make_env(MatrixConfig(state=kind), 2, 0) for kind in ("features", "observations"))
    assert features.state_dim == observations.state_dim, "sizes are equal by accident"
    stored = [provide.import_function(verify(source, env, False), env, "a file") for env in (features, observations)]
    assert stored[0].key != stored[1].key and "state" not in stored[0].provenance
    for function, env, other in zip(stored, (features, observations), (observations, features), strict=True):
        function.save(tmp_path / f"{function.key}.json")
        loaded = load(tmp_path / f"{function.key}.json")
        loaded.check_fits(env)
        with pytest.raises(UserError, match=f"Type env.state={env.state_kind}, or import the function again"):
            loaded.check_fits(other)


def test_the_bundled_functions_are_for_features() -> None:
    run = schema.RunConfig(env=MatrixConfig(state="observations"), mixer=TfcafConfig())
    with pytest.raises(UserError, match=r"bundled functions read env\.state=features.*Type llm=openai .* leave out"):
        provide.locate(run)


def test_a_mixer_without_a_function_has_no_igm_gate() -> None:
    run = schema.RunConfig(mixer=QmixConfig())
    with pytest.raises(UserError, match=r"mixer=qmix does not use a credit-assignment function.*mixer=tfcaf"):
        provide.igm_enforced(run, make_env(run.env, 2, 0))
