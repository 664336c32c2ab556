"""Forward and backward time of the TFCAF mixer with each bundled function, beside the QMIX mixer, as JSON.

python tests/bench/mixers.py --rounds 30

Both mix the same batch in turn, on one thread. Times are medians over the rounds, `ratio` is the median of TFCAF / QMIX
within a round. The parameters of QMIX require gradients, as in training. An update consists of a forward pass without gradients
for the targets and a forward and backward pass; `update_ratio` compares their sum. updates.py times whole updates.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from qllm_exp.config.load import config_class

os.environ.setdefault("OMP_NUM_THREADS", "1")

BATCHES = ((32, 51), (32, 26))  # episodes, time steps
REPEATS = 10  # calls per time measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(json.dumps(measure(options.rounds, options.device), indent=1))


def measure(rounds: int, device: str) -> list[dict[str, Any]]:
    """Return a row per bundled function and batch size."""
    import torch

    from qllm_exp.credit.probe_states import extreme_states, task_states
    from qllm_exp.credit.stored_function import BUNDLED, load
    from qllm_exp.envs import make_env
    from qllm_exp.mixers.qmix import Qmix
    from qllm_exp.mixers.tfcaf import Tfcaf

    torch.set_num_threads(1)
    results = []
    for path in sorted(BUNDLED.glob("*/*.json")):
        stored = load(path)
        env = make_env(config_class("env", stored.env)(task=stored.task), 2, 0, device)
        affine = stored.program.is_affine(extreme_states(env))
        played = task_states(env, 512)
        env.close()
        for episodes, steps in BATCHES:
            rows = torch.randint(len(played), (episodes, steps), generator=torch.Generator().manual_seed(0))
            states, q = played[rows.to(device)], torch.randn(episodes, steps, env.n_agents, device=device)
            mixers = {
                "tfcaf": Tfcaf(stored.program, affine, enforce=affine and env.task.monotonic),
                "qmix": Qmix(env.n_agents, env.state_dim, embed=32, hypernet=64).to(device),
            }
            row: dict[str, Any] = {
                "function": str(path.relative_to(BUNDLED).with_suffix("")),
                "episodes": episodes,
                "steps": steps,
            }
            for key, make_call in (("forward", forward), ("forward_backward", forward_backward)):
                calls = {name: make_call(mixer, q, states) for name, mixer in mixers.items()}
                row[key] = compare(calls, rounds, device)
            ours, theirs = (row["forward"][f"{name}_ms"] + row["forward_backward"][f"{name}_ms"] for name in mixers)
            row["update_ratio"] = round(ours / theirs, 2)
            results.append(row)
    return results


def forward(mixer: Any, q: Any, states: Any) -> Callable[[], None]:
    """Return a function that runs a forward pass without gradients."""
    import torch

    def call() -> None:
        with torch.no_grad():
            mixer(q, states)

    return call


def forward_backward(mixer: Any, q: Any, states: Any) -> Callable[[], None]:
    """Return a function that runs a forward and a backward pass."""
    leaf = q.clone().requires_grad_()

    def call() -> None:
        mixer(leaf, states).square().mean().backward()

    return call


def compare(calls: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Return the median milliseconds of each call, and the median ratio TFCAF / QMIX."""
    times = time_calls(calls, rounds, device)
    ratios = [ours / theirs for ours, theirs in zip(times["tfcaf"], times["qmix"], strict=True)]
    medians = {f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 2)}


def time_calls(calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the milliseconds of each call in each round. An additional first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = clock(device)
            for _ in range(REPEATS):
                call()
            if number:
                times[name].append(1e3 * (clock(device) - started) / REPEATS)
    return times


def clock(device: str) -> float:
    """Return a time in seconds: processor time on a CPU, since other programs on the machine affect it least."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
