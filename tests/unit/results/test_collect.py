"""Run directories become records: each run once, finished and unfinished separately, grouped only if they are one method."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from qllm_exp.algorithms.mappo import Config as MappoConfig
from qllm_exp.algorithms.q_learning import Config as QLearningConfig
from qllm_exp.config import schema
from qllm_exp.envs.lbf import Config as LbfConfig
from qllm_exp.envs.mpe.env import Config as MpeConfig
from qllm_exp.errors import UserError
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.mixers.none import Config as NoMixerConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.mixers.vdn import Config as VdnConfig
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.reader import Reader
from qllm_exp.runs.metrics import read_rows
from qllm_exp.runs.run_directory import RunDirectory


def row(step: int, value: float = 1.0, kind: str = "evaluation", **more: Any) -> str:
    return json.dumps({"kind": kind, "env_step": step, "return_mean": value, **more}) + "\n"


def run_folder(
    path: Path, run: schema.RunConfig, program: object = None, finished: bool = True, value: float = 1.0
) -> Path:
    path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(run)), path / "config.yaml")
    lines = row(0, 0.0) + row(5, 0.5, "training", loss=0.1) + row(10, value, episodes=32) + row(10, value, "absolute")
    (path / "metrics.jsonl").write_text(lines)
    if finished:
        result = {
            "final_return": value,
            "absolute_return": value,
            "wall_s": 3.5,
            "parameters": {"agent": 5, "mixer": 2},
        }
        (path / "result.json").write_text(json.dumps(result))
    if program is not None:
        entry = {"program": program, "cost": {"calls": 4, "usd": 0.1}, "provenance": {"model": "x"}}
        (path / "tfcaf.json").write_text(json.dumps(entry))
    return path


def vdn(**more: Any) -> schema.RunConfig:
    return schema.RunConfig(mixer=VdnConfig(), **more)


def names(paths: list[Path]) -> list[str]:
    return [record.method for record in collect(paths).finished]


def named(tmp_path: Path, *runs: schema.RunConfig, programs: list[Any] | None = None) -> list[str]:
    run_programs = programs or [None] * len(runs)
    pairs = enumerate(zip(runs, run_programs, strict=True))
    return names([run_folder(tmp_path / str(at), run, program) for at, (run, program) in pairs])


# What a record holds


def test_a_record_has_the_content_of_the_run_directory(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "one", schema.RunConfig(seed=3), {"a": 1}, value=0.9)
    (path / "versions.json").write_text(json.dumps({"qllm_exp": "0.1.0"}))
    (record,) = collect([path]).finished
    assert (record.path, record.name, record.task, record.method, record.seed) == (
        path,
        "one",
        "lbf/8x8-2p-2f-coop-2s",
        "tfcaf",
        3,
    )
    assert (record.steps, record.returns, record.parameters, record.wall_s) == ((0, 10), (0.0, 0.9), 7, 3.5)
    assert record.settings["train.learning_rate"] == 5e-4 and record.settings["llm.name"] == "bundled"
    assert record.final["episodes"] == 32 and record.absolute["kind"] == "absolute" and record.differs == {}
    assert (
        record.cost["usd"] == 0.1 and record.provenance == {"model": "x"} and record.versions == {"qllm_exp": "0.1.0"}
    )


@pytest.mark.parametrize(
    "value", ["1e-4", "1.0e-05", "3", "0.5", ".5", "2024-01-01", "'1e-4'", "true", "null", "a b", "''", "1e3"]
)
def test_configurations_are_read_as_omegaconf_reads_them(tmp_path: Path, value: str) -> None:
    path = run_folder(tmp_path / "one", vdn())
    text = (path / "config.yaml").read_text().replace("gamma: 0.99", f"gamma: {value}")
    (path / "config.yaml").write_text(f"# a comment\n{text}")
    method, _ = Reader().method(path)
    expected = OmegaConf.load(path / "config.yaml").train.gamma
    assert method.settings["train.gamma"] == expected and type(method.settings["train.gamma"]) is type(expected)


def test_a_run_from_before_an_option_existed_is_told_apart_from_runs_with_its_default(tmp_path: Path) -> None:
    older, newer = run_folder(tmp_path / "older", vdn(seed=1)), run_folder(tmp_path / "newer", vdn())
    text = (older / "config.yaml").read_text()
    assert "  mask_ineffective: false\n" in text
    (older / "config.yaml").write_text(text.replace("  mask_ineffective: false\n", ""))
    records = {record.name: record for record in collect([older, newer]).finished}
    assert records["older"].settings["env.mask_ineffective"] is True
    assert records["older"].method == "vdn mask_ineffective=True"
    assert records["newer"].method == "vdn mask_ineffective=False"
    env = RunDirectory(older).read_config().env
    assert isinstance(env, LbfConfig) and env.mask_ineffective is True


def test_only_the_last_line_may_be_truncated(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "one", vdn())
    whole = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(whole + '{"kind": "evalua')
    assert collect([path]).finished[0].steps == (0, 10)
    for torn in ('{"kind": "evalua\n', '{"kind": "training", "env_step": 1' + row(7), "[1]\n", "{}\n"):
        (path / "metrics.jsonl").write_text(torn + whole)
        with pytest.raises(UserError, match=r"one/metrics\.jsonl, line 1 is not a valid metrics row"):
            collect([path])
    (path / "metrics.jsonl").write_text(whole + '{"kind": "evalua\n')  # a line that has its end is not torn
    with pytest.raises(UserError, match="line 5"):
        collect([path])


def test_rows_are_filtered_by_kind(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "one", vdn()) / "metrics.jsonl"
    assert [row["kind"] for row in read_rows(path)] == ["evaluation", "training", "evaluation", "absolute"]
    assert read_rows(path, "training") == [{"kind": "training", "env_step": 5, "return_mean": 0.5, "loss": 0.1}]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", '{"final_', "is truncated or not valid JSON"),
        ("result.json", '{"wall_s": 3}', "is not the result of a run"),
        ("result.json", '{"final_return": "high"}', "final_return=high is not a number"),
        ("result.json", '{"final_return": 1, "wall_s": [3]}', r"wall_s=\[3\] is not a number"),
        ("result.json", f'{{"final_return": 1, "env_steps": {10**400}}}', "env_steps=1000.* is not a number"),
        ("result.json", '{"final_return": 1, "parameters": 7}', "is not the result of a run"),
        ("result.json", '{"final_return": 1, "parameters": {"agent": null}}', "parameters=None is not a number"),
        ("metrics.jsonl", row(5).replace("5", '"x"', 1) + row(7), "env_step=x is not a number"),
        ("metrics.jsonl", None, "cannot be read"),
        ("metrics.jsonl", row(5, kind="training"), "it has no evaluation"),
        ("metrics.jsonl", row(5) + row(5), "its evaluation steps are not increasing"),
        ("config.yaml", None, "has no config.yaml"),
        ("config.yaml", "env: [", "is not a valid run configuration"),
        ("config.yaml", "seed: 1\n", "is not a valid run configuration"),
        ("tfcaf.json", "{}", "has no key 'program'"),
    ],
)
def test_a_finished_run_that_cannot_be_read_is_named(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    path = run_folder(tmp_path / "one", vdn())
    (path / file).unlink(missing_ok=True)
    if content is not None:
        (path / file).write_text(content)
    with pytest.raises(UserError, match=f"{path}.*{message}"):
        Reader().finished(path)


# Which runs


def sweep(folder: Path, *runs: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"command": "python -m qllm_exp -m", "runs": list(runs)}))
    return folder


def test_a_path_is_a_run_a_sweep_or_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        run_folder(tmp_path / f"run{seed}", vdn(seed=seed))
    folder = sweep(tmp_path / "sweep", "run0", "run1")
    assert [record.seed for record in collect([tmp_path / "run2"]).finished] == [2]
    assert [record.seed for record in collect([folder]).finished] == [0, 1]
    assert [record.seed for record in collect([tmp_path]).finished] == [0, 1, 2]
    assert [record.seed for record in collect([folder, tmp_path, tmp_path / "run2"]).finished] == [0, 1, 2]
    monkeypatch.chdir(folder)
    assert [record.seed for record in collect([Path()]).finished] == [0, 1]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_path_without_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name}.*Give a run directory"):
        collect([tmp_path / name])


def status(path: Path, state: str, **more: Any) -> None:
    (path / "status.json").write_text(json.dumps({"state": state, "host": "elsewhere", **more}))


def test_unfinished_runs_are_separate_with_their_states(tmp_path: Path) -> None:
    for seed, name in enumerate(("done", "failed", "running", "dead", "interrupted", "queued", "new")):
        run_folder(tmp_path / name, vdn(seed=seed, env=MpeConfig()), finished=name == "done")
    status(tmp_path / "failed", "failed", error="out of memory")
    status(tmp_path / "running", "running", heartbeat=time.time(), env_step=5, total_steps=10)
    status(tmp_path / "dead", "running", heartbeat=time.time() - 1000, env_step=5, total_steps=10)
    status(tmp_path / "interrupted", "interrupted", env_step=5, total_steps=10)
    status(tmp_path / "queued", "queued")
    missing = "mpe_simple-spread_q-learning_qmix_s12_1a2b3c4d"
    sweep(tmp_path / "sweep", "done", missing, "renamed")
    collection = collect([tmp_path])
    assert [run.name for run in collection.finished] == ["done"]
    assert {run.name: run.state for run in collection.unfinished} == {
        **{name: name for name in ("failed", "running", "dead", "interrupted", "queued", "new")},
        **{missing: "new", "renamed": "new"},
    }
    by_name = {run.name: run for run in collection.unfinished}
    assert str(by_name["failed"]) == "failed: failed: out of memory" and by_name["interrupted"].reason == "at 50%"
    gone = by_name[missing]
    assert (gone.task, gone.method, gone.seed) == ("mpe/simple_spread", "qmix", 12)
    assert (by_name["dead"].task, by_name["dead"].method, by_name["dead"].seed) == ("mpe/simple_spread", "vdn", 3)
    assert collection.counts() == "9 runs: 1 finished, 1 dead, 1 failed, 1 interrupted, 3 new, 1 queued, 1 running"


def test_directories_of_several_machines_are_merged(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run_folder(here / "run0", vdn(seed=0))
    run_folder(there / "run1", vdn(seed=1))
    run_folder(here / "run2", vdn(seed=2), finished=False)
    shutil.copytree(here / "run2", there / "run2")
    shutil.copytree(here / "run0", there / "run0")
    RunDirectory(there / "run2").finish({"final_return": 1.0, "absolute_return": 1.0})
    folder = sweep(here / "sweep", "run0", "run1", "run2")
    assert [run.state for run in collect([folder]).unfinished] == ["new", "new"]
    collection = collect([folder, there])
    assert [record.path for record in collection.finished] == [here / "run0", there / "run1", there / "run2"]
    assert not collection.unfinished


def test_of_two_unfinished_copies_the_more_advanced_one_counts(tmp_path: Path) -> None:
    for root in ("here", "there"):
        run_folder(tmp_path / root / "run", vdn(), finished=False)
    status(tmp_path / "there" / "run", "running", heartbeat=time.time())
    (run,) = collect([tmp_path / "here", tmp_path / "there"]).unfinished
    assert run.state == "running" and run.path == tmp_path / "there" / "run"


@pytest.mark.parametrize("what", ["evaluation returns", "seed", "settings"])
def test_copies_that_disagree_are_refused(tmp_path: Path, what: str) -> None:
    first = run_folder(tmp_path / "here" / "run", vdn())
    changed = {"seed": vdn(seed=1), "settings": vdn(train=schema.TrainConfig(gamma=0.5))}.get(what, vdn())
    other = run_folder(tmp_path / "there" / "run", changed, value=2.0 if what == "evaluation returns" else 1.0)
    with pytest.raises(UserError, match=f"{first} and {other} .* their {what} differ"):
        collect([tmp_path / "here", tmp_path / "there"])


def test_a_seed_does_not_count_twice(tmp_path: Path) -> None:
    first, other = run_folder(tmp_path / "a", vdn()), run_folder(tmp_path / "b", vdn())
    with pytest.raises(UserError, match=f"{first} and {other} are both seed 0 of vdn"):
        collect([tmp_path])


def test_evaluation_intervals_are_separate_methods_only_if_a_seed_has_two(tmp_path: Path) -> None:
    often = schema.TrainConfig(evaluation=schema.EvaluationConfig(every=5))
    assert named(tmp_path, vdn(), vdn(seed=1, train=often)) == ["vdn", "vdn"]
    run_folder(tmp_path / "2", vdn(seed=1))
    assert names([tmp_path]) == ["vdn every=50000", "vdn every=5", "vdn every=50000"]


# Names of methods


def test_a_method_without_a_mixer_is_named_by_its_algorithm(tmp_path: Path) -> None:
    none = NoMixerConfig()
    runs = [schema.RunConfig(mixer=none), schema.RunConfig(mixer=none, algorithm=MappoConfig()), vdn()]
    assert named(tmp_path, *runs) == ["none", "mappo", "vdn"]
    missing = sweep(tmp_path / "sweep", "lbf_8x8_mappo_none_s1_1a2b3c4d", "lbf_8x8_q-learning_none_s1_1a2b3c4d")
    assert [run.method for run in collect([missing]).unfinished] == ["mappo", "none"]


def test_runs_with_other_functions_are_other_methods(tmp_path: Path) -> None:
    runs = [
        schema.RunConfig(seed=0),
        schema.RunConfig(seed=1),
        schema.RunConfig(seed=0, mixer=TfcafConfig(file="other.json")),
    ]
    programs = [{"a": 1}, {"a": 1}, {"a": 2}]
    paths = [run_folder(tmp_path / str(i), *pair) for i, pair in enumerate(zip(runs, programs, strict=True))]
    first, same, other = names(paths)
    assert first == same != other and first.startswith("tfcaf function=")
    assert names(paths[:2]) == ["tfcaf", "tfcaf"]


def test_a_function_of_another_task_is_another_method_whose_name_says_the_task(tmp_path: Path) -> None:
    def run(task: str, number: int, origin: str, written_for: str = "") -> Path:
        config = schema.RunConfig(env=LbfConfig(task=task), mixer=TfcafConfig(written_for=written_for))
        path = run_folder(tmp_path / str(number), config, {"a": 1})
        env, _, origin_task = origin.partition("/")
        stored = json.loads((path / "tfcaf.json").read_text())
        (path / "tfcaf.json").write_text(json.dumps(stored | {"env": env, "task": origin_task}))
        return path

    own, larger = "10x10-3p-3f-2s", "15x15-3p-3f-2s"
    assert names([run(own, 0, f"lbf/{own}")]) == ["tfcaf"]
    assert names([run(larger, 1, f"lbf/{own}")]) == [f"tfcaf from {own}"], "also of runs without the option"
    assert names([run(larger, 2, f"lbf/{own}", f"lbf/{own}")]) == [f"tfcaf from {own}"]
    assert names([run(own, 3, f"lbf/{own}", f"lbf/{own}")]) == ["tfcaf"]
    assert names([run(larger, 4, "mpe/simple_tag", "mpe/simple_tag")]) == ["tfcaf from mpe/simple_tag"]
    assert names([run(larger, 5, "its_description/any")]) == ["tfcaf"], "an environment of a user"


def test_the_language_model_is_irrelevant_for_a_mixer_without_a_function(tmp_path: Path) -> None:
    runs = [
        schema.RunConfig(mixer=VdnConfig()),
        schema.RunConfig(mixer=VdnConfig(), llm=OnlineConfig(name="openai"), seed=1),
    ]
    assert names([run_folder(tmp_path / str(i), run) for i, run in enumerate(runs)]) == ["vdn", "vdn"]


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    runs = [schema.RunConfig(mixer=VdnConfig(), train=schema.TrainConfig(learning_rate=rate)) for rate in (1e-3, 1e-4)]
    paths = [run_folder(tmp_path / str(i), run) for i, run in enumerate(runs)]
    assert names(paths) == ["vdn learning_rate=0.001", "vdn learning_rate=0.0001"]


def online(name: str, model: str, **more: Any) -> schema.RunConfig:
    return schema.RunConfig(llm=OnlineConfig(name=name, model=model), **more)


def test_functions_of_several_models_are_named_by_model(tmp_path: Path) -> None:
    runs = [online("openai", "openai/x"), online("deepseek", "deepseek/y")]
    assert named(tmp_path, *runs, programs=[1, 2]) == ["tfcaf model=openai/x", "tfcaf model=deepseek/y"]


def test_functions_without_a_model_are_named_by_provider(tmp_path: Path) -> None:
    runs = [schema.RunConfig(), online("openai", "openai/x")]
    assert named(tmp_path, *runs, programs=[1, 2]) == ["tfcaf llm=bundled", "tfcaf llm=openai"]


def test_samples_of_one_procedure_are_one_method(tmp_path: Path) -> None:
    samples = [(1, 0), (1, 1), (3, 0), (3, 1)]
    runs = [
        online("openai", "openai/x", tfcaf=schema.GenerationConfig(rounds=rounds, sample=sample))
        for rounds, sample in samples
    ]
    assert named(tmp_path, *runs, programs=samples) == ["tfcaf rounds=1"] * 2 + ["tfcaf rounds=3"] * 2
    assert names([tmp_path / "0", tmp_path / "1"]) == ["tfcaf", "tfcaf"]


def test_functions_with_equal_sample_indices_are_not_samples_of_one_procedure(tmp_path: Path) -> None:
    runs = [online("openai", "openai/x", tfcaf=schema.GenerationConfig(sample=sample)) for sample in (0, 0, 1)]
    first, second, third = named(tmp_path, *runs, programs=[1, 2, 3])
    assert len({first, second, third}) == 3 and all("function=" in name for name in (first, second))


def test_a_function_is_one_method_whoever_wrote_it(tmp_path: Path) -> None:
    runs = [online("openai", "openai/x", seed=0), schema.RunConfig(seed=1), online("openai", "openai/z", seed=2)]
    assert named(tmp_path, *runs, programs=[1, 1, 2]) == ["tfcaf", "tfcaf", "tfcaf model=openai/z"]


def test_a_setting_that_a_method_lacks_is_not_in_its_name(tmp_path: Path) -> None:
    runs = [schema.RunConfig(), online("openai", "openai/x"), online("openai", "openai/y")]
    assert named(tmp_path, *runs, programs=[1, 2, 3]) == ["tfcaf", "tfcaf model=openai/x", "tfcaf model=openai/y"]


def test_a_preset_stands_for_its_many_settings(tmp_path: Path) -> None:
    paper = schema.TrainConfig(name="paper", learning_rate=1e-3, hidden=128, batch_episodes=64)
    paths = [run_folder(tmp_path / str(at), vdn(train=train)) for at, train in enumerate((schema.TrainConfig(), paper))]
    records = collect(paths).finished
    assert [record.method for record in records] == ["vdn train=fair", "vdn train=paper"]
    assert records[1].differs["train.hidden"] == 128 and records[1].differs["train.learning_rate"] == 1e-3


def test_a_setting_without_effect_neither_names_a_method_nor_differs(tmp_path: Path) -> None:
    def run(seed: int = 0, **options: Any) -> schema.RunConfig:
        return vdn(algorithm=QLearningConfig(**options), seed=seed)

    assert named(tmp_path / "two", run(n_step=1), run(n_step=5, seed=1)) == ["vdn", "vdn"]
    targets = [run(n_step=5), run(n_step=1, targets="n_step"), run(n_step=5, targets="n_step")]
    paths = [run_folder(tmp_path / str(at), config) for at, config in enumerate(targets)]
    records = collect(paths).finished
    assert [record.settings.get("algorithm.n_step") for record in records] == [None, 1, 5]
    assert [record.settings.get("algorithm.td_lambda") for record in records] == [0.6, None, None]


def test_presets_with_equal_settings_are_one_method(tmp_path: Path) -> None:
    assert named(tmp_path, vdn(), vdn(seed=1, train=schema.TrainConfig(name="quick"))) == ["vdn", "vdn"]


def test_settings_of_the_environment_are_named_where_they_differ_between_mixers(tmp_path: Path) -> None:
    few, more = (MpeConfig(options={"n_agents": number}, num_envs=number) for number in (2, 6))
    qmix = schema.RunConfig(mixer=QmixConfig(), env=few)
    assert named(tmp_path / "two", qmix, vdn(env=more)) == ["qmix n_agents=2", "vdn n_agents=6"]
    assert named(tmp_path / "three", qmix, vdn(env=MpeConfig()), vdn()) == ["qmix n_agents=2", "vdn", "vdn"]
    mean = MpeConfig(reward="mean", num_envs=3)
    assert named(tmp_path / "four", vdn(env=mean), vdn(env=MpeConfig(), seed=1)) == [
        "vdn reward=mean",
        "vdn reward=sum",
    ]
    assert named(tmp_path / "five", schema.RunConfig(mixer=QmixConfig(), env=mean), vdn(env=mean)) == ["qmix", "vdn"]


def test_redundant_settings_are_not_named(tmp_path: Path) -> None:
    trains = [schema.TrainConfig(gamma=gamma, hidden=hidden) for gamma, hidden in ((0.9, 32), (0.99, 64), (0.9, 64))]
    both = [vdn(train=train) for train in trains]
    assert named(tmp_path, *both) == ["vdn gamma=0.9 hidden=32", "vdn gamma=0.99 hidden=64", "vdn gamma=0.9 hidden=64"]
    assert names([tmp_path / "0", tmp_path / "1"]) == ["vdn hidden=32", "vdn hidden=64"]


def test_only_what_differs_on_a_task_is_named_there(tmp_path: Path) -> None:
    low = schema.TrainConfig(learning_rate=1e-4)
    runs = [vdn(), vdn(train=low), vdn(env=MpeConfig())]
    assert named(tmp_path, *runs) == ["vdn learning_rate=0.0005", "vdn learning_rate=0.0001", "vdn"]
