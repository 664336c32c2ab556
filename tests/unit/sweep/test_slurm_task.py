"""The runs of a job that share a GPU through MPS, without a cluster and without a GPU; the same on this machine."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import MPS_CONTROL, write_program
from run_folders import make_unfinished_run, run_config

from qllm_exp.errors import UserError
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import Sweep
from qllm_exp.sweep import measured_load, pool, slurm_task
from qllm_exp.sweep.launcher import Work
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.slurm_task import Pack


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Yield the directories of three runs, which have no processes: they finish at once, with a line in tmp_path/calls."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(slurm_task, "_log_to_stdout", lambda: None)
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    class Finished:
        lost = False

        def poll(self) -> int:
            return 0

    def finish(self: pool.Pool, directory: RunDirectory, slot: pool.Slot) -> Finished:
        with open(tmp_path / "calls", "a") as file:
            print("run", slot.mps_pipe or "without", file=file)
        directory.finish({"final_return": 1.0, "wall_s": 1.0})
        return Finished()

    monkeypatch.setattr(pool.Pool, "_start_worker", finish)
    yield [make_unfinished_run(tmp_path, run_config("vdn", seed), "queued") for seed in range(3)]
    for number, handler in signals.items():
        signal.signal(number, handler)


def start(place: str, runs: list[Path], mps: bool = True) -> None:
    """Train the runs in a job or on this machine, two at a time."""
    names = [run.name for run in runs]
    sweep = Sweep.create(runs[0].parent / "sweep", names, {"name": place}, 0, "")
    if place == "slurm":
        Pack(str(sweep.path), names, at_once=2, cores=2, device="cuda", mps=mps)()
    else:
        work = Work([RunDirectory(run) for run in runs], sweep.failure_limit(), device="cuda")
        Local(runs_per_gpu=2, mps=mps).start(sweep, work)


@pytest.mark.parametrize("place", ["slurm", "local"])
def test_runs_share_a_gpu_through_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Path], place: str
) -> None:
    write_program(
        tmp_path / "bin", "nvidia-cuda-mps-control", MPS_CONTROL.format(calls=tmp_path / "calls"), monkeypatch
    )
    start(place, runs)
    first, *trained, last = (tmp_path / "calls").read_text().splitlines()
    pipe = first.removeprefix("start 0 ")
    assert trained == [f"run {pipe}"] * 3 and last.startswith("quit ") and last.endswith(pipe)


@pytest.mark.parametrize("place", ["slurm", "local"])
def test_without_the_program_no_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Path], place: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no nvidia-cuda-mps-control"):
        start(place, runs)
    assert not (tmp_path / "calls").exists()
    assert {RunDirectory(run).status()["state"] for run in runs} == {"queued"}


def test_a_job_that_was_submitted_before_mps_was_an_option_trains_without(tmp_path: Path, runs: list[Path]) -> None:
    names = [run.name for run in runs]
    sweep = Sweep.create(tmp_path / "sweep", names, {"name": "slurm"}, 0, "")
    pack = Pack(str(sweep.path), names, at_once=2, cores=2, device="cuda")
    del pack.__dict__["mps"]
    pickle.loads(pickle.dumps(pack))()
    assert (tmp_path / "calls").read_text().splitlines() == ["run without"] * 3


@pytest.mark.parametrize("module", ["slurm_task", "slurm_submit"])
def test_the_process_of_a_job_leaves_heavy_imports_to_its_fork_server(module: str) -> None:
    code = f"import sys, qllm_exp.sweep.{module}; print([n for n in ('torch', 'hydra', 'pandas', 'scipy') if n in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["slurm", "local"])
def test_further_runs_start_while_those_in_progress_leave_room(
    monkeypatch: pytest.MonkeyPatch, runs: list[Path], place: str
) -> None:
    started: list[RunDirectory] = []

    class Waiting:
        """A run that ends when all three are in progress."""

        lost = False

        def __init__(self, directory: RunDirectory) -> None:
            started.append(directory)
            self.pid, self._directory = len(started), directory

        def poll(self) -> int | None:
            if len(started) < len(runs):
                return None
            self._directory.finish({"final_return": 1.0, "wall_s": 1.0})
            return 0

    monkeypatch.setattr(pool.Pool, "_start_worker", lambda self, directory, slot: Waiting(directory))
    monkeypatch.setattr(measured_load, "SETTLE_S", 0.0)
    monkeypatch.setattr(measured_load.Meter, "__call__", lambda self, pids: {"cores": 0.2 * len(pids)})
    names = [run.name for run in runs]
    sweep = Sweep.create(runs[0].parent / "sweep", names, {"name": place}, 0, "")
    if place == "slurm":
        pack = pickle.loads(pickle.dumps(Pack(str(sweep.path), names, at_once=1, cores=2, device="cpu", max_load=0.9)))
        assert pack() == "3 of 3 runs ended"
    else:
        work = Work([RunDirectory(run) for run in runs], sweep.failure_limit())
        assert len(Local(n_jobs=1, max_load=0.9).start(sweep, work)) == 3
