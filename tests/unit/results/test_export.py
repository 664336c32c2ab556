"""Archives: what they hold, equal bytes for equal runs, and the same tables when they are read back."""

import csv
import json
import shutil
import time
import zipfile
from pathlib import Path

import pandas
import pytest
from run_folders import make_run, make_unfinished_run, run_config

import qllm_exp
from qllm_exp.errors import UserError
from qllm_exp.results import __main__ as command
from qllm_exp.results.records.sources import to_folders
from qllm_exp.results.report.report_data import find_sweeps

PEERS = Path(__file__).parents[2] / "peers"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qllm_exp" / "archives"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A sweep of three seeds of two methods, with a run in each unfinished state, and one that does not exist."""
    folder = tmp_path / "runs"
    finished = [make_run(folder, run_config("qmix", seed), 0.5 + 0.01 * seed, absolute=0.4) for seed in range(3)]
    for seed in range(3):
        finished.append(make_run(folder, run_config("tfcaf", seed), 0.6 + 0.02 * seed, program=[1, 2]))
    states = {3: "failed", 4: "interrupted", 5: "queued", 6: "running"}
    unfinished = [
        make_unfinished_run(folder, run_config("qmix", seed), state, "out of memory" if state == "failed" else "")
        for seed, state in states.items()
    ]
    versions = {"qllm_exp": "0.2.0", "torch": "2.6.0", "host": "node17", "system": "Linux"}
    (finished[0] / "versions.json").write_text(json.dumps(versions))
    (unfinished[0] / "metrics.jsonl").write_text(
        '{"kind": "evaluation", "env_step": 0, "return_mean": 0.1}\n{"kind": "ev'
    )
    sweep = {
        "command": f"qllm-exp -m 'dir={folder}/my runs' mixer=qmix,tfcaf",
        "started": "2026-11-30 10:00:00",
        "launcher": {"account": "abc"},
    }
    sweep["runs"] = [path.name for path in (*finished, *unfinished)] + [
        "lbf_8x8-2p-2f-coop-2s_q-learning_qmix_s9_00000000"
    ]
    (folder / "baselines").mkdir()
    (folder / "baselines" / "sweep.json").write_text(json.dumps(sweep))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["archive", "archive.ZIP"])
def test_an_archive_is_read_back_to_the_same_tables(runs: Path, tmp_path: Path, name: str) -> None:
    archive = qllm_exp.export(runs, output=tmp_path / name)
    assert archive.is_dir() == (name == "archive")
    for options in ({}, {"stat": "iqm", "metric": "absolute"}, {"rows": (), "cols": "mixer"}):
        assert str(qllm_exp.table(archive, **options)) == str(qllm_exp.table(runs, **options))
    columns = [
        "run",
        "env",
        "task",
        "method",
        "seed",
        "state",
        "final_return",
        "absolute_return",
        "train.learning_rate",
    ]
    before, after = (
        qllm_exp.load_runs(source)[columns].sort_values("run", ignore_index=True) for source in (runs, archive)
    )
    pandas.testing.assert_frame_equal(before, after)
    pandas.testing.assert_frame_equal(qllm_exp.load_curves(runs), qllm_exp.load_curves(archive))
    pandas.testing.assert_frame_equal(qllm_exp.compare(runs), qllm_exp.compare(archive))
    (sweep,) = find_sweeps(to_folders([archive]))
    assert sweep.record.command == "qllm-exp -m mixer=qmix,tfcaf" and len(sweep.record.runs) == 11


def test_a_running_run_is_exported_as_interrupted(runs: Path, tmp_path: Path) -> None:
    (run,) = runs.glob("*_s6_*")
    status = {"state": "running", "host": "elsewhere", "heartbeat": time.time(), "env_step": 50, "total_steps": 100}
    (run / "status.json").write_text(json.dumps(status))
    states = [
        qllm_exp.load_runs(source, only="seed=6").state.item()
        for source in (runs, qllm_exp.export(runs, output=tmp_path / "a"))
    ]
    assert states == ["running", "interrupted"]


def test_equal_runs_give_equal_bytes(runs: Path, tmp_path: Path) -> None:
    first, second = (qllm_exp.export(runs, output=tmp_path / f"{number}.zip") for number in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    again = qllm_exp.export(first, output=tmp_path / "again.zip")
    assert again.read_bytes() == first.read_bytes()
    folder = qllm_exp.export(first, output=tmp_path / "folder")
    with zipfile.ZipFile(first) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files(folder)


def test_tables_card_and_marl_eval_file_state_every_run(runs: Path, tmp_path: Path) -> None:
    archive = qllm_exp.export(runs, output=tmp_path / "archive")
    with open(archive / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 and [row["state"] for row in rows].count("finished") == 6
    failed = next(row for row in rows if row["state"] == "failed")
    assert failed["reason"] == "out of memory" and failed["path"] == f"runs/{failed['run']}"
    with open(archive / "evaluations.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6 * 5
    card = (archive / "README.md").read_text()
    assert "| lbf/8x8-2p-2f-coop-2s | qmix | 3 | 1 dead, 1 failed, 1 interrupted, 1 new, 1 queued |" in card
    assert ": failed: out of memory" in card and "reward=sum over the agents" in card and "torch: 2.6.0" in card
    content = json.loads((archive / "marl_eval.json").read_text())["lbf"]["8x8-2p-2f-coop-2s"]
    assert set(content) == {"qmix", "tfcaf"} and len(content["qmix"]) == 3
    assert content["qmix"]["seed_0"]["step_4"] == {"step_count": 200_000, "mean_episode_return": [0.5]}
    metrics = archive / "runs" / failed["run"] / "metrics.jsonl"
    assert metrics.read_text() == '{"kind": "evaluation", "env_step": 0, "return_mean": 0.1}\n'


def test_nothing_says_where_the_runs_were_made(runs: Path, tmp_path: Path) -> None:
    content = b"\n".join(files(qllm_exp.export(runs, output=tmp_path / "archive")).values())
    assert b"node17" not in content and str(tmp_path).encode() not in content
    assert b"elsewhere" not in content and b"\ntracking:" not in content and b"account" not in content


def test_filtered_runs_alone_are_exported(runs: Path, tmp_path: Path) -> None:
    archive = qllm_exp.export(runs, output=tmp_path / "archive", only=["mixer=tfcaf", "seed=0-1"])
    assert len(qllm_exp.load_runs(archive)) == 2
    (sweep,) = find_sweeps(to_folders([archive]))
    assert len(sweep.record.runs) == 2


def test_seeds_of_several_functions_keep_apart_in_the_marl_eval_file(tmp_path: Path) -> None:
    for program in ([1], [2]):
        make_run(tmp_path / "runs", run_config("tfcaf", 0), 0.5, program=program)
    archive = qllm_exp.export(tmp_path / "runs", output=tmp_path / "archive")
    content = json.loads((archive / "marl_eval.json").read_text())["lbf"]["8x8-2p-2f-coop-2s"]
    assert sum(len(seeds) for seeds in content.values()) == 2


def test_parquet_files_hold_the_rows_of_the_csv_files(runs: Path, tmp_path: Path) -> None:
    archive = qllm_exp.export(runs, output=tmp_path / "archive")
    for name in ("runs", "evaluations"):
        table, text = pandas.read_parquet(archive / f"{name}.parquet"), pandas.read_csv(archive / f"{name}.csv")
        assert list(table.columns) == list(text.columns) and len(table) == len(text)


def test_a_seed_of_more_than_64_bits_is_exported(tmp_path: Path) -> None:
    for seed in (0, 2**64):
        make_run(tmp_path / "runs", run_config("vdn", seed), 0.5)
    archive = qllm_exp.export(tmp_path / "runs", output=tmp_path / "archive")
    assert [run.seed for run in qllm_exp.load_runs(archive).itertuples()] == [0, 2**64]
    assert list(pandas.read_csv(archive / "runs.csv", dtype=str)["seed"]) == ["0", str(2**64)]


def test_the_command_prints_the_archive(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["export", str(runs), "-o", str(tmp_path / "new" / "a.zip")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'a.zip'}\n"
    assert command.main(["table", str(tmp_path / "new" / "a.zip")]) == 0
    assert "| lbf/8x8-2p-2f-coop-2s" in capsys.readouterr().out


# What is refused


def test_an_existing_folder_is_not_replaced(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs exists\. Remove it, or choose another folder"):
        qllm_exp.export(runs, output=runs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_runs_of_other_programs_are_not_exported(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run of epymarl; an archive holds runs of this package"):
        qllm_exp.export(runs, PEERS / "epymarl", output=tmp_path / "a.zip")
    shutil.copytree(PEERS / "epymarl", tmp_path / "failed")
    (tmp_path / "failed" / "vdn_foraging" / "1" / "run.json").write_text('{"status": "FAILED"}')
    with pytest.raises(UserError, match="is a run of epymarl"):
        qllm_exp.export(runs, tmp_path / "failed", output=tmp_path / "a.zip")


def test_sweeps_of_one_name_keep_their_commands(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run = make_run(other, run_config("vdn"), 0.5)
    (other / "baselines").mkdir()
    (other / "baselines" / "sweep.json").write_text(json.dumps({"command": "second", "runs": [run.name]}))
    sweeps = find_sweeps(to_folders([qllm_exp.export(runs, other, output=tmp_path / "archive")]))
    assert {sweep.record.command for sweep in sweeps} == {"qllm-exp -m mixer=qmix,tfcaf", "second"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: next(folder.glob("runs/*/result.json")).write_text("{}"),
            "the checksum of runs/.*result.json differs",
        ),
        (
            lambda folder: next(folder.glob("runs/*/result.json")).unlink(),
            "result.json is listed in dataset.json, but missing",
        ),
        (lambda folder: (folder / "runs" / "more").write_text(""), "runs/more is not listed in dataset.json"),
        (lambda folder: (folder / "dataset.json").write_text("{}"), "dataset.json is not of the format"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "truncated or not valid JSON"),
    ],
)
def test_a_damaged_archive_is_refused(runs: Path, tmp_path: Path, change: object, message: str) -> None:
    archive = qllm_exp.export(runs, output=tmp_path / "archive")
    change(archive)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        qllm_exp.table(archive)


def test_a_zip_file_that_is_no_archive_is_refused(runs: Path, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"is not a readable \.zip file"):
        qllm_exp.table(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UserError, match=r"has no dataset\.json, so it is not an archive"):
        qllm_exp.table(path)
    whole = qllm_exp.export(runs, output=tmp_path / "whole.zip")
    path.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is not a readable \.zip file"):
        qllm_exp.table(path)
    assert list(own_cache.iterdir()) == []


def test_a_zip_file_is_refused_wherever_it_is_damaged(runs: Path, tmp_path: Path, own_cache: Path) -> None:
    content = qllm_exp.export(runs, output=tmp_path / "whole.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        (info,) = (info for info in archive.infolist() if info.filename == "runs.csv")
    compressed = info.header_offset + 30 + len(info.filename)
    directory = content.index(b"PK\x01\x02")
    path = tmp_path / "x.zip"
    for position, damage in (
        (compressed + info.compress_size // 2, b"\xff" * 8),
        (directory + 10, b"\x0c"),  # another compression
        (directory + 28, b"\x00"),  # an empty name
        (directory + 46, b"\xff"),  # a name that is not UTF-8
    ):
        path.write_bytes(content[:position] + damage + content[position + len(damage) :])
        with pytest.raises(UserError, match=r"x\.zip"):
            to_folders([path])
    assert list(own_cache.iterdir()) == []


def test_no_file_of_an_archive_leaves_its_folder(runs: Path, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "x.zip"
    for name in ("../evil", "/evil", "runs/../../evil", "runs\\evil"):
        entry = {"bytes": 1, "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("dataset.json", json.dumps({"format": "qllm_exp dataset 1", "files": {name: entry}}))
            archive.writestr(name, "a")
        with pytest.raises(UserError, match="is not of the format"):
            qllm_exp.table(path)
    assert list(own_cache.iterdir()) == [] and not list(tmp_path.rglob("evil"))


def test_unpacking_happens_once(runs: Path, tmp_path: Path, own_cache: Path) -> None:
    archive = qllm_exp.export(runs, output=tmp_path / "a.zip")
    (first,) = to_folders([archive])
    (second,) = to_folders([archive])
    assert first == second and first.parent.parent == own_cache and len(list(own_cache.iterdir())) == 1
