"""Results of other programs: read as their files say, named apart from those of this package, refused if they do not fit."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run, run_config

import qllm_exp
from qllm_exp.errors import UserError
from qllm_exp.results.records import marl_eval
from qllm_exp.results.records.collect import collect, filter_runs
from qllm_exp.results.records.external import SourceMapping
from qllm_exp.results.records.metric_names import reported_metrics
from qllm_exp.results.records.reader import Record
from qllm_exp.results.report.page import report
from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.table import comparison

PEERS = Path(__file__).parents[2] / "peers"
BENCHMARL = PEERS / "benchmarl"
EPYMARL = PEERS / "epymarl"
LBF = "lbf/8x8-2p-2f-coop-2s"


def five(folder: Path, mixer: str, middle: float, **options: Any) -> None:
    for seed in range(5):
        make_run(folder, run_config(mixer, seed, **options), middle + 0.01 * seed)


def only_record(*paths: Path) -> Record:
    (record,) = collect(paths).finished
    return record


def sacred(tmp_path: Path, name: str = "1", config: Any = None, run: Any = None, metrics: Any = None) -> Path:
    """A copy of EPyMARL's folder with changes: keys that are replaced; in metrics.json None removes a key."""
    folder = tmp_path / "sacred" / name
    shutil.copytree(EPYMARL / "vdn_foraging" / "1", folder)
    for file, changes in (("config.json", config), ("run.json", run), ("metrics.json", metrics)):
        content = json.loads((folder / file).read_text()) | (changes or {})
        kept = {key: value for key, value in content.items() if value is not None or file != "metrics.json"}
        (folder / file).write_text(json.dumps(kept))
    return folder


def marl_eval_file(tmp_path: Path, run: Any, seed: str = "seed_0", name: str = "theirs.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"lbf": {"8x8-2p-2f-coop-2s": {"qmix": {seed: run}}}}))
    return path


def step(count: Any, *values: Any, metric: str = "mean_episode_return") -> dict[str, Any]:
    return {"step_count": count, metric: list(values)}


# What the real programs wrote, in one table with ours


def test_files_of_benchmarl_and_epymarl_are_in_one_table_with_ours(tmp_path: Path) -> None:
    five(tmp_path, "qmix", 0.6)
    five(tmp_path, "vdn", 0.4)
    sheet, _ = comparison(collect([tmp_path, *sorted(BENCHMARL.glob("*.json")), EPYMARL]))
    values = {
        ("/".join(labels), column): cell.estimate
        for labels, cells in sheet.rows
        for column, cell in zip(sheet.columns, cells, strict=True)
        if isinstance(cell, Cell)
    }
    assert values.keys() == {
        (LBF, "qmix"),
        (LBF, "vdn"),
        (LBF, "vdn@epymarl"),
        ("vmas@benchmarl/simple_spread", "qmix@benchmarl"),
    }
    theirs = values["vmas@benchmarl/simple_spread", "qmix@benchmarl"]
    finals = []
    for path in BENCHMARL.glob("*.json"):
        (run,) = json.loads(path.read_text())["vmas"]["simple_spread"]["qmix"].values()
        finals.append(math.fsum(run["step_3"]["return"]) / len(run["step_3"]["return"]))
    assert theirs.runs == 2 and theirs.value == pytest.approx(math.fsum(finals) / 2)
    notes = "\n".join(sheet.notes)
    assert "qmix@benchmarl on vmas@benchmarl/simple_spread: runs of another program" in notes
    assert "mean over agents and groups" in notes and "the rules of the task are those of benchmarl" in notes
    assert "last evaluation is at step 30,050" in notes and "the sum of the rewards of the agents" in notes


def test_the_record_of_an_epymarl_folder_is_what_its_files_say() -> None:
    record = only_record(EPYMARL)
    logged = json.loads((EPYMARL / "vdn_foraging" / "1" / "metrics.json").read_text())["test_return_mean"]
    assert (record.task, record.method, record.seed) == (LBF, "vdn@epymarl", 214134470)
    assert list(record.steps) == logged["steps"] and list(record.returns) == logged["values"]
    assert record.settings["epymarl.lr"] == 0.0005 and record.settings["env.reward"] == "sum"
    assert record.path == EPYMARL / "vdn_foraging" / "1" and record.name == "vdn_foraging/1"


def test_info_json_alone_gives_the_same_curve(tmp_path: Path) -> None:
    folder = sacred(tmp_path)
    (
        folder / "metrics.json"
    ).unlink()  # older versions of Sacred and PyMARL have none; NumPy's numbers are objects in info.json
    record, other = only_record(folder), only_record(EPYMARL)
    assert (record.steps, record.returns) == (other.steps, other.returns)


def test_the_highest_episode_of_benchmarl_is_not_the_absolute_metric() -> None:
    record = only_record(BENCHMARL / "qmix_simple_spread_seed0.json")
    assert "absolute_return" not in record.result and reported_metrics([record]) == ["final"]
    with pytest.raises(UserError, match=r"has no absolute metric\. Use --metric final, or leave benchmarl out"):
        record.score("absolute_return")


def test_with_another_metric_the_highest_episode_of_benchmarl_is_not_the_absolute_metric_either(tmp_path: Path) -> None:
    shutil.copy(BENCHMARL / "qmix_simple_spread_seed0.json", tmp_path / "qmix.json")
    (tmp_path / "map.yaml").write_text("source: qmix.json\nmetric: agents_return\n")
    record = only_record(tmp_path / "map.yaml")
    assert record.program == "benchmarl" and "absolute_return" not in record.result


def test_the_absolute_metric_of_mava_is_read(tmp_path: Path) -> None:
    path = marl_eval_file(tmp_path, {"step_0": step(10, 1.0), "absolute_metrics": {"mean_episode_return": [0.5]}})
    record = only_record(path)
    assert record.result == {"final_return": 1.0, "env_steps": 10, "absolute_return": 0.5}
    assert record.method == "qmix@marl-eval" and "averaged or summed" in record.unit


# Names: what may be compared, and what may not


def test_an_environment_of_the_same_name_and_other_rules_is_another_task(tmp_path: Path) -> None:
    five(tmp_path / "runs", "qmix", 0.6)
    theirs = marl_eval_file(tmp_path, {"step_0": step(10, 1.0)})  # a file cannot say whose foraging it is
    assert {record.task for record in collect([tmp_path / "runs", theirs]).finished} == {
        LBF,
        "lbf@marl-eval/8x8-2p-2f-coop-2s",
    }


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({"key": "lbforaging:Foraging-10x10-3p-3f-v3"}, "lbf/10x10-3p-3f"),
        ({"key": "Foraging-15x15-4p-3f-coop-v3"}, "lbf/15x15-4p-3f-coop"),
        ({"key": "lbforaging:Foraging-2s-8x8-2p-2f-coop-v2"}, "gymma@epymarl/lbforaging:Foraging-2s-8x8-2p-2f-coop-v2"),
        ({"key": "lbforaging:Foraging-8x9-2p-2f-v3"}, "gymma@epymarl/lbforaging:Foraging-8x9-2p-2f-v3"),
        ({"key": "pz-mpe-simple-spread-v3"}, "gymma@epymarl/pz-mpe-simple-spread-v3"),
        ({"pretrained_wrapper": "PretrainedTag"}, "gymma@epymarl/lbforaging:Foraging-2s-8x8-2p-2f-coop-v3"),
        ({"time_limit": 100}, "gymma@epymarl/lbforaging:Foraging-2s-8x8-2p-2f-coop-v3"),
        ({"time_limit": True}, "gymma@epymarl/lbforaging:Foraging-2s-8x8-2p-2f-coop-v3"),
    ],
)
def test_a_task_has_our_name_only_if_its_rules_are_ours(tmp_path: Path, changes: dict[str, Any], task: str) -> None:
    env_args = json.loads((EPYMARL / "vdn_foraging" / "1" / "config.json").read_text())["env_args"]
    assert only_record(sacred(tmp_path, config={"env_args": env_args | changes})).task == task


def test_another_reward_unit_on_our_task_is_in_the_names(tmp_path: Path) -> None:
    five(tmp_path / "runs", "vdn", 0.4)
    theirs = sacred(tmp_path, config={"reward_scalarisation": "mean"})
    names = {record.method for record in collect([tmp_path / "runs", theirs]).finished}
    assert names == {"vdn reward=sum", "vdn@epymarl reward=mean"}


def test_returns_of_agents_are_summed_and_the_footnote_says_so(tmp_path: Path) -> None:
    series = json.loads((EPYMARL / "vdn_foraging" / "1" / "metrics.json").read_text())["test_return_mean"]
    metrics = {"test_return_mean": None, "test_total_return_mean": series}
    record = only_record(sacred(tmp_path, config={"common_reward": False}, metrics=metrics))
    assert record.settings["env.reward"] == "sum" and "sum of the returns of the agents" in record.unit


@pytest.mark.parametrize("changes", [{"reward_scalarisation": None}, {"reward_scalarisation": "max"}])
def test_a_reward_that_is_not_ours_makes_another_task(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert only_record(sacred(tmp_path, config={"common_reward": True} | changes)).task.startswith("gymma@epymarl/")


def test_a_method_is_named_by_what_differs_in_its_configuration(tmp_path: Path) -> None:
    sacred(tmp_path, "1")
    sacred(tmp_path, "2", config={"lr": 0.001, "seed": 5, "test_nepisode": 100, "use_cuda": False})
    assert {record.method for record in collect([tmp_path / "sacred"]).finished} == {
        "vdn@epymarl lr=0.0005",
        "vdn@epymarl lr=0.001",
    }


def test_pymarl_is_told_apart_and_its_win_rate_is_read(tmp_path: Path) -> None:
    wins = {"steps": [50, 5050, 10050, 15050, 20050, 25050, 30050], "values": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    folder = sacred(
        tmp_path, config={"env": "sc2", "env_args": {"map_name": "3m"}}, metrics={"test_battle_won_mean": wins}
    )
    config = json.loads((folder / "config.json").read_text())
    config.pop("common_reward")
    (folder / "config.json").write_text(json.dumps(config))
    record = only_record(folder)
    assert (record.task, record.method, record.score("win_mean")) == ("sc2@pymarl/3m", "vdn@pymarl", 0.6)


def test_an_unfinished_run_of_sacred_is_missing_with_its_reason(tmp_path: Path) -> None:
    sacred(tmp_path, "1")
    sacred(
        tmp_path, "2", config={"seed": 5}, run={"status": "FAILED", "fail_trace": ["Traceback\n", "KeyError: 'x'\n"]}
    )
    sacred(tmp_path, "3", config={"seed": 6}, run={"status": "RUNNING"})
    collection = collect([tmp_path / "sacred"])
    assert collection.counts() == "3 runs: 1 finished, 1 failed, 1 running"
    assert collection.unfinished[0].reason == "Sacred recorded FAILED: KeyError: 'x'"
    assert f"Missing: vdn@epymarl on {LBF}: 1 failed (s5), 1 running (s6)." in comparison(collection)[0].notes


def test_one_seed_twice_is_refused_and_one_file_twice_counts_once(tmp_path: Path) -> None:
    assert len(collect([EPYMARL, EPYMARL]).finished) == 1
    sacred(tmp_path, "1")
    sacred(tmp_path, "2")
    with pytest.raises(UserError, match="are both seed 214134470 of vdn@epymarl on lbf/8x8"):
        collect([tmp_path / "sacred"])


def test_runs_of_another_program_are_filtered_like_ours(tmp_path: Path) -> None:
    five(tmp_path, "vdn", 0.4)
    collection = collect([tmp_path, EPYMARL])
    assert {run.program for run in filter_runs(collection, ["mixer=vdn"]).finished} == {""}
    assert {run.program for run in filter_runs(collection, ["epymarl.mixer=vdn"]).finished} == {"epymarl"}
    assert len(filter_runs(collection, ["method=vdn@epymarl"]).finished) == 1


# Everything that takes sources


def test_the_python_api_and_the_report_take_them(tmp_path: Path) -> None:
    five(tmp_path, "vdn", 0.4)
    file = BENCHMARL / "qmix_simple_spread_seed0.json"
    runs = qllm_exp.load_runs(tmp_path, file, EPYMARL)
    assert len(runs) == 7 and set(runs.method) == {"vdn", "vdn@epymarl", "qmix@benchmarl"}
    assert runs[runs.method == "qmix@benchmarl"].parameters.isna().all()
    curves = qllm_exp.load_curves(file, EPYMARL)
    assert curves.groupby("run").env_step.max().to_dict() == {"qmix/seed_0": 6000, "vdn_foraging/1": 30050}
    assert qllm_exp.load_curves(file, kind="training").empty
    paths = [tmp_path, file, EPYMARL]
    page = report(collect(paths), paths, tmp_path, credit=False)
    assert "vmas@benchmarl/simple_spread" in page and "runs of another program" in page
    assert f"{file.name}/vmas" not in page  # no link into a file
    alone = report(collect([EPYMARL]), [EPYMARL], tmp_path, credit=False)
    assert "None of the runs is a run of this package" in alone


def test_marl_eval_documents_are_read_back(tmp_path: Path) -> None:
    five(tmp_path, "vdn", 0.4)
    records = collect([tmp_path]).finished
    path = tmp_path / "all.json"
    path.write_text(json.dumps(marl_eval.document(records)))
    read = {run.seed: run for run in marl_eval.read(path, SourceMapping())}
    for record in records:
        run = read[record.seed]
        assert (run.env, run.task, run.method) == ("lbf", "8x8-2p-2f-coop-2s", "vdn")
        assert (run.steps, run.returns, run.absolute) == (
            record.steps,
            record.returns,
            record.result["absolute_return"],
        )


# CSV and mapping files


CSV = """env_name,algo,run,t,ret,won
Foraging-8x8,mappo,0,0,0.1,0.0
Foraging-8x8,mappo,0,100,0.4,0.5
Foraging-8x8,mappo,1,0,0.2,0.0
Foraging-8x8,mappo,1,100,0.6,0.7
"""
MAPPING = """source: theirs.csv
program: paper
unit: mean over the agents
columns: {task: env_name, method: algo, seed: run, env_step: t, return_mean: ret, win_mean: won}
tasks: {Foraging-8x8: lbf/8x8-2p-2f-coop-2s}
env: {reward: mean}
"""


def mapped(tmp_path: Path, csv: str = CSV, mapping: str = MAPPING) -> Path:
    (tmp_path / "theirs.csv").write_text(csv)
    path = tmp_path / "theirs.yaml"
    path.write_text(mapping)
    return path


def test_a_csv_file_is_read_with_its_mapping(tmp_path: Path) -> None:
    first, second = collect([mapped(tmp_path)]).finished
    assert (first.task, first.method, first.seed, second.seed) == (LBF, "mappo@paper", 0, 1)
    assert (second.steps, second.returns, second.score("win_mean")) == ((0, 100), (0.2, 0.6), 0.7)
    assert first.settings["env.reward"] == "mean" and first.settings["env.episode_limit"] == 50
    assert first.unit.startswith("mean over the agents; ") and "theirs.yaml declares the rules" in first.unit


def test_columns_named_as_load_curves_names_them_need_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("env,task,method,seed,env_step,return_mean\nlbf,8x8,x,3,0,1.5\n")
    record = only_record(path)
    assert (record.task, record.method, record.seed) == ("lbf@csv/8x8", "x@csv", 3)
    assert "does not say what its returns and steps are" in record.unit


def test_an_ending_in_capitals_and_a_slash_in_the_name_of_an_environment(tmp_path: Path) -> None:
    path = tmp_path / "PLAIN.CSV"
    path.write_text("env,task,method,seed,env_step,return_mean\nlbf/mine,8x8/a,x,3,0,1.5\n")
    (record,) = filter_runs(collect([path]), ["env=lbf-mine@csv", "env.task=8x8/a"]).finished
    assert record.task == "lbf-mine@csv/8x8/a"


def test_a_mapping_declares_tasks_of_any_source_equal(tmp_path: Path) -> None:
    shutil.copy(BENCHMARL / "qmix_simple_spread_seed0.json", tmp_path / "b.json")
    path = tmp_path / "b.yaml"
    path.write_text(
        "source: b.json\ntasks: {vmas/simple_spread: mpe/simple_spread}\nenv: {episode_limit: 100, reward: mean}\n"
    )
    record = only_record(path)
    assert record.task == "mpe/simple_spread" and record.settings["env.episode_limit"] == 100


@pytest.mark.parametrize(
    ("task", "option", "key", "value"),
    [
        ("mpe/simple_spread", "{rules: pettingzoo, options: {N: 6}}", "env.options.N", 6),
        ("grf/academy_3_vs_1_with_keeper", "{rewards: 'scoring,checkpoints'}", "env.rewards", "scoring,checkpoints"),
        ("lbf/9x9-2p-3f", "{mask_ineffective: false}", "env.mask_ineffective", False),
    ],
)
def test_options_of_a_declared_task_may_have_any_type(
    tmp_path: Path, task: str, option: str, key: str, value: Any
) -> None:
    mapping = f"{MAPPING.partition('tasks')[0]}tasks: {{Foraging-8x8: {task}}}\nenv: {option}\n"
    first, _ = collect([mapped(tmp_path, mapping=mapping)]).finished
    assert (first.task, first.settings[key]) == (task, value)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("source: theirs.csv\nprogramm: x", "unknown key 'programm'. Did you mean 'program'"),
        ("- theirs.csv", "is not a mapping of results"),
        ("program: x", "names no results. Add source: FILE"),
        ("source: missing.csv", "holds no result of another program"),
        ("source: [1]", "source must be text"),
        ("source: theirs.csv\nprogram: a b", "program='a b' is not a name"),
        ("source: {", "is not valid YAML"),
        (MAPPING + "metric: x", "metric is for .json files"),
        (MAPPING.replace("win_mean", "wins"), "columns has an unknown key 'wins'.*Allowed: env, task"),
        (
            MAPPING.replace("ret,", "return,"),
            "no column 'return'. Columns of the file: env_name, algo, run, t, ret, won",
        ),
        (
            MAPPING.replace("Foraging-8x8:", "other:"),
            "tasks names 'other', which no run has. Tasks: paper/Foraging-8x8",
        ),
        (MAPPING.replace("lbf/8x8-2p-2f-coop-2s", "lbf"), "not of the form ENV/TASK"),
        (MAPPING.replace("lbf/8x8-2p-2f-coop-2s", "lbg/8x8"), "theirs.yaml: env=lbg is unknown"),
        (MAPPING.replace("8x8-2p-2f-coop-2s", "8x8-2p-2f-cop"), "theirs.yaml: .*8x8-2p-2f-cop' is not a foraging task"),
        (MAPPING.replace("lbf/8x8-2p-2f-coop-2s", "mpe/spread"), "theirs.yaml: env.task='spread' is unknown"),
        (MAPPING.replace("reward: mean", "rewards: mean"), "env.rewards"),
        (MAPPING.replace("reward: mean", "reward: null"), "theirs.yaml: env.reward"),
        (MAPPING.replace("program: paper", "program: 2026-13-01"), "is not valid YAML: month must be in 1..12"),
        (MAPPING.replace("tasks", "#"), "tasks declares none"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, mapping: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        collect([mapped(tmp_path, mapping=mapping)])


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        (CSV.replace("0.4", "nan"), "ret is nan at step 100.*not a finite number"),
        (CSV.replace("0.4", "high"), r"line 3: ret=high is not a number"),
        (CSV.replace("mappo,0,0,", "mappo,,0,"), "line 2 has no run"),
        (CSV.replace("mappo,0,0,", "mappo,a,0,"), "line 2: run=a is not a number"),
        (CSV.replace("mappo,0,0,", "mappo,0.5,0,"), "line 2: run=0.5 is not a whole number"),
        (CSV.replace("mappo,0,100", "mappo,0,0"), "step 0.* follows step 0"),
        (CSV.replace("mappo,0,100", "mappo,0,1e300"), r"the step 1e\+300 is not a whole number from 0 to"),
        (CSV.replace("mappo,0,0,", "mappo,0,-1,"), "the step -1.0 is not a whole number from 0 to"),
        (CSV.replace("0.4,0.5", "0,4,0.5"), "line 3 has more cells than the first line has columns"),
        (CSV.replace("\n", "\n\n").replace("0.4", "high"), "line 5: ret=high is not a number"),
        (CSV.replace("won", "ret"), "has 2 columns 'ret'. Rename or remove all but one"),
        (CSV.split("\n")[0], "has no row"),
        ("", "Columns of the file: none"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(tmp_path: Path, csv: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        collect([mapped(tmp_path, csv)])


def test_win_rates_in_percent_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("env,task,method,seed,env_step,return_mean,win_mean\nx,a,b,0,1,1,85\n")
    wins = {"steps": [50, 5050, 10050, 15050, 20050, 25050, 30050], "values": [0, 10, 20, 30, 40, 50, 60]}
    for source in (path, sacred(tmp_path, metrics={"test_battle_won_mean": wins})):
        with pytest.raises(UserError, match=r"_mean is not between 0 and 1\. Write shares, not percentages"):
            collect([source])


def test_a_comma_at_the_end_of_each_row_is_no_cell(tmp_path: Path) -> None:
    first, _ = collect([mapped(tmp_path, CSV.replace("\n", ",\n").replace("won,", "won", 1))]).finished
    assert first.returns == (0.1, 0.4)


def test_seeds_of_64_bits_keep_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    seeds = (2**63 - 2, 2**63 - 1)
    path.write_text("task,method,seed,env_step,return_mean\n" + "".join(f"a,b,{seed},0,1.5\n" for seed in seeds))
    assert tuple(record.seed for record in collect([path]).finished) == seeds


# Files that do not fit


@pytest.mark.parametrize(
    ("run", "seed", "message"),
    [
        ({"step_0": step(1, 1.0)}, "first", "has no seed: 'first' is not of the form seed_N"),
        ({"step_0": step(1, math.nan)}, "seed_0", "mean_episode_return is nan at step 1"),
        ({"step_0": step(1, None)}, "seed_0", "is None at step 1"),
        ({"step_0": step(1, True)}, "seed_0", "is True at step 1"),
        ({"step_0": step(1, 10**400, 1)}, "seed_0", "is 10000.* at step 1, not a finite number"),
        ({"step_0": step(1, math.inf, -math.inf)}, "seed_0", "is inf at step 1"),
        ({"step_0": step(1, 1e308, 1e308)}, "seed_0", "is inf at step 1"),
        ({"step_0": step(10**400, 1.0)}, "seed_0", "the step 10000.* is not a whole number from 0 to"),
        ({"step_0": step(1, 1.0)}, f"seed_{'9' * 5000}", "has no seed"),
        (
            {"step_0": step(1, 1.0), "step_1": step(2, 1.0, 2.0)},
            "seed_0",
            "has 1 values in some evaluations and 2 in others",
        ),
        ({"step_0": step(1, 1.0), "step_1": {"step_count": 2}}, "seed_0", "step_1 has no mean_episode_return"),
        ({"step_0": step(2, 1.0), "step_1": step(2, 1.0)}, "seed_0", "step 2 follows step 2"),
        ({"step_0": {"mean_episode_return": [1.0]}}, "seed_0", "the step None is not a whole number"),
        ({"step_0": step(1, 1.0, metric="loss")}, "seed_0", "has no metric .*Metrics of the file: loss"),
        ({"absolute_metrics": {}}, "seed_0", "has no evaluation"),
        ([1], "seed_0", "is not an object with entries"),
    ],
)
def test_a_marl_eval_file_that_does_not_fit_is_refused(tmp_path: Path, run: Any, seed: str, message: str) -> None:
    with pytest.raises(UserError, match=re.compile(rf"theirs\.json.*{message}")):
        collect([marl_eval_file(tmp_path, run, seed)])


def test_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, message in (
        ('{"a": ', "truncated or not valid JSON"),
        ('{"a": {}, "a": {}}', "the key 'a' occurs twice"),
        ("[]", "env"),
        ('{"final_return": 1}', "env"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            collect([path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"seed": True}}, "has no seed"),
        ({"metrics": {"test_return_mean": {"steps": 5, "values": 3}}}, "has no test_return_mean"),
        ({"metrics": {"test_return_mean": {"steps": [10**400], "values": [0.0]}}}, "is not a whole number from 0 to"),
        ({"config": {"seed": None}}, "has no seed, so it is not the configuration of a PyMARL or EPyMARL run"),
        (
            {"metrics": {"test_return_mean": {"steps": [1, 2], "values": [0.0]}}},
            "test_return_mean has 1 values at 2 steps. Both must have the same length",
        ),
        ({"metrics": {"test_return_mean": {"steps": [1], "values": [math.nan]}}}, "is nan at step 1"),
        ({"metrics": {"test_return_mean": {"steps": [], "values": []}}}, "has no evaluation"),
        ({"metrics": {"test_return_mean": None}}, "has no test_return_mean. Metrics of the run: ep_length_mean"),
        (
            {"metrics": {"test_battle_won_mean": {"steps": [1], "values": [0.5]}}},
            "are at different steps",
        ),
    ],
)
def test_a_sacred_folder_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        collect([sacred(tmp_path, **changes)])


def test_a_folder_with_neither_kind_of_run_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no runs and no sweeps"):
        collect([tmp_path])
    with pytest.raises(UserError, match="is not a folder"):
        collect([tmp_path / "missing.json"])
