"""Runs at a time by the measured load: what is measured, and how many runs start."""

import itertools
import subprocess
import sys
import time

import pytest
from programs import write_program

from qllm_exp.errors import UserError
from qllm_exp.sweep import measured_load
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.measured_load import LoadLimit, Meter, follow_load, gpu_uses
from qllm_exp.sweep.pool import Slot
from qllm_exp.sweep.slurm import Slurm
from qllm_exp.utils.memory import SLURM_JOB, Memory


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def sweep(use_per_run, initial, share=0.9, waiting=1000):
    """Return the number of runs in progress over time, for runs that each use a share of the scarcest resource."""
    clock, running, numbers = Clock(), 0, []
    limit = LoadLimit(initial, share, lambda pids: {"cores": use_per_run * len(pids), "memory": 0.01}, clock)
    for _ in range(3000):
        clock.now += 0.1
        running = max(running, min(limit.update(range(running)), waiting))
        numbers.append(running)
    return numbers


@pytest.mark.parametrize(
    ("use_per_run", "initial", "expected"),
    [
        (0.25, 1, 3),  # a fourth would make 1.0
        (0.05, 4, 18),
        (0.25, 4, 4),  # they use everything
        (1.5, 4, 4),  # the number of the user, even if it is too many
        (0.0001, 2, 16),  # a limit: eight times
    ],
)
def test_runs_start_until_one_more_would_use_too_much(use_per_run, initial, expected):
    numbers = sweep(use_per_run, initial)
    assert numbers[0] == initial and numbers[-1] == expected
    assert all(after <= 2 * before for before, after in itertools.pairwise(numbers)), "a step doubles at most"


def test_nothing_starts_before_the_runs_have_settled():
    numbers = sweep(0.05, 4)
    assert set(numbers[: int(measured_load.SETTLE_S / 0.1) - 1]) == {4}


def test_a_run_that_ends_is_replaced_at_once_and_a_heavier_mixture_is_not():
    clock, use = Clock(), 0.1
    limit = LoadLimit(2, 0.9, lambda pids: {"GPU 0": use * len(pids)}, clock)

    def settled(running):
        limit.update(range(running))
        clock.now += measured_load.SETTLE_S + 1
        return limit.update(range(running))

    assert settled(2) == 4 and settled(4) == 8 and settled(8) == 9
    assert limit.update(range(8)) == 9, "one has ended"
    use = 0.3
    assert settled(9) == 3, "runs in progress stay, but none starts until there are fewer"


def test_what_processes_use_is_measured_with_their_children(monkeypatch):
    monkeypatch.setattr(measured_load, "WINDOW_S", 2.0)
    child = "x = bytearray(b'x') * (200 << 20); print('ready', flush=True)\nwhile True: pass"
    busy = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    idle = "import time; print('ready', flush=True); time.sleep(600)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for code in (busy, idle)]
    try:
        assert [process.stdout.readline() for process in processes] == [b"ready\n"] * 2
        uses = {}
        for process in processes:
            meter = Meter([], cores=1, clock=time.monotonic)
            while (measured := meter([process.pid])) is None:
                time.sleep(0.2)
            uses[process] = measured
        working, sleeping = (uses[process] for process in processes)
        assert working["cores"] > 0.05 and working["cores"] > 4 * sleeping["cores"], "on a busy machine, too"
        assert set(working) == {"cores", "memory"}
        assert working["memory"] > 3 * sleeping["memory"] > 0
    finally:
        subprocess.run(["pkill", "-P", str(processes[0].pid)], check=False)
        for process in processes:
            process.kill()
            process.wait()
    meter = Meter([], cores=1)
    assert meter([processes[0].pid]) is None, "a process that has ended uses nothing"


def test_the_memory_of_a_slurm_job_is_all_that_it_has(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measured_load, "_memory", lambda pid: 2 * 10**9)
    for place, expected in ((SLURM_JOB, 4 / 8), ("this machine", 4 / 12)):
        monkeypatch.setattr(measured_load, "available_memory", lambda place=place: Memory(8 * 10**9, place))
        meter = Meter([], cores=1, clock=clock)
        assert meter([1, 2]) is None
        clock.now += measured_load.WINDOW_S
        uses = meter([1, 2])
        assert uses["memory"] == pytest.approx(expected)


def test_gpus_are_read_from_the_driver_by_index_and_uuid(tmp_path, monkeypatch):
    rows = ["0, GPU-11aa, 40, 10000, 80000", "1, GPU-22bb, 5, 60000, 80000", "2, GPU-33cc, [N/A], 1000, 80000"]
    write_program(tmp_path / "bin", "nvidia-smi", "\n".join(f"echo '{row}'" for row in rows), monkeypatch)
    assert gpu_uses(["0", "GPU-22bb"]) == {"GPU 0": 0.4, "GPU GPU-22bb": 0.75}
    assert gpu_uses(["2", "MIG-44"]) == {"GPU 2": 1.0, "GPU MIG-44": 1.0}, "not known: no further run"
    write_program(tmp_path / "bin", "nvidia-smi", "exit 9", monkeypatch)
    assert gpu_uses(["0"]) == {"GPU 0": 1.0}


def test_the_use_of_a_gpu_is_a_mean_over_the_measurement(monkeypatch):
    clock, samples = Clock(), iter([0.0, 1.0] * 10)
    monkeypatch.setattr(measured_load, "gpu_uses", lambda gpus: {"GPU 0": next(samples)})
    meter = Meter(["0"], cores=4, clock=clock)
    measured = None
    while measured is None:
        measured = meter([1 << 30])
        clock.now += 0.1
    assert measured["GPU 0"] == pytest.approx(0.5, abs=0.11) and measured["cores"] == 0


def test_slots_of_a_pool_that_follows_the_load():
    slots = [Slot(frozenset({0}), "0"), Slot(frozenset({1}), "1")]
    assert follow_load(slots, 0) == (slots, None)
    shared, limit = follow_load(slots, 0.9)
    assert [slot.gpu for slot in shared] == ["0", "1"] * measured_load.MAX_FACTOR and {
        slot.cores for slot in shared
    } == {None}
    assert limit([]) == 2


@pytest.mark.parametrize("launcher", [Local, Slurm])
@pytest.mark.parametrize("value", [1.1, -0.5, "auto", True])
def test_a_load_that_is_no_share_is_rejected(launcher, value):
    with pytest.raises(UserError, match=r"hydra.launcher.max_load=.* a share up to 1, e.g. 0.9"):
        launcher(max_load=value)
    assert launcher(max_load=0.8).options()["max_load"] == 0.8
