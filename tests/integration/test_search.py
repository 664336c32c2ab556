"""Searches with a loopback model and real trainings: killed in each phase, started by many, resumed by its directory."""

import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from loopback_llm import Answer, Call, Loopback

from qllm_exp.search.search_directory import SearchDirectory

KEY = "sk-planted-7f3a9c21d4e8b605"
OPTIONS = [
    *("env=mpe", "env.task=simple_spread", "env.num_envs=4", "env.episode_limit=8", "train=quick", "train.hidden=8"),
    *("train.batch_episodes=4", "train.evaluation.episodes=4", "tfcaf.candidates=2", "tfcaf.search.generations=2"),
    *(
        "tfcaf.search.steps=[400,800]",
        "tfcaf.search.seeds=[1,1]",
        "tfcaf.search.tune=gradient",
        "hydra.launcher.n_jobs=2",
    ),
]
SOURCE = """
import torch

def credit_assignment(agents_q, global_state):
    weights = torch.softmax({weight} * global_state[:, 0:3], dim=1)
    return (weights * agents_q).sum(dim=1, keepdim=True)
"""


def arguments(server: Loopback, folder: Path) -> list[str]:
    online = ["llm=openai", "llm.model=openai/loopback", f"llm.api_base={server.url}", "llm.concurrency=1"]
    prices = ["llm.usd_per_million_in=1", "llm.usd_per_million_out=10"]
    return [*OPTIONS, *online, *prices, f"tfcaf.cache={folder / 'cache'}", f"dir={folder / 'runs'}"]


def start(*words: str) -> commands.Command:
    environment = os.environ | {"OPENAI_API_KEY": KEY}
    return commands.start(["-m", "qllm_exp.tfcaf", "search", *words], env=environment, imports="litellm")


def finish(process: commands.Command) -> str:
    """Wait for a search, and return what it prints."""
    out, err = process.communicate(240)
    assert process.wait() == 0, err
    return out.strip()


def kill(process: commands.Command) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def numbered(call: Call) -> Answer:
    """Answer each call with another function."""
    return Answer(f"```python{SOURCE.format(weight=1.0 + 0.25 * call.number)}```")


def by_prompt(before: Callable[[Call], None] = lambda call: None) -> Callable[[Call], Answer]:
    """Return a model whose answer follows from the prompt, so that searches can be compared; the first prompt has two answers."""
    first: list[Call] = []
    lock = threading.Lock()

    def answer(call: Call) -> Answer:
        before(call)
        with lock:
            if "below" not in call.prompt:
                first.append(call)
            weight = 2 + zlib.crc32(call.prompt.encode()) % 1000 / 500 if "below" in call.prompt else float(len(first))
        return Answer(f"```python{SOURCE.format(weight=weight)}```")

    return answer


@pytest.mark.timeout(900)  # on a busy machine
def test_a_search_killed_in_each_phase_ends_like_one_that_was_not_and_pays_no_call_twice(tmp_path: Path) -> None:
    fewer = ["tfcaf.search.reflection.baselines=false"]  # trainings, of which a kill can meet only one
    with Loopback(by_prompt()) as server:
        whole = Path(finish(start(*arguments(server, tmp_path / "whole"), *fewer)))
        n_calls = len(server.calls)
    assert n_calls == 4
    in_call = threading.Event()

    def wait_once(call: Call) -> None:
        if "below" in call.prompt and not in_call.is_set():
            in_call.set()
            time.sleep(10)

    with Loopback(by_prompt(wait_once)) as server:
        words = [*arguments(server, tmp_path / "killed"), *fewer]
        process = start(*words)
        while not list(
            (tmp_path / "killed").glob("runs/search_*/runs/*/status.json")
        ):  # in a training of the first generation
            time.sleep(0.05)
        kill(process)
        process = start(*words)
        assert in_call.wait(240)  # in a call of the second generation
        kill(process)
        process = start(*words)
        while not list(
            (tmp_path / "killed").glob("runs/search_*/runs/*s1000999*/status.json")
        ):  # with trainable constants
            time.sleep(0.05)
        kill(process)
        (directory,) = (tmp_path / "killed" / "runs").glob("search_*")
        killed = Path(finish(start("--resume", str(directory))))
        assert len(server.calls) == n_calls + 1, "only the call that was open when the process was killed"
    logs = [next((tmp_path / name / "runs").glob("search_*/search.jsonl")).read_text() for name in ("whole", "killed")]
    rows = [[row for line in log.splitlines() for row in json.loads(line)] for log in logs]
    for row in (row for log in rows for row in log if row["kind"] == "call"):
        del row["seconds"]
    assert rows[0] == rows[1]
    sources = [json.loads(path.read_text())["program"] for path in (whole, killed)]
    assert sources[0] == sources[1]


def test_four_processes_are_one_search(tmp_path: Path) -> None:
    with Loopback(numbered) as server:
        paths = {finish(process) for process in [start(*arguments(server, tmp_path)) for _ in range(4)]}
        assert len(server.calls) == 4 and len(paths) == 1
    (folder,) = (tmp_path / "runs").glob("search_*")
    directory = SearchDirectory(folder)
    names = [(row["function"], row["stage"], row["seed"]) for row in directory.of_kind("training")]
    assert len(names) == len(set(names)) and KEY not in "".join(map(str, directory.rows))


def test_an_ablation_searches_and_trains_in_one_command(tmp_path: Path) -> None:
    with Loopback(numbered) as server:
        words = [
            *arguments(server, tmp_path),
            "mixer=tfcaf",
            "tfcaf.rounds=1",
            "tfcaf.evaluator=false",
            "train.total_steps=800",
        ]
        words += [
            "tfcaf.search.method=none,best_of",
            "seed=0-1",
            "tfcaf.search.tune=none",
            "train.evaluation.absolute_episodes=4",
        ]
        environment = os.environ | {"OPENAI_API_KEY": KEY}
        process = commands.run(["-m", "qllm_exp", "-m", *words], timeout=240, env=environment, imports="litellm")
        assert process.returncode == 0, process.stderr
        assert len(server.calls) == 2 + 2 * 2
    assert "a language model writes 2 functions used by 4 runs" in process.stderr
    table = next(tmp_path.glob("runs/sweep_*/table.md")).read_text()
    assert "best_of" in table and "search_" not in table
