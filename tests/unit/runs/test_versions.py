"""Versions of a run: the hash of the training files, what is compared when a run is resumed, and the record of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qllm_exp.runs import versions
from qllm_exp.runs.versions import changes, differences, resumed_record, segments, source_hash

ROOT = Path(__file__).parents[3]
BEFORE = {
    "qllm_exp": "0.2.0",
    "commit": "a" * 40,
    "source": "1111111111",
    "python": "3.11.2",
    "torch": "2.6.0",
    "hydra-core": "1.3.2",
    "machine": "x86_64",
    "processor": "GenuineIntel AVX512",
    "kernel": "native 0123456789",
    "system": "Linux-6.1",
    "host": "node1",
}

TRAIN = """
import json, sys
from dataclasses import replace
from pathlib import Path
from qllm_exp.config.compose import compose_run
from qllm_exp.experiment import execute
from qllm_exp.runs.run_directory import RunDirectory
run = compose_run(["env=lbf", "mixer=qmix", "train.total_steps=600", "train.evaluation.episodes=1",
                   "train.evaluation.absolute_episodes=1", "train.hidden=4", "env.num_envs=2"])
directory = RunDirectory(Path(sys.argv[1]))
directory.create(replace(run, device="cpu"), None)
execute(directory, show=False)
Path(sys.argv[1], "modules.json").write_text(json.dumps([name for name in sys.modules if name.startswith("qllm_exp.")]))
"""


def copy_of_the_package(folder: Path) -> Path:
    """A package with the same files, as an installation has it: beside compiled files, without a checkout around it."""
    copy = folder / "qllm_exp"
    shutil.copytree(ROOT / "qllm_exp", copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", copy / "conf")
    (copy / "training" / "__pycache__").mkdir()
    (copy / "training" / "__pycache__" / "trainer.cpython-311.pyc").write_bytes(b"compiled")
    return copy


def hash_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(versions, "_PACKAGE", package)
    return source_hash(versions.training_files(), package)


def test_an_installed_copy_has_the_hash_of_the_checkout_until_a_training_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copy = hash_of(ROOT / "qllm_exp", monkeypatch), copy_of_the_package(tmp_path)
    assert versions.software()["source"] == original == hash_of(copy, monkeypatch)
    for other in ("results/summary.py", "conf/config.yaml", "generation/verify.py"):
        with open(copy / other, "a") as file:
            file.write("\n# changed\n")
    assert hash_of(copy, monkeypatch) == original, "no number of a run that has begun depends on them"
    seen = {original}
    for changed in (
        "envs/lbf.py",
        "networks/gru_kernel.cpp",
        "envs/smax/kernel.cpp",
        "experiment.py",
        "mixers/qmix.py",
    ):
        with open(copy / changed, "a") as file:
            file.write("\n")
        seen.add(hash_of(copy, monkeypatch))
    (copy / "envs" / "lbf.py").rename(copy / "envs" / "lbf2.py")
    seen.add(hash_of(copy, monkeypatch))
    assert len(seen) == 7


def test_the_hash_covers_every_module_that_trains(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path)], check=True, capture_output=True)
    hashed = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in versions.training_files()}
    hashed |= {name.removesuffix(".__init__") for name in hashed}
    imported = set(json.loads((tmp_path / "modules.json").read_text()))
    assert {name for name in imported - hashed if not name.startswith("qllm_exp.tracking")} == set()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"torch": "2.7.0"}, {"torch": "2.6.0 -> 2.7.0"}),
        ({"kernel": "torch"}, {"kernel": "native 0123456789 -> torch"}),
        ({"kernel": "native ffffffffff"}, {"kernel": "native 0123456789 -> native ffffffffff"}),
        ({"processor": "GenuineIntel AVX2"}, {"processor": "GenuineIntel AVX512 -> GenuineIntel AVX2"}),
        ({"python": "3.12.1"}, {"python": "3.11.2 -> 3.12.1"}),
        (
            {"source": "2222222222", "commit": "b" * 40 + "+changes"},
            {"commit": "aaaaaaaaaa -> bbbbbbbbbb+changes", "source": "1111111111 -> 2222222222"},
        ),
        ({"commit": ""}, {"commit": "aaaaaaaaaa -> none"}),
        ({"vmas": "1.5.2"}, {}),  # not recorded before
        ({"hydra-core": "1.3.3", "host": "node2", "system": "Linux-6.2"}, {}),
    ],
)
def test_what_may_change_numbers_is_compared(changed: Mapping[str, str], expected: Mapping[str, str]) -> None:
    assert differences(BEFORE, BEFORE | changed) == expected


def test_a_run_that_is_resumed_with_the_same_versions_has_one_segment() -> None:
    record = resumed_record(BEFORE, BEFORE | {"host": "node2"}, 5000)
    assert record == BEFORE | {"host": "node2"} and list(changes(record)) == []
    (segment,) = segments(record)
    assert segment["env_step"] == 0 and segment["torch"] == "2.6.0" and not {"host", "system"} & set(segment)


def test_a_record_has_a_segment_for_each_part_with_other_versions() -> None:
    second, third = BEFORE | {"kernel": "torch"}, BEFORE | {"kernel": "torch", "torch": "2.7.0", "host": "node9"}
    record = resumed_record(BEFORE, second, 5000)
    record = resumed_record(record, second, 6000)  # nothing differs from the last part
    record = resumed_record(record, third, 9000)
    assert [(part["env_step"], part["kernel"], part["torch"]) for part in segments(record)] == [
        (0, "native 0123456789", "2.6.0"),
        (5000, "torch", "2.6.0"),
        (9000, "torch", "2.7.0"),
    ]
    assert {key: record[key] for key in third} == third, "the last process"
    assert "node" not in json.dumps(record["segments"]), "segments name no machine"
    assert list(changes(json.loads(json.dumps(record)))) == [
        (5000, {"kernel": "native 0123456789 -> torch"}),
        (9000, {"torch": "2.6.0 -> 2.7.0"}),
    ]


def test_a_segment_of_which_nothing_was_kept_is_dropped() -> None:
    without_kernel = BEFORE | {"kernel": "torch"}
    record = resumed_record(BEFORE, without_kernel, 5000)  # killed before its first checkpoint
    assert resumed_record(record, BEFORE, 5000) == BEFORE
    assert list(changes(resumed_record(record, without_kernel, 5000))) == [
        (5000, {"kernel": "native 0123456789 -> torch"})
    ]
    assert len(segments(resumed_record(BEFORE, without_kernel, 0))) == 2, "parameters were initialised before step 0"


def test_another_commit_with_the_same_files_is_recorded_but_changes_no_number() -> None:
    record = resumed_record(BEFORE, BEFORE | {"commit": "b" * 40}, 5000)
    assert [part["commit"][0] for part in segments(record)] == ["a", "b"] and list(changes(record)) == []
    old = {key: value for key, value in BEFORE.items() if key != "source"}  # a run of an earlier release
    record = resumed_record(old, BEFORE | {"commit": "b" * 40}, 5000)
    assert list(changes(record)) == [(5000, {"commit": "aaaaaaaaaa -> bbbbbbbbbb"})]


@pytest.mark.parametrize(
    "listed", [None, 3, "x", {}, [], [3], [{"env_step": "0"}], [{"torch": "2.6.0"}], [{"env_step": True}]]
)
def test_an_invalid_list_of_segments_is_left_out(listed: Any) -> None:
    record = BEFORE | {"segments": listed}
    assert [part["env_step"] for part in segments(record)] == [0] and list(changes(record)) == []
    assert segments({}) == [] and list(changes({})) == []


def test_texts_of_a_foreign_record_are_inert_and_short() -> None:
    record = {"segments": [{"env_step": 0, "torch": "1"}, {"env_step": 1, "torch": "\x1b[31m" + "x" * 500}]}
    ((_, differing),) = changes(record)
    assert "\x1b" not in differing["torch"] and len(differing["torch"]) < 100
