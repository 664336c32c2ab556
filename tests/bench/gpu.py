"""What a GPU does for this package: one JSON file, and the same as one Markdown table.

    python tests/bench/gpu.py --out FOLDER            8 minutes at most on a large NVIDIA GPU and 16 cores
    python tests/bench/gpu.py --out FOLDER --quick    every part in seconds, also without a GPU

equal      an update of every algorithm and with every mixer, on the CPU and on the GPU: same seed, same parameters, same episodes,
           same random numbers. Largest difference of a metric and of a gradient, relative to their size; TOLERANCE is allowed.
steps      environment steps per second of mpe, lbf and smax with random actions
training   environment steps and updates per second of QMIX on them, and the GPU memory; 16 updates per rollout
jaxmarl    QMIX of JaxMARL's sizes beside JaxMARL's own, if .venv-jaxmarl is there; one update per rollout
graph      an update of QMIX captured as a CUDA graph, beside the same update as it is: equal, and how fast

Each part is a process with a time limit: where one fails, its error takes the place of its numbers, and the others go on. Without a
GPU, `equal` compares the code that a GPU would run (padded batches, no compiled network) on the CPU with the code for CPUs, and the
other parts measure the CPU.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ours
import torch
import updates

from qllm_exp.algorithms.base import EpisodeBatch
from qllm_exp.algorithms.flat_parameters import FlatParameters
from qllm_exp.config.load import config_class
from qllm_exp.envs import make_env
from qllm_exp.networks.packing import Packing
from qllm_exp.networks.recurrent import RecurrentAgent
from qllm_exp.sweep.pool import list_gpus

ROOT = Path(__file__).parents[2]
JAXMARL = ROOT / ".venv-jaxmarl" / "bin" / "python"
TOLERANCE = 1e-4  # of float32 without TF32, whose sums have other orders; the code for GPUs on the CPU is within 2e-6
TASKS = {"mpe": None, "lbf": [10, 13, 16, 19, 22, 27, 37, 50]}  # lengths of the episodes; None: all equal
UPDATES_PER_ROLLOUT = 16
LIMITS_S = {
    "equal": 100,
    "steps": 50,
    "training": 180,
    "jaxmarl": 100,
    "graph": 40,
}  # 8 minutes at most

Row = dict[str, Any]


def equal(device: str, quick: bool) -> Iterator[Row]:
    """Compare an update of each algorithm on the CPU with that on the device."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for task, lengths in TASKS.items():
        config = config_class("env", task)()
        reference_env, env = (make_env(config, updates.EPISODES, 0, place) for place in ("cpu", device))
        torch.manual_seed(0)
        batch = updates.random_episodes(reference_env, updates.make(task, updates.REFERENCE, reference_env), lengths)
        names = updates.names(["qmix", "coma"] if quick else None)
        for name in names:
            row: Row = {"case": f"{name} on {task}"}
            if name == "maddpg" and lengths:
                continue  # it draws its random numbers for the steps of episodes alone, of which a padded batch has more
            try:
                reference = _updated(task, name, reference_env, batch)
                with contextlib.nullcontext() if device != "cpu" else as_on_a_gpu():
                    other = _updated(task, name, env, EpisodeBatch(*(x.to(device) for x in batch)))
                metrics, gradients = (_difference(a, b) for a, b in zip(reference, other, strict=True))
                row |= {"metrics": metrics, "gradients": gradients, "ok": max(metrics, gradients) <= TOLERANCE}
            except Exception as error:
                row |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            yield row
        reference_env.close()
        env.close()


def _updated(task: str, name: str, env: Any, batch: EpisodeBatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics of an update, and the gradients of all parameters, on the CPU in float64."""
    torch.manual_seed(0)
    algorithm = updates.make(task, name, env)
    with draws_of_the_cpu():
        metrics = algorithm.update(updates.FixedEpisodes(batch))
    flat = {key: value for key, value in vars(algorithm).items() if isinstance(value, FlatParameters)}
    gradients = {key: value.values.grad for key, value in flat.items() if value.values.grad is not None}
    return tuple({key: x.detach().cpu().double() for key, x in values.items()} for values in (metrics, gradients))


def _difference(expected: dict[str, Any], actual: dict[str, Any]) -> float:
    """Return the largest difference of two tensors of the same name, relative to the larger norm."""
    assert expected.keys() == actual.keys()
    worst = 0.0
    for key, value in expected.items():
        scale = max(value.norm().item(), actual[key].norm().item(), 1e-6)
        worst = max(worst, (value - actual[key]).norm().item() / scale)
    return worst


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Make networks on the CPU compute what a GPU would: padded batches, in torch."""

    def pad(packing: Packing, mask: torch.Tensor) -> None:
        packing.shape, packing.index = mask.shape, None

    originals = Packing.__init__, RecurrentAgent._uses_kernel
    Packing.__init__, RecurrentAgent._uses_kernel = pad, lambda agent, inputs: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        Packing.__init__, RecurrentAgent._uses_kernel = originals  # type: ignore[method-assign]


@contextlib.contextmanager
def draws_of_the_cpu() -> Iterator[None]:
    """Make updates on every device draw the same random numbers: those of a generator on the CPU."""
    original, generator = torch.Tensor.exponential_, torch.Generator().manual_seed(0)

    def draw(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor.copy_(original(torch.empty(tensor.shape), generator=generator))

    torch.Tensor.exponential_ = draw  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.exponential_ = original  # type: ignore[method-assign]


def copies(quick: bool) -> tuple[int, ...]:
    """Numbers of copies of an environment."""
    return (16,) if quick else (1024, 8192)


def steps(device: str, quick: bool) -> Iterator[Row]:
    """Measure environments alone. Only the steps of episodes that have not ended count."""
    torch.set_num_threads(1)
    seconds = 0.1 if quick else 5.0
    for name in ("mpe", "lbf", "smax"):
        for count in copies(quick):
            row: Row = {"case": f"{name}, {count:,} copies"}
            try:
                env = make_env(config_class("env", name)(), count, 0, device)
                play_episodes(env)
                played, started = 0, time.perf_counter()
                while time.perf_counter() - started < seconds:
                    played += play_episodes(env)
                row["env_steps_per_s"] = played / (time.perf_counter() - started)
                env.close()
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
            yield row


def play_episodes(env: Any) -> int:
    """Play an episode in every copy with random available actions, and return the number of steps; this waits for a GPU once."""
    available = env.reset().available_actions
    playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    count = torch.zeros((), dtype=torch.int64, device=env.device)
    for _ in range(env.episode_limit):
        count += playing.sum()
        step = env.step((torch.rand(available.shape, device=env.device) * available).argmax(-1))
        available = step.available_actions
        playing = playing & ~(step.terminated | step.truncated)
    return int(count)


def train(case: str, setting: str, count: int, steps_per_update: int, limit_s: float, device: str, quick: bool) -> Row:
    """Return the speed of QMIX in a setting of ours.py, measured in a process of its own."""
    seconds, warm_up = (0.1, 1) if quick else (8.0, UPDATES_PER_ROLLOUT)
    keys = ("env_steps_per_s", "updates_per_s", "gpu_memory_mb", "peak_memory_mb")

    def measure() -> Iterator[Row]:
        result = ours.measure(setting, seconds, device, count, steps_per_update, warm_up)
        yield {key: result[key] for key in keys}

    return {"case": case} | isolated(measure(), limit_s)[0]


def training(device: str, quick: bool) -> Iterator[Row]:
    """Measure training on mpe, lbf and smax."""
    settings = {"mpe": "epymarl-mpe", "lbf": "epymarl-lbf", "smax": "smax"}
    limit_s = LIMITS_S["training"] / len(settings) / len(copies(quick))
    for name, setting in list(settings.items())[: 1 if quick else None]:
        for count in copies(quick):
            steps_per_update = count * config_class("env", name)().episode_limit // UPDATES_PER_ROLLOUT
            yield train(f"{name}, {count:,} copies", setting, count, steps_per_update, limit_s, device, quick)


def jaxmarl(device: str, quick: bool) -> Iterator[Row]:
    """Measure JaxMARL's QMIX and this package's, with as many copies and updates."""
    count = 16 if quick else 1024
    ours_s, theirs_s = 0.3 * LIMITS_S["jaxmarl"], 0.7 * LIMITS_S["jaxmarl"]  # it compiles for long
    theirs_s = 1.0 if quick else theirs_s  # then it is only started
    yield train(f"qllm_exp, mpe, {count:,} copies", "jaxmarl-mpe", count, 26 * count, ours_s, device, quick)
    row: Row = {"case": f"jaxmarl, mpe, {count:,} copies"}
    script = ROOT / "tests" / "bench" / "peers" / "jaxmarl_qmix.py"
    command = [str(JAXMARL), "-W", "ignore", str(script), "--envs", str(count), "--seconds", "0.1" if quick else "8"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu" if device == "cpu" else "cuda"}
    if not JAXMARL.exists():
        yield row | {"error": "not installed: tests/install_jaxmarl.sh"}
        return
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=theirs_s, env=environment, check=True)
        result = json.loads(process.stdout.strip().splitlines()[-1])
        yield row | {key: result[key] for key in ("env_steps_per_s", "updates_per_s", "peak_memory_mb")}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]  # JAX adds advice below them
        yield row | {"error": [f"exit code {error.returncode}", *lines[-1:], *errors[-1:]][-1]}
    except subprocess.TimeoutExpired:
        yield row | {"error": f"not done after {theirs_s:.0f} s"}


def graph(device: str, quick: bool) -> Iterator[Row]:
    """Measure an update of QMIX as it is, and captured as a CUDA graph; and compare the parameters after ten of each."""
    torch.set_num_threads(1)
    for task in TASKS:
        env = make_env(config_class("env", task)(), updates.EPISODES, 0, device)
        torch.manual_seed(0)
        algorithm = updates.make(task, updates.REFERENCE, env)
        experience = updates.FixedEpisodes(updates.random_episodes(env, algorithm, None))
        row: Row = {"case": f"QMIX on {task}"}
        row["eager_ms"] = _median_ms(functools.partial(algorithm.update, experience), device, quick)
        try:
            row |= (
                _captured(task, env, experience, quick)
                if device != "cpu"
                else {"error": "no GPU: nothing was captured"}
            )
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        yield row


def _captured(task: str, env: Any, experience: updates.FixedEpisodes, quick: bool) -> Row:
    """Return the time of an update as a CUDA graph, and the difference of the parameters after ten updates with and without it."""
    plain, captured = (updates.make(task, updates.REFERENCE, env) for _ in range(2))
    captured.load_state_dict(plain.state_dict())
    for algorithm in (plain, captured):  # the graph must count the steps of Adam itself
        algorithm.optimiser.param_groups[0]["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # before the capture, everything that is allocated once must be
            captured.update(experience)
    torch.cuda.current_stream().wait_stream(stream)
    cuda_graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(cuda_graph):  # records an update, without performing it
        captured.update(experience)
    for _ in range(7):
        cuda_graph.replay()
    for _ in range(10):
        plain.update(experience)
    states = [algorithm.policy_state_dict() for algorithm in (plain, captured)]
    difference = _difference(*({key: x.cpu().double() for key, x in state.items()} for state in states))
    return {"graph_ms": _median_ms(cuda_graph.replay, "cuda", quick), "difference": difference}


def _median_ms(call: Callable[[], object], device: str, quick: bool) -> float:
    """Return the median of the milliseconds that a call takes, a GPU's work included."""
    times = []
    for _ in range(3 if quick else 100):
        started = updates.clock(device)
        call()
        times.append(1e3 * (updates.clock(device) - started))
    return statistics.median(times)


PARTS: dict[str, Callable[[str, bool], Iterator[Row]]] = {
    "equal": equal,
    "steps": steps,
    "training": training,
    "jaxmarl": jaxmarl,
    "graph": graph,
}
WITH_PROCESSES = ("training", "jaxmarl")  # parts whose rows are measured in processes of their own


def isolated(rows: Iterator[Row], limit_s: float) -> list[Row]:
    """Return the rows that a generator yields in a process forked from this one, which must not have used the GPU.

    Args:
        rows: the generator.
        limit_s: time limit, s.

    Returns:
        The rows; if the generator or its process fails, or the time is over, those before and a row with the error.
    """

    def run(connection: Connection) -> None:
        try:
            for row in rows:
                connection.send(row)
        except Exception as error:
            traceback.print_exc()
            connection.send({"error": f"{type(error).__name__}: {error}"})
        connection.send(None)

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run, args=(sender,))
    process.start()
    sender.close()
    received: list[Row] = []
    deadline = time.monotonic() + limit_s
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            row = receiver.recv()
            if row is None:
                return received
            received.append(row)
        return [*received, {"error": f"not done after {limit_s:.0f} s"}]
    except EOFError:
        process.join(10)
        return [*received, {"error": f"its process ended with exit code {process.exitcode}"}]
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of gpu.json and gpu.md")
    parser.add_argument("--quick", action="store_true", help="every part in seconds, with numbers that mean nothing")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts; default: all")
    options = parser.parse_args()
    gpus = list_gpus()
    device = "cuda" if gpus and torch.version.cuda else "cpu"
    if device == "cpu":
        reason = "there is no NVIDIA GPU here" if not gpus else f"torch {torch.__version__} is built without CUDA"
        print(f"No GPU is used: {reason}. All numbers are of the CPU.", flush=True)
    results: dict[str, Any] = {
        "device": device,
        "gpu": gpu_name() if device == "cuda" else None,
        "quick": options.quick,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tolerance": TOLERANCE,
        "parts": {},
        "seconds": {},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        started = time.monotonic()
        rows = PARTS[name](device, options.quick)
        results["parts"][name] = list(rows) if name in WITH_PROCESSES else isolated(rows, LIMITS_S[name])
        results["seconds"][name] = round(time.monotonic() - started, 1)
        # After each part, so that a run that is cut off leaves what it has measured.
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "gpu.md").write_text(table(results))
    print((options.out / "gpu.md").read_text())
    sys.exit(1 if any(row.get("ok") is False for row in results["parts"].get("equal", [])) else 0)


def gpu_name() -> str:
    """Return the name of the first GPU, from the driver's own tool: this process must not use it."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().partition("\n")[0]


def table(results: dict[str, Any]) -> str:
    """Return the results as one Markdown table, under a line that says where they were measured."""
    place = results["gpu"] or "NO GPU: all numbers are of the CPU"
    lines = [
        f"{place}; torch {results['torch']}{'; --quick, the numbers mean nothing' if results['quick'] else ''}",
        "",
    ]
    lines += ["| part | case | result |", "|---|---|---|"]
    for name, rows in results["parts"].items():
        for row in rows:
            values = [f"{key} {_cell(value)}" for key, value in row.items() if key != "case" and value is not None]
            lines.append(f"| {name} | {row.get('case', '-')} | {'; '.join(values).replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return " ".join(str(value).split())
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
