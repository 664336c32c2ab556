"""The directory of a run: its files are JSON for every program, and readable for those that the umask allows."""

import math
import os
from pathlib import Path

import pytest
from run_folders import run_config

from qllm_exp.results.records.reader import Reader
from qllm_exp.runs.metrics import MetricsReader, read_rows
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.utils.files import parse_strict_json

ROW = {"kind": "evaluation", "env_step": 0, "return_mean": math.nan, "return_std": math.inf, "episodes": 4}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A finished run whose environment gave the reward NaN."""
    directory = RunDirectory(tmp_path / "run")
    directory.create(run_config("vdn"), None)
    directory.open_metrics(0)
    directory.append(ROW)  # type: ignore[arg-type]
    directory.append(ROW | {"env_step": 50, "return_mean": 0.5, "return_std": 0.0})  # type: ignore[arg-type]
    directory.set_status("finished", **{"return": math.nan})
    directory.finish({"final_return": 0.5, "absolute_return": math.nan, "parameters": {"agent": 3}})
    directory.close()
    return directory


def test_every_file_is_json_though_returns_are_nan(directory: RunDirectory) -> None:
    for line in directory.metrics.read_bytes().splitlines():
        parse_strict_json(line)
    for name in ("status.json", "result.json"):
        parse_strict_json((directory.path / name).read_bytes())


def test_all_readers_agree_on_returns_that_are_nan(directory: RunDirectory) -> None:
    for rows in (read_rows(directory.metrics), MetricsReader(directory.metrics).read_new()):
        assert [math.isnan(row["return_mean"]) for row in rows] == [True, False]  # type: ignore[typeddict-item]
        assert math.isnan(rows[0]["return_std"]) and rows[1]["return_mean"] == 0.5  # type: ignore[typeddict-item]
    result = directory.result()
    assert result is not None and math.isnan(result["absolute_return"]) and result["parameters"] == {"agent": 3}
    finished = Reader().finished(directory.path)
    assert finished is not None and math.isnan(finished[0].returns[0]) and finished[0].returns[1] == 0.5
    assert math.isnan(finished[0].result["absolute_return"])


def test_rows_that_an_older_version_wrote_with_nan_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "evaluation", "env_step": 0, "return_mean": NaN}\n')
    assert math.isnan(read_rows(tmp_path / "metrics.jsonl")[0]["return_mean"])


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    previous = os.umask(mask)
    try:
        directory = RunDirectory(tmp_path / "run")
        directory.create(run_config("vdn"), "{}")
        directory.lock()
        directory.open_metrics(0)
        directory.set_status("running")
        directory.close()
    finally:
        os.umask(previous)
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.path.iterdir()}
    assert modes.keys() == {"config.yaml", "tfcaf.json", ".lock", "metrics.jsonl", "status.json"}
    assert set(modes.values()) == {0o666 & ~mask}
