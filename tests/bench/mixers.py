"""Forward and backward time of the TFCAF mixer with each bundled function beside the QMIX mixer, as JSON.

python tests/bench/mixers.py --rounds 30

Both mix the same batch in turn, on one thread; times are medians over the rounds, `ratio` is the median of TFCAF / QMIX
within a round. The weights of QMIX take gradients, as in training. An update calls the forward pass without gradients
for the targets, and the forward and backward pass: `update_ratio`. Whole updates with every mixer: updates.py.
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
REPEATS = 10  # calls that one time is taken over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    print(json.dumps(measure(given.rounds, given.device), indent=1))


def measure(rounds: int, device: str) -> list[dict[str, Any]]:
    import torch

    from qllm_exp.credit.probe_states import extreme_states, task_states
    from qllm_exp.credit.stored_function import BUNDLED, load
    from qllm_exp.envs import make_env
    from qllm_exp.mixers.qmix import Qmix
    from qllm_exp.mixers.tfcaf import Tfcaf

    torch.set_num_threads(1)
    found = []
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
            calls = {name: (forward(mixer, q, states), both(mixer, q, states)) for name, mixer in mixers.items()}
            found.append({"function": f"{stored.env}/{stored.task}", "episodes": episodes, "steps": steps})
            for k, what in enumerate(("forward", "forward_backward")):
                found[-1][what] = compared({name: pair[k] for name, pair in calls.items()}, rounds, device)
            ours, theirs = (found[-1]["forward"][f"{n}_ms"] + found[-1]["forward_backward"][f"{n}_ms"] for n in mixers)
            found[-1]["update_ratio"] = round(ours / theirs, 2)
    return found


def forward(mixer: Any, q: Any, states: Any) -> Callable[[], None]:
    import torch

    def call() -> None:
        with torch.no_grad():
            mixer(q, states)

    return call


def both(mixer: Any, q: Any, states: Any) -> Callable[[], None]:
    leaf = q.clone().requires_grad_()

    def call() -> None:
        mixer(leaf, states).square().mean().backward()

    return call


def compared(calls: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of each call, and the median ratio TFCAF / QMIX."""
    times = timed(calls, rounds, device)
    ratios = [ours / theirs for ours, theirs in zip(times["tfcaf"], times["qmix"], strict=True)]
    medians = {f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 2)}


def timed(calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each call in each of the interleaved rounds; one more, the first, does not count."""
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
    """Seconds; processor time on a CPU, which other programs on the machine disturb least."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
