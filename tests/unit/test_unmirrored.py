"""The way from what Weights & Biases was told of a run back to its folder, without a server."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import make, of

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.sources import Address, local, source
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking import wandb_payload, wandb_restore
from qllm_exp.tracking.wandb_restore import RemoteRun


def sent(path: Path, state: str = "finished") -> tuple[RemoteRun, list[dict[str, Any]]]:
    """A run and its history as a server has them that keeps numbers without their kind."""
    directory = RunDirectory(path)
    rows = wandb_payload.Rows(directory.metrics).new()
    task = wandb_payload.task_key(directory.read_config())
    node = {
        **{
            "name": wandb_payload.run_id(directory),
            "displayName": path.name,
            "state": state,
            "historyLineCount": len(rows),
        },
        "config": plain(wandb_payload.flat_config(directory)),
        "summaryMetrics": plain(wandb_payload.summary(directory.result() or {}, len(rows), task)),
    }
    history = [plain(wandb_payload.logged(row, task)) | {"_step": number} for number, row in enumerate(rows)]
    return wandb_restore.told(node, "https://example.org/run"), history


def plain(node: Any) -> Any:
    """1.0 is 1."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return int(node) if isinstance(node, float) and node.is_integer() else node


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    train = schema.TrainConfig(gamma=1.0, grad_norm_clip=0.5)
    return make(tmp_path / "here", of("qmix", 3, env="mpe", task="simple_tag", train=train), 4.0)


def test_a_folder_comes_back_as_it_was(here: Path, tmp_path: Path) -> None:
    run, history = sent(here)
    there = tmp_path / "there" / run.name
    wandb_restore.make(there, run, history, "")
    assert there.name == here.name and wandb_restore.is_made(there, run)
    assert repr([sorted(row.items()) for row in lines(there)]) == repr([sorted(row.items()) for row in lines(here)])
    (one,), (other,) = (collect([path]).finished for path in (here, there))
    assert repr(one.result["final_return"]) == repr(other.result["final_return"]) == "4.0"
    assert repr(sorted(one.settings.items())) == repr(sorted(other.settings.items()))
    assert repr(one.settings["train.gamma"]) == "1.0" and one.parameters == other.parameters
    assert collect([here, there]).finished[0].name == here.name, "copies that agree are one run"
    assert RunDirectory(there).read_config().train == RunDirectory(here).read_config().train


def test_histories_kept_as_tables_have_every_key_in_every_row(here: Path, tmp_path: Path) -> None:
    run, history = sent(here)
    keys = {key for row in history for key in row} | {"training/loss", "absolute/return_mean"}
    table = [{key: row.get(key) for key in keys} for row in reversed(history)]
    wandb_restore.make(tmp_path / "there" / run.name, run, [*table, table[0]], "")
    assert lines(tmp_path / "there" / run.name) == lines(here)


@pytest.mark.parametrize("gap", [0, 2, 4])
def test_a_run_of_which_a_row_is_missing_is_not_finished_and_is_looked_at_again(
    here: Path, tmp_path: Path, gap: int
) -> None:
    run, history = sent(here)
    del history[gap]
    there = tmp_path / "there" / run.name
    wandb_restore.make(there, run, history, "")
    (one,) = collect([there]).unfinished
    assert one.state == "failed" and f"the server has {gap} of its 5 rows" in one.why
    assert not wandb_restore.is_made(there, run)


def test_a_run_whose_function_is_gone_is_not_finished(here: Path, tmp_path: Path) -> None:
    run, history = sent(here)
    run = dataclasses.replace(run, config={**run.config, "function": "0123abcd"})
    wandb_restore.make(tmp_path / "there" / run.name, run, history, "")
    (one,) = collect([tmp_path / "there"]).unfinished
    assert "the artifact tfcaf-0123abcd, is not on the server" in one.why


def test_whatever_changes_on_the_server_is_seen(here: Path) -> None:
    run, _ = sent(here)
    others = [
        dataclasses.replace(run, state="crashed"),
        dataclasses.replace(run, lines=run.lines + 1),
        dataclasses.replace(run, summary={**run.summary, "final_return": 5}),
        dataclasses.replace(run, config={**run.config, "seed": 4}),
    ]
    assert len({one.mark for one in (run, *others)}) == 5 and dataclasses.replace(run, url="x").mark == run.mark


@pytest.mark.parametrize("name", ["../up", "a/b", "/tmp/x", "", ".hidden", "renamed"])
def test_only_names_of_folders_that_we_gave_are_taken(here: Path, name: str) -> None:
    run, _ = sent(here)
    own = dataclasses.replace(run, config={**run.config, "run": name}, shown=name)
    assert own.name == ""
    hashed = dataclasses.replace(own, id=wandb_payload.id_of(name))
    assert hashed.name == ("renamed" if name == "renamed" else "")
    assert dataclasses.replace(run, shown="my best run").name == here.name, (
        "what it is called on its page does not matter"
    )


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("wandb://p", ("", "p", "")),
        ("wandb://team/p", ("team", "p", "")),
        ("wandb://team/p/", ("team", "p", "")),
        ("wandb://team/p/sweep_1", ("team", "p", "sweep_1")),
    ],
)
def test_addresses_have_one_to_three_parts(typed: str, parts: tuple[str, str, str]) -> None:
    assert source(typed) == Address(typed) and Address(typed).parts() == parts


def test_folders_stay_folders(tmp_path: Path) -> None:
    assert local([source("runs"), tmp_path]) == [Path("runs"), tmp_path]
    with pytest.raises(UserError, match="no address"):
        local([tmp_path, source("wandb://a/../b")])
