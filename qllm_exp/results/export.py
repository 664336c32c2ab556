"""`results export`: the runs of a sweep as a dataset, a folder or a .zip file, which every other command reads back.

Equal runs give equal bytes. What says where a run was made is left out: the folder, the tracking configuration and the machine's
name. So are parameters, checkpoints and logs.
"""

import importlib.util
import os
import shlex
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qllm_exp.errors import UserError
from qllm_exp.results.records import keys, marl_eval
from qllm_exp.results.records.archive import MANIFEST, RUNS, ZIP, is_zip, write_manifest
from qllm_exp.results.records.collect import Collection, Record, UnfinishedRun, collect
from qllm_exp.results.records.rows import metrics_rows, run_rows
from qllm_exp.results.report.report_data import find_sweeps
from qllm_exp.runs.config_reader import ConfigReader
from qllm_exp.runs.json_files import read_object
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import DEAD, FAILED, INTERRUPTED, NEW, PRUNED, QUEUED, RUNNING
from qllm_exp.runs.sweep_directory import RECORD
from qllm_exp.runs.versions import MACHINE_KEYS, library_version, segments
from qllm_exp.utils.files import strict_json
from qllm_exp.utils.text import count, excerpt, inert_lines

if TYPE_CHECKING:
    import pandas

_PRIVATE_BLOCKS = ("dir:", "tracking:")  # of a configuration: where the run was made
# What status.json of an unfinished run says in an archive, from which `collect` reads its state. No process runs there.
_RECORDED_STATES = {
    FAILED: FAILED,
    DEAD: RUNNING,
    RUNNING: INTERRUPTED,
    INTERRUPTED: INTERRUPTED,
    PRUNED: PRUNED,
    QUEUED: QUEUED,
    NEW: NEW,
}
_KEPT_STATUS = ("heartbeat", "env_step", "checkpoint_step", "total_steps")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a .zip file can have
_MAX_CARD_ROWS = 100  # unfinished runs that the data card lists


def export(collection: Collection, folders: Sequence[Path], output: Path) -> Path:
    """Write runs as an archive, and return its path.

    Args:
        collection: the runs; unfinished ones are exported with their state and the evaluations that they have.
        folders: directories of the runs, whose sweeps are exported with the commands that were typed.
        output: a .zip file, or a folder that does not exist yet.

    Raises:
        UserError: there is no run, a run is of another program, or the output cannot be written or exists.
    """
    _check(collection, output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
            archive = Path(scratch) / "archive"
            _write_archive(archive, collection, folders)
            if is_zip(output):
                zipped = Path(scratch) / output.name
                _write_zip(zipped, archive)
                os.replace(zipped, output)
            else:
                os.replace(archive, output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}. Choose another place with -o.") from None
    return output


def _check(collection: Collection, output: Path) -> None:
    if not is_zip(output) and output.exists():
        raise UserError(f"{output} exists. Remove it, or choose another folder or a {ZIP} file with -o.")
    if not collection.finished and not collection.unfinished:
        raise UserError("There is no run to export.")
    runs: list[Record | UnfinishedRun] = [*collection.finished, *collection.unfinished]
    external = next((run for run in runs if run.program), None)
    if external is not None:
        raise UserError(
            f"{external.path} is a run of {external.program}; an archive holds runs of this package. Publish the file itself "
            "beside the archive, and leave it out here."
        )


def _write_archive(archive: Path, collection: Collection, folders: Sequence[Path]) -> None:
    for record in collection.finished:
        if not (archive / RUNS / record.name).exists():  # it has the fixed settings, and the tuned ones are the same
            _copy_run(record.path, archive / RUNS / record.name)
    for run in collection.unfinished:
        if RunDirectory(run.path).config.exists():
            _copy_run(run.path, archive / RUNS / run.name, run)
    _copy_sweeps(archive / RUNS, collection, folders)
    # What describes the runs is made from the copies: it is what a reader of the archive finds.
    copied = collect([archive / RUNS])
    _write_table(archive / "runs", _relative_runs(copied))
    _write_table(archive / "evaluations", metrics_rows(_sorted(copied.finished), "evaluation", "absolute"))
    (archive / "marl_eval.json").write_text(strict_json(marl_eval.document(_sorted(copied.finished)), indent=1) + "\n")
    (archive / "README.md").write_text(inert_lines(_data_card(copied)), encoding="utf-8")
    write_manifest(archive)


def _copy_run(source: Path, target: Path, unfinished: UnfinishedRun | None = None) -> None:
    """Copy what an archive holds of a run directory."""
    target.mkdir(parents=True)
    directory, copy = RunDirectory(source), RunDirectory(target)
    blocks = ConfigReader().blocks(directory.config)
    copy.config.write_text(
        "".join(block for block in blocks if not block.startswith(_PRIVATE_BLOCKS)), encoding="utf-8"
    )
    if directory.metrics.exists():
        content = directory.metrics.read_bytes()
        complete = content.rfind(b"\n") + 1  # the last line of an unfinished run may be truncated
        copy.metrics.write_bytes(content[:complete])
    for file, copied_file in ((directory.tfcaf, copy.tfcaf), (directory.result_path, copy.result_path)):
        if file.exists():
            shutil.copyfile(file, copied_file)
    versions = {name: value for name, value in read_object(directory.versions).items() if name not in MACHINE_KEYS}
    copy.versions.write_text(strict_json(versions, indent=1) + "\n")
    if unfinished is not None:
        status = {key: value for key, value in directory.status().items() if key in _KEPT_STATUS}
        status["state"] = _RECORDED_STATES[unfinished.state]
        if unfinished.state in (FAILED, PRUNED):
            status["error" if unfinished.state == FAILED else "reason"] = unfinished.reason
        (target / "status.json").write_text(strict_json(status, indent=1) + "\n")


def _copy_sweeps(runs: Path, collection: Collection, folders: Sequence[Path]) -> None:
    """Write the records of the sweeps: command, start, and those of their runs that are exported."""
    names = {run.name for run in collection.finished} | {run.name for run in collection.unfinished}
    for sweep in find_sweeps(folders):
        exported = [name for name in sweep.record.runs if name in names]
        if exported:
            content = {
                "command": _without_folder(sweep.record.command),
                "started": sweep.record.started,
                "runs": exported,
                "decide": sweep.record.decide,
                "decisions": sweep.record.decisions,
                "labels": sweep.record.labels,
            }
            target = runs / sweep.path.absolute().name
            while target.exists():  # sweeps of several folders may have one name
                target = target.with_name(f"{target.name}_")
            target.mkdir(parents=True)
            (target / RECORD).write_text(strict_json(content, indent=1) + "\n")


def _without_folder(command: str) -> str:
    """Return a command without its option dir=FOLDER."""
    try:
        arguments = shlex.split(command)
    except ValueError:  # a record that was not written by this package
        return command
    kept = [argument for argument in arguments if not argument.startswith("dir=")]
    return command if kept == arguments else shlex.join(kept)


def _sorted(records: Sequence[Record]) -> list[Record]:
    def order(record: Record) -> tuple[Any, ...]:
        return keys.sort_key(record.task), keys.sort_key(record.method), record.seed, record.name

    return sorted(records, key=order)


def _relative_runs(collection: Collection) -> list[dict[str, Any]]:
    """Return the rows of the runs, with paths in the archive, and without the age of heartbeats."""
    in_order = Collection(_sorted(collection.finished), sorted(collection.unfinished, key=lambda run: run.name))
    rows = run_rows(in_order)
    for row in rows:
        row["path"] = f"{RUNS}/{row['run']}"
        if row["state"] == DEAD:
            row["reason"] = "ended without an error message"
    return rows


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, and as Parquet if pyarrow is installed."""
    import pandas

    frame = pandas.DataFrame([{key: keys.plain(value) for key, value in row.items()} for row in rows])
    frame.to_csv(path.with_suffix(".csv"), index=False, lineterminator="\n")
    if importlib.util.find_spec("pyarrow") is not None:
        for name in frame.columns:
            frame[name] = _uniform(frame[name])
        frame.to_parquet(path.with_suffix(".parquet"), engine="pyarrow", index=False)


def _uniform(column: "pandas.Series[Any]") -> "pandas.Series[Any]":
    """Return a column with values of one type, as Parquet needs.

    It is text if types are mixed, as for an option that may be 'auto', or if an integer has more than 64 bits.
    """
    present = column.dropna()
    types = {type(value) for value in present}
    if len(types) <= 1 and not (types == {int} and present.map(abs).max() >= 2**63):
        return column
    return column.map(str, na_action="ignore")


def _write_zip(path: Path, folder: Path) -> None:
    """Write a folder as a .zip file whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in sorted(file for file in folder.rglob("*") if not file.is_dir()):
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _ZIP_DATE)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(info, file.read_bytes())


def _data_card(collection: Collection) -> str:
    """Return README.md: what the runs are, their number, units, unfinished runs, versions, files."""
    finished, unfinished = _sorted(collection.finished), sorted(collection.unfinished, key=lambda run: run.name)
    parts = [
        "# Runs of cooperative multi-agent reinforcement learning",
        f"{collection.counts()}. Exported by qllm_exp {library_version('qllm_exp') or '(version unknown)'}.",
        "## Tasks and methods",
        _counts_table(finished, unfinished),
        "`method` is the mixer, or the algorithm if it is not Q-learning, with the settings that distinguish it from others. "
        "n counts seeds.",
        "## Units",
        *_units(finished),
        "## Unfinished runs",
        _unfinished_list(unfinished),
        "## Versions of the finished runs",
        _versions(finished),
        "## Files",
        _FILES.format(functions=_functions(finished)),
    ]
    return "\n\n".join(parts) + "\n"


_FILES = f"""- `runs.csv`: a row per run: task, method, seed, state, final and absolute return, every option of its configuration.
- `evaluations.csv`: a row per evaluation of each finished run; `kind` is `evaluation`, or `absolute` for the best parameters,
  which are evaluated once more.
- `runs.parquet`, `evaluations.parquet`: the same, if pyarrow was installed.
- `marl_eval.json`: the finished runs in the layout of marl-eval.
- `{RUNS}/RUN/`: configuration, all metrics, result, versions, and the credit-assignment function (`tfcaf.json`) of each run.
  {{functions}}
- `{RUNS}/SWEEP/sweep.json`: the command of each sweep.
- `{MANIFEST}`: size and SHA-256 of every other file.

`qllm-exp results table ARCHIVE` reads the archive back: tables, figures and reports are those of the runs themselves. Parameters of
policies, checkpoints and logs are not part of it, nor are the folder of the runs and the names of machines."""


def _counts_table(finished: Sequence[Record], unfinished: Sequence[UnfinishedRun]) -> str:
    done = Counter((run.task, run.method) for run in finished)
    others: dict[tuple[str, str], Counter[str]] = {}
    for run in unfinished:
        others.setdefault((run.task, run.method), Counter())[run.state] += 1
    lines = ["| task | method | n finished | unfinished |", "|---|---|---|---|"]
    for task, method in sorted({*done, *others}, key=lambda pair: [keys.sort_key(name) for name in pair]):
        states = others.get((task, method), Counter())
        listed = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "-"
        lines.append(f"| {task or 'unknown'} | {method or 'unknown'} | {done[task, method]} | {listed} |")
    return "\n".join(lines)


def _units(finished: Sequence[Record]) -> list[str]:
    """Return what returns and steps are; the reward of a task may be summed or averaged over the agents."""
    rewards: dict[str, dict[str, None]] = {}
    for record in finished:
        rewards.setdefault(str(record.settings.get("env.reward", "unknown")), {})[record.task] = None
    lines = [f"- reward={reward} over the agents: {', '.join(tasks)}" for reward, tasks in sorted(rewards.items())]
    text = (
        "A return is the undiscounted sum of the team reward over an episode, the mean over the episodes of an evaluation without "
        "exploration, in the unit of the environment. A step is an environment step, counted over all copies of the environment. "
        "Times are in seconds, prices in US dollars."
    )
    return [text, "\n".join(lines)] if lines else [text]


def _unfinished_list(unfinished: Sequence[UnfinishedRun]) -> str:
    if not unfinished:
        return "None."
    lines = [f"- {run.name}: {run.state}{_failure(run)}" for run in unfinished[:_MAX_CARD_ROWS]]
    if len(unfinished) > len(lines):
        lines.append(f"- and {count(len(unfinished) - len(lines), 'more run')}; see `runs.csv`.")
    text = (
        "They are not in tables. Their metrics so far are in their directories. States are those of the export; what was running "
        "counts as interrupted."
    )
    return f"{text}\n\n" + "\n".join(lines)


def _failure(run: UnfinishedRun) -> str:
    return f": {excerpt(run.reason, 200)}" if run.state == FAILED and run.reason else ""


def _versions(finished: Sequence[Record]) -> str:
    numbers: dict[str, Counter[str]] = {}
    for record in finished:
        for part in segments(record.versions):
            for name, value in part.items():
                if name != "env_step":
                    numbers.setdefault(name, Counter())[str(value) or "none"] += 1
    if not numbers:
        return "Not recorded."
    return "\n".join(f"- {name}: {', '.join(sorted(versions))}" for name, versions in sorted(numbers.items()))


def _functions(finished: Sequence[Record]) -> str:
    models = sorted({str(record.provenance["model"]) for record in finished if record.provenance.get("model")})
    return (
        f"Functions were written by {', '.join(models)}." if models else "No run has a function that names its model."
    )
