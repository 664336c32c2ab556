"""JSON files and configurations of runs: strict and lenient reading, and dotted keys."""

from pathlib import Path

import pytest

from qllm_exp.errors import UserError
from qllm_exp.runs.config_reader import ConfigReader
from qllm_exp.runs.dotted_keys import flatten, nest
from qllm_exp.runs.json_files import parse_object, read_bytes, read_object, write_object


def test_an_object_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_object(path, {"state": "running", "return": 0.5})
    assert read_object(path) == {"state": "running", "return": 0.5}
    assert read_bytes(path) == b'{\n "state": "running",\n "return": 0.5\n}\n'


@pytest.mark.parametrize("content", ["", '{"state": "runn', "[1]", "\x00"])
def test_a_file_without_an_object_is_empty_or_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "status.json"
    assert read_object(path) == {} and read_bytes(path) is None
    path.write_text(content)
    assert read_object(path) == {}
    with pytest.raises(UserError, match=f"{path} is (truncated or not valid JSON|not a JSON object)"):
        parse_object(path, path.read_bytes())


def test_blocks_of_configurations_are_parsed_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# head\ntrain:\n  learning_rate: 1e-4\nseed: 0\n")
    reader = ConfigReader()
    head, train, seed = reader.blocks(path)
    assert (reader.parse(head), reader.parse(seed)) == ({}, {"seed": 0})
    assert reader.parse(train) == {"train": {"learning_rate": 0.0001}}
    assert reader.parse(train) is reader.parse(train)
    path.write_bytes(b"seed: \xff\n")
    with pytest.raises(UserError, match=f"{path} is not a valid run configuration"):
        reader.blocks(path)


def test_dotted_keys_and_back() -> None:
    nested = {"train": {"evaluation": {"every": 5}, "gamma": 0.9}, "seed": 1}
    assert flatten(nested) == {"train.evaluation.every": 5, "train.gamma": 0.9, "seed": 1}
    assert nest(flatten(nested)) == nested
