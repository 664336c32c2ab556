"""Runs are put together only where they are the same method."""

import dataclasses
import json
from pathlib import Path

from omegaconf import OmegaConf

from qllm_exp import schema
from qllm_exp.results.collect import collect


def run_folder(path: Path, run: schema.Run, program: object = None) -> Path:
    path.mkdir()
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(run)), path / "config.yaml")
    (path / "metrics.jsonl").write_text(json.dumps({"kind": "evaluation", "env_step": 0, "return_mean": 1.0}) + "\n")
    (path / "result.json").write_text(json.dumps({"final_return": 1.0, "absolute_return": 1.0}))
    if program is not None:
        (path / "tfcaf.json").write_text(json.dumps({"program": program}))
    return path


def names(paths: list[Path]) -> list[str]:
    return [one.method for one in collect(paths)]


def test_runs_with_other_functions_are_other_methods(tmp_path: Path) -> None:
    runs = [schema.Run(seed=0), schema.Run(seed=1), schema.Run(seed=0, mixer=schema.Tfcaf(file="other.json"))]
    programs = [{"a": 1}, {"a": 1}, {"a": 2}]
    paths = [run_folder(tmp_path / str(i), *pair) for i, pair in enumerate(zip(runs, programs, strict=True))]
    one, same, other = names(paths)
    assert one == same != other and one.startswith("tfcaf function=")
    assert names(paths[:2]) == ["tfcaf", "tfcaf"]


def test_who_writes_functions_is_nothing_to_a_mixer_that_uses_none(tmp_path: Path) -> None:
    runs = [schema.Run(mixer=schema.Vdn()), schema.Run(mixer=schema.Vdn(), llm=schema.Online(name="openai"), seed=1)]
    assert names([run_folder(tmp_path / str(i), run) for i, run in enumerate(runs)]) == ["vdn", "vdn"]


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    runs = [schema.Run(mixer=schema.Vdn(), train=schema.Train(learning_rate=rate)) for rate in (1e-3, 1e-4)]
    paths = [run_folder(tmp_path / str(i), run) for i, run in enumerate(runs)]
    assert names(paths) == ["vdn learning_rate=0.001", "vdn learning_rate=0.0001"]
