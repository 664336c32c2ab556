"""Restoring a run directory from what Weights & Biases has of the run, without a server."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import make_run, run_config

from qllm_exp.config import schema
from qllm_exp.errors import UserError
from qllm_exp.results.records.collect import collect
from qllm_exp.results.records.sources import Address, parse_source, to_folders
from qllm_exp.runs.metrics import MetricsReader
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.versions import changes, resumed_record
from qllm_exp.tracking import wandb_payload, wandb_restore
from qllm_exp.tracking.wandb_restore import RemoteRun


def upload(path: Path, state: str = "finished") -> tuple[RemoteRun, list[dict[str, Any]]]:
    """A run and its history, as a server that stores numbers without their type has them."""
    directory = RunDirectory(path)
    rows = MetricsReader(directory.metrics).read_new()
    task = wandb_payload.task_key(directory.read_config())
    node = {
        "name": wandb_payload.run_id(directory),
        "displayName": path.name,
        "state": state,
        "historyLineCount": len(rows),
        "config": untyped(wandb_payload.flat_config(directory)),
        "summaryMetrics": untyped(wandb_payload.summary(directory.result() or {}, len(rows), task)),
    }
    history = [untyped(wandb_payload.history_row(row, task)) | {"_step": number} for number, row in enumerate(rows)]
    return wandb_restore.parse_run(node, "https://example.org/run"), history


def untyped(node: Any) -> Any:
    """Whole floats as integers: 1.0 is 1."""
    if isinstance(node, dict):
        return {key: untyped(value) for key, value in node.items()}
    return int(node) if isinstance(node, float) and node.is_integer() else node


def metrics_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    train = schema.TrainConfig(gamma=1.0, grad_norm_clip=0.5)
    return make_run(tmp_path / "local", run_config("qmix", 3, env="mpe", task="simple_tag", train=train), 4.0)


def test_a_folder_is_restored_exactly(local: Path, tmp_path: Path) -> None:
    record = resumed_record({"torch": "2.6.0", "kernel": "torch"}, {"torch": "2.7.0", "kernel": "torch"}, 50_000)
    (local / "versions.json").write_text(json.dumps(record))
    run, history = upload(local)
    restored = tmp_path / "restored" / run.name
    wandb_restore.restore(restored, run, history, "")
    assert restored.name == local.name and wandb_restore.is_current(restored, run)
    assert repr([sorted(row.items()) for row in metrics_rows(restored)]) == repr(
        [sorted(row.items()) for row in metrics_rows(local)]
    )
    (original,), (copy,) = (collect([path]).finished for path in (local, restored))
    assert original.versions == copy.versions and list(changes(copy.versions)) == [
        (50_000, {"torch": "2.6.0 -> 2.7.0"})
    ]
    assert repr(original.result["final_return"]) == repr(copy.result["final_return"]) == "4.0"
    assert repr(sorted(original.settings.items())) == repr(sorted(copy.settings.items()))
    assert repr(original.settings["train.gamma"]) == "1.0" and original.parameters == copy.parameters
    assert collect([local, restored]).finished[0].name == local.name, "equal copies are one run"
    assert RunDirectory(restored).read_config().train == RunDirectory(local).read_config().train


def test_histories_may_be_stored_as_tables_with_every_key_in_every_row(local: Path, tmp_path: Path) -> None:
    run, history = upload(local)
    keys = {key for row in history for key in row} | {"training/loss", "absolute/return_mean"}
    table = [{key: row.get(key) for key in keys} for row in reversed(history)]
    wandb_restore.restore(tmp_path / "restored" / run.name, run, [*table, table[0]], "")
    assert metrics_rows(tmp_path / "restored" / run.name) == metrics_rows(local)


@pytest.mark.parametrize("gap", [0, 2, 4])
def test_a_run_with_a_missing_row_is_not_finished_and_is_read_again(local: Path, tmp_path: Path, gap: int) -> None:
    run, history = upload(local)
    del history[gap]
    restored = tmp_path / "restored" / run.name
    wandb_restore.restore(restored, run, history, "")
    (record,) = collect([restored]).unfinished
    assert record.state == "failed" and f"the server has {gap} of its 5 rows" in record.reason
    assert not wandb_restore.is_current(restored, run)


def test_a_run_whose_function_is_missing_is_not_finished(local: Path, tmp_path: Path) -> None:
    run, history = upload(local)
    run = dataclasses.replace(run, config={**run.config, "function": "0123abcd"})
    wandb_restore.restore(tmp_path / "restored" / run.name, run, history, "")
    (record,) = collect([tmp_path / "restored"]).unfinished
    assert "the artifact tfcaf-0123abcd, is not on the server" in record.reason


def test_a_change_on_the_server_changes_the_fingerprint(local: Path) -> None:
    run, _ = upload(local)
    others = [
        dataclasses.replace(run, state="crashed"),
        dataclasses.replace(run, history_lines=run.history_lines + 1),
        dataclasses.replace(run, summary={**run.summary, "final_return": 5}),
        dataclasses.replace(run, config={**run.config, "seed": 4}),
    ]
    assert len({other.fingerprint for other in (run, *others)}) == 5
    assert dataclasses.replace(run, url="x").fingerprint == run.fingerprint


@pytest.mark.parametrize("name", ["../up", "a/b", "/tmp/x", "", ".hidden", "renamed"])
def test_only_folder_names_of_this_package_are_accepted(local: Path, name: str) -> None:
    run, _ = upload(local)
    renamed = dataclasses.replace(run, config={**run.config, "run": name}, display_name=name)
    assert renamed.name == ""
    hashed = dataclasses.replace(renamed, id=wandb_payload.id_from_name(name))
    assert hashed.name == ("renamed" if name == "renamed" else "")
    assert dataclasses.replace(run, display_name="my best run").name == local.name, (
        "a user may rename a run on its page"
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
    assert parse_source(typed) == Address(typed) and Address(typed).parts() == parts


def test_folders_stay_folders(tmp_path: Path) -> None:
    assert to_folders([parse_source("runs"), tmp_path]) == [Path("runs"), tmp_path]
    with pytest.raises(UserError, match="not the address"):
        to_folders([tmp_path, parse_source("wandb://a/../b")])
