"""A Weights & Biases workspace, built for the runs of a project and saved, against a local stand-in for the server."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from loopback_wandb import LoopbackWandb
from run_folders import make_run, run_config
from tracked import environment, forget_login, sync

from qllm_exp.config import schema
from qllm_exp.credit.stored_function import bundled_path
from qllm_exp.results import dashboard_plan
from qllm_exp.results.__main__ import main
from qllm_exp.results.records import sources

ADDRESS = "wandb://team/p/figure_1"
TASKS = {"lbf/8x8-2p-2f-coop-2s": "tasks/lbf/8x8-2p-2f-coop-2s", "mpe/simple_spread": "tasks/mpe/simple_spread"}
OFFLINE = {"tracking": schema.WandbConfig(mode="offline", project="p"), "sweep": schema.SweepConfig(name="figure_1")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackWandb]:
    """With two tasks; of VDN with two sizes, of QMIX and a function with one each; and a run of no sweep."""
    home = tmp_path_factory.mktemp("home")
    runs = [run_config("vdn", 0, train=schema.TrainConfig(hidden=hidden), **OFFLINE) for hidden in (32, 64)]
    runs += [run_config("qmix", 0, **OFFLINE), run_config("tfcaf", 0, **OFFLINE)]
    runs += [run_config("qmix", 0, env="mpe", task="simple_spread", **OFFLINE)]
    runs += [run_config("qmix", 0, env="mpe", task="simple_tag", tracking=OFFLINE["tracking"])]
    for run in runs:
        path = make_run(home / "runs", run, 0.5)
        (path / "status.json").write_text('{"state": "finished"}')
        if run.mixer.name == "tfcaf":
            (path / "tfcaf.json").write_bytes(bundled_path("lbf", "8x8-2p-2f-coop-2s").read_bytes())
    with LoopbackWandb() as wandb_server:
        code, text = sync(wandb_server, home, home / "runs")
        assert code == 0, text
        yield wandb_server
        assert wandb_server.refused == []


@pytest.fixture(autouse=True)
def logged_in(server: LoopbackWandb, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.getbasetemp() / "dashboard"  # with one cache for all tests
    home.mkdir(exist_ok=True)
    for module in (dashboard_plan, sources):
        monkeypatch.setattr(module, "subprocess", commands.Subprocess("wandb"))
    for name, value in (environment(server, home) | {"XDG_CACHE_HOME": str(home)}).items():
        monkeypatch.setenv(name, value)
    forget_login()


def spec_of(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What --print says."""
    assert main(["dashboard", ADDRESS, "--print", *arguments]) == 0
    spec: dict[str, Any] = json.loads(capfd.readouterr().out)["section"]
    return spec


def panels_of(spec: dict[str, Any], section: str) -> list[dict[str, Any]]:
    (match,) = (candidate for candidate in spec["panelBankConfig"]["sections"] if candidate["name"] == section)
    return list(match["panels"])


def configs(panels: list[dict[str, Any]], kind: str, key: str) -> list[Any]:
    return [panel["config"].get(key) for panel in panels if panel["viewType"] == kind]


def chosen(spec: dict[str, Any]) -> dict[str, Any]:
    """What the table of runs is filtered by."""
    (runs,) = spec["runSets"]
    return {condition["key"]["name"]: condition["value"] for condition in runs["filters"]["filters"]}


def test_baselines_are_saved_once_with_a_section_for_each_task(
    server: LoopbackWandb, capfd: pytest.CaptureFixture[str]
) -> None:
    for times in (1, 2):
        assert main(["dashboard", ADDRESS]) == 0
        out = capfd.readouterr().out
        (view,) = server.views
        assert view.saved == times and view.display_name == "qllm_exp baselines figure_1" and view.project == "p"
        slug = view.name.removeprefix("nw-").removesuffix("-v")
        assert out == f"{server.url}/team/p?nw={slug}\n"
    assert main(["dashboard", ADDRESS, "--name", "mine"]) == 0
    assert [view.display_name for view in server.views] == ["qllm_exp baselines figure_1", "mine"]
    spec = view.spec["section"]
    names = [section["name"] for section in spec["panelBankConfig"]["sections"]]
    assert names == [*TASKS, "Cost of the runs", "Credit-assignment functions"]
    for task, figures in TASKS.items():
        panels = panels_of(spec, task)
        assert configs(panels, "Run History Line Plot", "metrics") == [[f"{figures}/return_mean"]]
        assert configs(panels, "Run History Line Plot", "xAxis") == ["env_step"]
        finals = [[f"{figures}/final_return"], [f"{figures}/absolute_return"]]
        assert configs(panels, "Bar Chart", "metrics") == finals
    sent = {key for run in server.runs.values() for key in (*run.summary, *(k for row in run.history for k in row))}
    drawn = {
        name for section in names for panel in panels_of(spec, section) for name in panel["config"].get("metrics", [])
    }
    assert len(drawn) == 10 and drawn <= sent, "every panel draws a metric that runs send"


def test_runs_are_grouped_by_keys_of_their_configuration_as_the_server_keeps_them(
    server: LoopbackWandb, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(capfd)
    (runs,) = spec["runSets"]
    grouping = [(group["section"], group["name"]) for group in runs["grouping"]]
    assert grouping == [("config", "task.value"), ("config", "mixer.value"), ("config", "train.hidden.value")]
    kept = next(iter(server.runs.values())).raw_config
    assert all(name.removesuffix(".value") in kept for _, name in grouping)
    assert chosen(spec) == {"mixer": ["tfcaf", "qmix", "vdn"], "group": "figure_1"}
    columns = runs["runFeed"]["columnOrder"]
    assert columns[:2] == ["run:displayName", "config:task.value"] and "summary:absolute_return" in columns
    assert {"summary:parameters.mixer", "summary:speed/steps_per_s", "config:seed.value"} <= set(columns)
    assert spec["settings"]["useRunsTableGroupingInPanels"] and spec["settings"]["xAxis"] == "env_step"
    assert configs(panels_of(spec, next(iter(TASKS))), "Bar Chart", "groupBy") == [None, None], "as the table is"


def test_an_ablation_is_by_what_varies_or_by_what_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(capfd, "--preset", "ablation")
    panels = panels_of(spec, "lbf/8x8-2p-2f-coop-2s")
    assert configs(panels, "Run History Line Plot", "groupBy") == ["train.hidden.value"]
    (columns,) = configs(panels, "Parallel Coordinates Plot", "columns")
    accessors = [column["accessor"] for column in columns]
    assert accessors == ["config:train.hidden.value", "summary:tasks/lbf/8x8-2p-2f-coop-2s/final_return"]
    named = spec_of(capfd, "--preset", "ablation", "--axis", "tfcaf.rounds,tfcaf.candidates")
    assert chosen(named)["mixer"] == ["tfcaf"]
    panels = panels_of(named, "lbf/8x8-2p-2f-coop-2s")
    assert configs(panels, "Bar Chart", "groupBy") == [*["tfcaf.rounds.value"] * 2, *["tfcaf.candidates.value"] * 2]


def test_functions_are_shown_as_text_and_as_artifacts(
    server: LoopbackWandb, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_plan, "subprocess", subprocess)  # once as for users, without a fork
    saved = len(server.views)
    text, artifact = panels_of(spec_of(capfd), "Credit-assignment functions")
    stored = json.loads(bundled_path("lbf", "8x8-2p-2f-coop-2s").read_text())
    assert stored["source"] in text["config"]["value"]
    assert f'"tfcaf-{stored["hash"][:8]}"' in json.dumps(artifact) and server.artifacts[0].name in json.dumps(artifact)
    assert len(server.views) == saved, "--print saves nothing"


def test_errors_are_one_clear_line(server: LoopbackWandb, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["dashboard", *arguments]) == 2
        out, err = capfd.readouterr()
        (line,) = (candidate for candidate in err.splitlines() if candidate.startswith("error: "))
        assert out == "" and "Traceback" not in err
        return line

    assert "Did you mean 'train.hidden'? Settings that vary: train.hidden." in refused(ADDRESS, "--axis", "train.hiden")
    assert "is not the address" in refused("runs")
    assert "--name='\U0001f600' is not accepted" in refused(ADDRESS, "--print", "--name", "\U0001f600")
    server.lost_after = {"UpsertView2": server.requests["UpsertView2"]}
    try:
        assert "did not accept the workspace" in refused(ADDRESS, "--name", "lost")
    finally:
        server.lost, server.lost_after = False, {}


def test_where_nothing_varies_there_is_no_ablation(tmp_path: Path) -> None:
    from qllm_exp.errors import UserError
    from qllm_exp.results.records.sources import Project

    paths = [make_run(tmp_path, run_config(mixer, seed), 0.5) for mixer in ("qmix", "vdn") for seed in range(2)]
    project = Project("team", "p", "", tuple(paths))
    with pytest.raises(UserError, match="Nothing varies"):
        dashboard_plan.make_plan(project, "ablation")
    baselines = dashboard_plan.make_plan(project, "baselines")
    assert (baselines.groupby, baselines.mixers, baselines.name) == (["mixer"], ["qmix", "vdn"], "qllm_exp baselines")
