"""A Weights & Biases project in place of folders: the same tables, each run read once, also if the server is lost."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from loopback_wandb import LoopbackWandb, Run
from run_folders import make_run, run_config
from tracked import SHORT, environment, forget_login, sync

from qllm_exp.config import schema
from qllm_exp.results.__main__ import main
from qllm_exp.results.records import sources
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.sources import Address, read_project
from qllm_exp.tracking import sidecar

SWEEP = "wandb://team/p/figure_1"
BY_HAND = "wandb://team/by_hand"


@dataclasses.dataclass
class World:
    """A server with a sweep of four runs in project 'p' and seven other runs in 'by_hand', and their local folders."""

    server: LoopbackWandb
    home: Path
    sweep: Path
    by_hand: Path


def tracked(project: str) -> schema.WandbConfig:
    return schema.WandbConfig(mode="offline", project=project)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    runs = home / "runs"
    with LoopbackWandb() as server:
        command = ["-m", "qllm_exp", "-m", *SHORT, "mixer=tfcaf,vdn", "seed=0-1", "sweep.name=figure_1", f"dir={runs}"]
        command.append("tracking.mode=offline")
        done = commands.run(command, env=environment(server, home), cwd=home, timeout=200)
        assert done.returncode == 0, done.stderr
        created = World(server, home, runs / "figure_1", home / "by_hand")
        for seed in range(2):
            for hidden in (32, 64):
                run = run_config(
                    "vdn", seed, train=schema.TrainConfig(hidden=hidden, gamma=1.0), tracking=tracked("by_hand")
                )
                make_run(created.by_hand, run, 1.0 if seed else 0.1 + 0.2, usd=None)
        odd = run_config("qmix", 0, env="mpe", task="simple_tag", tracking=tracked("by_hand"))
        make_run(created.by_hand, odd, 2.0, returns=(math.nan, math.inf, -math.inf, 1e-7, 2.0))
        for path in created.by_hand.iterdir():
            (path / "status.json").write_text('{"state": "finished"}')
        for seed, state in ((1, "interrupted"), (2, "failed")):
            run = run_config("qmix", seed, env="mpe", task="simple_tag", tracking=tracked("by_hand"))
            path = make_run(created.by_hand, run, 0.5)
            (path / "result.json").unlink()
            (path / "status.json").write_text(json.dumps({"state": state, "host": "elsewhere", "error": "no memory"}))
        for folder in (runs, created.by_hand):
            code, text = sync(server, home, folder)
            assert code == 0, text
        yield created
        assert server.refused == []


@pytest.fixture
def logged_in(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process has credentials and a separate cache, and forks the processes that read the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "subprocess", commands.Subprocess("wandb"))
    for name, value in environment(world.server, world.home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_login()
    yield world
    world.server.lost, world.server.lost_after = False, {}
    forget_login()


def output_of(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Standard output and standard error of a command that succeeds."""
    code = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out, err


def error_of(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one-line error of a command that is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_the_tables_of_a_sweep_are_those_of_its_folders(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    local, requests = logged_in.sweep, logged_in.server.requests["HistoryPage"]
    for arguments in (
        ["table", "--columns", "parameters,time,cost"],
        ["table", "--format", "csv", "--columns", "parameters,time,cost"],
        ["table", "--metric", "absolute", "--rows", "env,task,seed", "--cols", "mixer,llm"],
    ):
        table, note = output_of(capfd, arguments[0], SWEEP, *arguments[1:])
        assert table == output_of(capfd, arguments[0], local, *arguments[1:])[0] and "climbing" in table
        assert note.startswith(f"{SWEEP}: 4 runs, ") and note.count("\n") == 1
    assert logged_in.server.requests["HistoryPage"] == requests + 4, "each history is read once"
    for figure in ("curves", "bars"):
        output_of(capfd, figure, SWEEP, "-o", "remote.svg")
        output_of(capfd, figure, local, "-o", "local.svg")
        remote_shapes, local_shapes = (shapes(Path(name)) for name in ("remote.svg", "local.svg"))
        assert remote_shapes == local_shapes and len(remote_shapes) > 50


def shapes(figure: Path) -> list[str]:
    """Lines of an SVG with the coordinates of a path."""
    return [line for line in figure.read_text().splitlines() if line.startswith(('    <path d="', "L ", "M "))]


def test_an_ablation_is_the_same_as_that_of_the_folders(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--axis", "train.hidden", "--format", "csv", "--columns", "parameters,time"]
    local = output_of(capfd, "ablation", logged_in.by_hand, *options)[0]
    assert output_of(capfd, "ablation", BY_HAND, *options)[0] == local and "0.30000000000000004" in local


def test_restored_folders_have_everything_that_results_are_made_from(logged_in: World) -> None:
    pairs = [
        (logged_in.sweep.parent, read_project(Address(SWEEP))),
        (logged_in.by_hand, read_project(Address(BY_HAND))),
    ]
    for local, project in pairs:
        assert (project.entity, project.project) == ("team", "by_hand" if local == logged_in.by_hand else "p")
        assert {path.name for path in project.folders} == {path.parent.name for path in local.glob("*/config.yaml")}
        for restored in project.folders:
            original = local / restored.name
            if not (original / "result.json").exists():
                assert not (restored / "result.json").exists()
                continue
            assert repr(rows(restored)) == repr(rows(original))
            results = [json.loads((path / "result.json").read_text()) for path in (restored, original)]
            assert repr(sorted_all(results[0])) == repr(sorted_all(results[1]))
            if (original / "tfcaf.json").exists():
                assert (restored / "tfcaf.json").read_bytes() == (original / "tfcaf.json").read_bytes()
        copies = sorted(collect(project.folders).finished, key=lambda record: record.name)
        originals = sorted(collect([local]).finished, key=lambda record: record.name)
        for copy, record in zip(copies, originals, strict=True):
            assert repr(sorted_all(copy.settings)) == repr(sorted_all(record.settings))
            assert (copy.task, copy.method, copy.seed, copy.cost) == (
                record.task,
                record.method,
                record.seed,
                record.cost,
            )


def rows(folder: Path) -> list[list[tuple[str, object]]]:
    """Rows of a metrics file, each with its keys sorted."""
    return [sorted(json.loads(line).items()) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def sorted_all(node: object) -> object:
    return {key: sorted_all(node[key]) for key in sorted(node)} if isinstance(node, dict) else node


def test_metrics_that_are_not_finite_are_restored_however_the_server_writes_them(logged_in: World) -> None:
    (folder,) = (
        path for path in read_project(Address(BY_HAND)).folders if path.name.startswith("mpe") and "_s0_" in path.name
    )
    returns = [dict(row)["return_mean"] for row in rows(folder)]
    assert returns == [None, None, None, 1e-7, 2.0]
    stored = logged_in.server.runs[folder.name]
    before = list(stored.lines)
    try:
        for word in ('"NaN"', '"-Infinity"', "Infinity"):
            stored.lines[:] = [line.replace("NaN", word) for line in before]
            assert stored.lines != before
            shutil.rmtree(folder)
            read_project(Address(BY_HAND))
            assert [dict(row)["return_mean"] for row in rows(folder)] == returns
    finally:
        stored.lines[:] = before


def test_folders_and_projects_given_together_are_one_comparison(
    logged_in: World, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = output_of(capfd, "table", logged_in.by_hand, "--cols", "mixer,train.hidden")[0]
    folder = next(logged_in.by_hand.glob("*vdn_s1*"))
    assert output_of(capfd, "table", folder, BY_HAND, "--cols", "mixer,train.hidden")[0] == everything
    assert (
        output_of(capfd, "table", BY_HAND, logged_in.by_hand, BY_HAND, "--cols", "mixer,train.hidden")[0] == everything
    )


def test_unfinished_runs_have_the_state_that_the_server_reports(logged_in: World) -> None:
    stored = {run.config["seed"]: run for run in logged_in.server.runs.values() if run.config.get("env") == "mpe"}

    def states() -> dict[int, str]:
        unfinished = collect(read_project(Address(BY_HAND)).folders).unfinished
        assert {(record.task, record.method) for record in unfinished} == {("mpe/simple_tag", "qmix")}
        return {record.seed: record.state for record in unfinished if record.seed is not None}

    assert states() == {1: "interrupted", 2: "failed"}
    before = {seed: run.state for seed, run in stored.items()}
    try:
        stored[1].state, stored[2].state = "running", "crashed"
        assert states() == {1: "running", 2: "dead"}
        stored[1].state, stored[2].state = "killed", "pending"
        stored[0].lines.append(lost := stored[0].lines.pop())
        del stored[0].lines[-1]  # finished, but the server lacks a row
        assert states() == {0: "failed", 1: "failed", 2: "new"}
        stored[0].lines.append(lost)
        assert states() == {1: "failed", 2: "new"}
    finally:
        for seed, state in before.items():
            stored[seed].state = state


def test_only_what_changed_is_read_again(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    server = logged_in.server
    first, note = output_of(capfd, "table", SWEEP)
    assert "4 runs, 4 new or changed" in note
    requests = server.requests.copy()
    second, note = output_of(capfd, "table", SWEEP)
    assert second == first and "4 runs, 0 new or changed" in note
    kinds = set((server.requests - requests).keys())
    assert kinds <= {"Viewer", "GetDefaultEntity", "ServerFeaturesQuery", "Runs"}, kinds
    run = next(iter(server.runs.values()))
    run.summary["wall_s"] += 1
    assert "4 runs, 1 new or changed" in output_of(capfd, "table", SWEEP)[1]
    run.summary["wall_s"] -= 1


def test_foreign_runs_are_counted_and_deleted_runs_disappear(
    logged_in: World, capfd: pytest.CaptureFixture[str]
) -> None:
    server = logged_in.server
    full_table = output_of(capfd, "table", "wandb://team/p")[0]
    template = next(run for run in server.runs.values() if run.project == "p")
    server.add(Run("abc", "p", "lucky-frog-7", raw_config={"lr": {"value": 1}}))
    server.add(dataclasses.replace(template, id="def", raw_config=template.raw_config | {"run": {"value": "../up"}}))
    table, note = output_of(capfd, "table", "wandb://team/p")
    assert table == full_table and note.endswith("4 runs, 0 new or changed; left out: 2 not made by qllm_exp\n")
    server.delete("abc")
    server.delete("def")
    deleted = next(run for run in server.runs.values() if run.project == "p" and run.config["mixer"] == "vdn")
    server.delete(deleted.id)
    try:
        assert "vdn" in (table := output_of(capfd, "table", "wandb://team/p")[0]) and table != full_table
        assert deleted.name not in {
            path.name for path in read_project(Address("wandb://team/p")).folders[0].parent.iterdir()
        }
    finally:
        server.add(deleted)
    assert "1 new or changed" in output_of(capfd, "table", "wandb://team/p")[1]


def test_the_default_entity_is_that_of_the_account(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert output_of(capfd, "table", "wandb://p")[0] == output_of(capfd, "table", "wandb://team/p")[0]


def test_what_was_read_before_the_server_was_lost_is_kept(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    server = logged_in.server
    # At least one of three runs has no function, so that no further request is made for it.
    server.lost_after = {"HistoryPage": server.requests["HistoryPage"] + 3}
    error = error_of(capfd, "table", SWEEP)
    kept = int(error.split(" of 4 runs; these are kept")[0].rpartition(" ")[2])
    assert 0 < kept < 4 and server.url in error and "Type the same command again" in error
    server.lost, server.lost_after = False, {}
    table, note = output_of(capfd, "table", SWEEP)
    assert f"4 runs, {4 - kept} new or changed" in note and table == output_of(capfd, "table", logged_in.sweep)[0]
    server.lost = True
    assert "cannot be read" in error_of(capfd, "table", SWEEP)


@pytest.mark.parametrize(
    "typed", ["wandb:", "wandb://", "wandb:/p", "wandb://a/b/c/d", "wandb://a//b", "wandb://a/b?x"]
)
def test_an_invalid_address_is_answered_with_an_example(typed: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "e.g. wandb://my-team/qllm_exp" in error_of(capfd, "table", typed)


def test_concurrent_commands_read_a_project_once(logged_in: World) -> None:
    requests = logged_in.server.requests["HistoryPage"]
    processes = [commands.start(["-m", "qllm_exp.results", "table", SWEEP]) for _ in range(2)]
    outputs = [process.communicate(100) for process in processes]
    assert outputs[0][0] == outputs[1][0] and "(n=2)" in outputs[0][0], outputs
    assert logged_in.server.requests["HistoryPage"] == requests + 4


def test_a_server_that_does_not_answer_is_given_up(logged_in: World, tmp_path: Path) -> None:
    logged_in.server.wait_s = 30
    code = (
        "import sys; from qllm_exp.tracking import wandb_download; "
        "wandb_download.SILENCE_S = 1.0; wandb_download.main(sys.argv[1:])"
    )
    command = ["-c", code, tmp_path, "team", "p", ""]
    try:
        done = commands.run(command, env=sidecar.environment(), timeout=25, imports="wandb")
    finally:
        logged_in.server.wait_s = 0
    assert done.returncode == 2 and "no answer for 1 s" in json.loads(done.stdout)["error"]


def test_what_does_not_exist_is_one_clear_line(
    logged_in: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "There is no project team/nothing" in error_of(capfd, "table", "wandb://team/nothing")
    assert "has no run of the sweep figure_7" in error_of(capfd, "table", "wandb://team/p/figure_7")
    with monkeypatch.context() as elsewhere:
        Path("file").touch()
        elsewhere.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
        assert "Set XDG_CACHE_HOME to another folder" in error_of(capfd, "table", SWEEP)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert "rejected the stored W&B credentials" in error_of(capfd, "table", SWEEP)
    monkeypatch.delenv("WANDB_API_KEY")
    forget_login()
    assert "Type `wandb login` first" in error_of(capfd, "table", SWEEP)
