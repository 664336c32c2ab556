"""A project of Weights & Biases in place of folders: the same tables, read once, whatever becomes of the server."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_wandb import LoopbackWandb, Run
from run_folders import make, of
from tracked import SHORT, environment

from qllm_exp.config import schema
from qllm_exp.results.__main__ import main
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.sources import Address, read
from qllm_exp.tracking import sidecar, wandb_login

SWEEP = "wandb://team/p/figure_1"
BY_HAND = "wandb://team/by_hand"


@dataclasses.dataclass
class World:
    """A server with a sweep of four runs in project 'p' and seven runs of other kinds in 'by_hand', and their folders here."""

    server: LoopbackWandb
    home: Path
    sweep: Path
    by_hand: Path


def tracked(project: str) -> schema.WandbConfig:
    return schema.WandbConfig(mode="offline", project=project)


def send(world: World, folder: Path) -> None:
    command = [sys.executable, "-m", "qllm_exp.results", "sync", str(folder)]
    given = environment(world.server, world.home)
    done = subprocess.run(command, env=given, cwd=world.home, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    runs = home / "runs"
    with LoopbackWandb() as server:
        command = [sys.executable, "-m", "qllm_exp", "-m", *SHORT, "mixer=tfcaf,vdn", "seed=0-1", "sweep.name=figure_1"]
        given = environment(server, home)
        done = subprocess.run(
            [*command, f"dir={runs}"], env=given, cwd=home, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        made = World(server, home, runs / "figure_1", home / "by_hand")
        for seed in range(2):
            for hidden in (32, 64):
                run = of("vdn", seed, train=schema.TrainConfig(hidden=hidden, gamma=1.0), tracking=tracked("by_hand"))
                make(made.by_hand, run, 1.0 if seed else 0.1 + 0.2, usd=None)
        odd = of("qmix", 0, env="mpe", task="simple_tag", tracking=tracked("by_hand"))
        make(made.by_hand, odd, 2.0, returns=(math.nan, math.inf, -math.inf, 1e-7, 2.0))
        for path in made.by_hand.iterdir():
            (path / "status.json").write_text('{"state": "finished"}')
        for seed, state in ((1, "interrupted"), (2, "failed")):
            run = of("qmix", seed, env="mpe", task="simple_tag", tracking=tracked("by_hand"))
            path = make(made.by_hand, run, 0.5)
            (path / "result.json").unlink()
            (path / "status.json").write_text(json.dumps({"state": state, "host": "elsewhere", "error": "no memory"}))
        send(made, made.by_hand)
        yield made
        assert server.refused == []


@pytest.fixture
def logged_in(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process has a login, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(world.server, world.home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_login()
    yield world
    world.server.lost, world.server.lost_after = False, {}
    forget_login()


def forget_login() -> None:
    wandb_login.logged_in.cache_clear()
    wandb_login.server.cache_clear()


def said(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """What a command says that goes well."""
    code = main([str(one) for one in arguments])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out, err


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(one) for one in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_the_tables_of_a_sweep_are_those_of_its_folders(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    here, asked = logged_in.sweep, logged_in.server.asked["HistoryPage"]
    for arguments in (
        ["table", "--columns", "parameters,time,cost"],
        ["table", "--format", "csv", "--columns", "parameters,time,cost"],
        ["table", "--metric", "absolute", "--rows", "env,task,seed", "--cols", "mixer,llm"],
    ):
        there, note = said(capfd, arguments[0], SWEEP, *arguments[1:])
        assert there == said(capfd, arguments[0], here, *arguments[1:])[0] and "climbing" in there
        assert note.startswith(f"{SWEEP}: 4 runs, ") and note.count("\n") == 1
    assert logged_in.server.asked["HistoryPage"] == asked + 4, "each history is read once"
    for figure in ("curves", "bars"):
        said(capfd, figure, SWEEP, "-o", "there.svg")
        said(capfd, figure, here, "-o", "here.svg")
        pictures = [shapes(Path(name)) for name in ("there.svg", "here.svg")]
        assert pictures[0] == pictures[1] and len(pictures[0]) > 50


def shapes(picture: Path) -> list[str]:
    """Lines of an SVG with a path's coordinates."""
    return [line for line in picture.read_text().splitlines() if line.startswith(('    <path d="', "L ", "M "))]


def test_an_ablation_is_that_of_the_folders(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["--axis", "train.hidden", "--format", "csv", "--columns", "parameters,time"]
    local = said(capfd, "ablation", logged_in.by_hand, *more)[0]
    assert said(capfd, "ablation", BY_HAND, *more)[0] == local and "0.30000000000000004" in local


def test_folders_come_back_with_all_that_results_are_made_of(logged_in: World) -> None:
    pairs = [(logged_in.sweep.parent, read(Address(SWEEP))), (logged_in.by_hand, read(Address(BY_HAND)))]
    for local, project in pairs:
        assert (project.entity, project.project) == ("team", "by_hand" if local == logged_in.by_hand else "p")
        assert {path.name for path in project.folders} == {path.parent.name for path in local.glob("*/config.yaml")}
        for there in project.folders:
            here = local / there.name
            if not (here / "result.json").exists():
                assert not (there / "result.json").exists()
                continue
            assert repr(rows(there)) == repr(rows(here))
            results = [json.loads((path / "result.json").read_text()) for path in (there, here)]
            assert repr(sorted_all(results[0])) == repr(sorted_all(results[1]))
            if (here / "tfcaf.json").exists():
                assert (there / "tfcaf.json").read_bytes() == (here / "tfcaf.json").read_bytes()
        found, known = collect(project.folders).finished, collect([local]).finished
        for one, other in zip(sorted(found, key=lambda r: r.name), sorted(known, key=lambda r: r.name), strict=True):
            assert repr(sorted_all(one.settings)) == repr(sorted_all(other.settings))
            assert (one.task, one.method, one.seed, one.cost) == (other.task, other.method, other.seed, other.cost)


def rows(folder: Path) -> list[list[tuple[str, object]]]:
    """Of a metrics file, whatever the order within a row."""
    return [sorted(json.loads(line).items()) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def sorted_all(node: object) -> object:
    return {key: sorted_all(node[key]) for key in sorted(node)} if isinstance(node, dict) else node


def test_figures_that_are_not_finite_come_back_whichever_way_the_server_writes_them(logged_in: World) -> None:
    (there,) = (path for path in read(Address(BY_HAND)).folders if path.name.startswith("mpe") and "_s0_" in path.name)
    returns = [dict(row)["return_mean"] for row in rows(there)]
    assert repr(returns) == repr([math.nan, math.inf, -math.inf, 1e-7, 2.0])
    kept = logged_in.server.runs[there.name]
    words = {"NaN": '"NaN"', "-Infinity": '"-Infinity"', ":Infinity": ':"Infinity"'}
    before = list(kept.lines)
    try:
        for word, quoted in words.items():
            kept.lines[:] = [line.replace(word, quoted) for line in kept.lines]
        assert kept.lines != before
        shutil.rmtree(there)
        read(Address(BY_HAND))
        assert repr([dict(row)["return_mean"] for row in rows(there)]) == repr(returns)
    finally:
        kept.lines[:] = before


def test_folders_and_projects_given_together_are_one_comparison(
    logged_in: World, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = said(capfd, "table", logged_in.by_hand, "--cols", "mixer,train.hidden")[0]
    one = next(logged_in.by_hand.glob("*vdn_s1*"))
    assert said(capfd, "table", one, BY_HAND, "--cols", "mixer,train.hidden")[0] == everything
    assert said(capfd, "table", BY_HAND, logged_in.by_hand, BY_HAND, "--cols", "mixer,train.hidden")[0] == everything


def test_runs_that_are_not_finished_stand_as_the_server_says(logged_in: World) -> None:
    kept = {run.config["seed"]: run for run in logged_in.server.runs.values() if run.config.get("env") == "mpe"}

    def states() -> dict[int, str]:
        unfinished = collect(read(Address(BY_HAND)).folders).unfinished
        assert {(one.task, one.method) for one in unfinished} == {("mpe/simple_tag", "qmix")}
        return {one.seed: one.state for one in unfinished if one.seed is not None}

    assert states() == {1: "stopped", 2: "failed"}
    before = {seed: run.state for seed, run in kept.items()}
    try:
        for state, ours in {"running": "running", "crashed": "dead", "killed": "failed", "pending": "new"}.items():
            kept[1].state = state
            assert states() == {1: ours, 2: "failed"}
        kept[0].lines.append(lost := kept[0].lines.pop())
        del kept[0].lines[-1]  # finished, and the server has not all of it
        assert states() == {0: "failed", 1: "new", 2: "failed"}
        kept[0].lines.append(lost)
        assert states() == {1: "new", 2: "failed"}
    finally:
        for seed, state in before.items():
            kept[seed].state = state


def test_only_what_changed_is_read_again(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    server = logged_in.server
    first, note = said(capfd, "table", SWEEP)
    assert "4 runs, 4 new or changed" in note
    asked = server.asked.copy()
    again, note = said(capfd, "table", SWEEP)
    assert again == first and "4 runs, 0 new or changed" in note
    kinds = set((server.asked - asked).keys())
    assert kinds <= {"Viewer", "GetDefaultEntity", "ServerFeaturesQuery", "Runs"}, kinds
    run = next(iter(server.runs.values()))
    run.summary["wall_s"] += 1
    assert "4 runs, 1 new or changed" in said(capfd, "table", SWEEP)[1]
    run.summary["wall_s"] -= 1


def test_runs_of_others_are_counted_and_deleted_ones_leave(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    server = logged_in.server
    whole = said(capfd, "table", "wandb://team/p")[0]
    like_ours = next(run for run in server.runs.values() if run.project == "p")
    server.add(Run("abc", "p", "lucky-frog-7", raw_config={"lr": {"value": 1}}))
    server.add(dataclasses.replace(like_ours, id="def", raw_config=like_ours.raw_config | {"run": {"value": "../up"}}))
    table, note = said(capfd, "table", "wandb://team/p")
    assert table == whole and note.endswith("4 runs, 0 new or changed; left out: 2 not made by qllm_exp\n")
    server.delete("abc")
    server.delete("def")
    gone = next(run for run in server.runs.values() if run.project == "p" and run.config["mixer"] == "vdn")
    server.delete(gone.id)
    try:
        assert "vdn" in (table := said(capfd, "table", "wandb://team/p")[0]) and table != whole
        assert gone.name not in {path.name for path in read(Address("wandb://team/p")).folders[0].parent.iterdir()}
    finally:
        server.add(gone)
    assert "1 new or changed" in said(capfd, "table", "wandb://team/p")[1]


def test_the_default_entity_is_that_of_the_account(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert said(capfd, "table", "wandb://p")[0] == said(capfd, "table", "wandb://team/p")[0]


def test_what_was_read_before_the_server_was_lost_is_kept(logged_in: World, capfd: pytest.CaptureFixture[str]) -> None:
    server = logged_in.server
    # Of three runs one at least has no function, so that nothing more is asked for it.
    server.lost_after = {"HistoryPage": server.asked["HistoryPage"] + 3}
    told = refused(capfd, "table", SWEEP)
    kept = int(told.split(" of 4 runs; these are kept")[0].rpartition(" ")[2])
    assert 0 < kept < 4 and server.url in told and "goes on from there" in told
    server.lost, server.lost_after = False, {}
    table, note = said(capfd, "table", SWEEP)
    assert f"4 runs, {4 - kept} new or changed" in note and table == said(capfd, "table", logged_in.sweep)[0]
    server.lost = True
    assert "cannot be read" in refused(capfd, "table", SWEEP)


@pytest.mark.parametrize(
    "typed", ["wandb:", "wandb://", "wandb:/p", "wandb://a/b/c/d", "wandb://a//b", "wandb://a/b?x"]
)
def test_what_is_no_address_is_answered_with_one_that_is(typed: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "e.g. wandb://my-team/qllm_exp" in refused(capfd, "table", typed)


def test_several_at_once_read_a_project_once(logged_in: World) -> None:
    asked = logged_in.server.asked["HistoryPage"]
    command = [sys.executable, "-m", "qllm_exp.results", "table", SWEEP]
    at_once = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [one.communicate(timeout=100) for one in at_once]
    assert told[0][0] == told[1][0] and "(n=2)" in told[0][0], told
    assert logged_in.server.asked["HistoryPage"] == asked + 4


def test_a_server_that_says_nothing_is_given_up(logged_in: World, tmp_path: Path) -> None:
    logged_in.server.wait_s = 30
    code = (
        "import sys; from qllm_exp.tracking import wandb_source as source; "
        "source.SILENCE_S = 1.0; source.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "team", "p", ""]
    try:
        done = subprocess.run(command, env=sidecar.environment(), capture_output=True, text=True, timeout=25)
    finally:
        logged_in.server.wait_s = 0
    assert done.returncode == 2 and "no answer for 1 s" in json.loads(done.stdout)["error"]


def test_what_is_not_there_is_one_clear_line(
    logged_in: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "There is no project team/nothing" in refused(capfd, "table", "wandb://team/nothing")
    assert "has no run of the sweep figure_7" in refused(capfd, "table", "wandb://team/p/figure_7")
    with monkeypatch.context() as elsewhere:
        Path("file").touch()
        elsewhere.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
        assert "Set XDG_CACHE_HOME to another folder" in refused(capfd, "table", SWEEP)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert "does not take the login" in refused(capfd, "table", SWEEP)
    monkeypatch.delenv("WANDB_API_KEY")
    forget_login()
    assert "Type `wandb login` first" in refused(capfd, "table", SWEEP)
