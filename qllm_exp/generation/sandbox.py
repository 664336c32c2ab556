"""Sandbox: generated source to tensor program, with the source executed only in a child process.

The child is a fresh interpreter in an empty folder, with a clean environment, one thread and limits (sandbox_child.py).
Its answer is trusted no more than the source itself: the program is checked again from its JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.sandbox_child import wall_limit
from qllm_exp.generation.static_check import check

MEMORY = 1 << 30  # bytes that a function may use beyond the memory of an idle child process
_START_S = 120.0  # enough to import torch from a slow file system
_PROBES = 7  # minimum number of states that the child needs
_START = "import sys; sys.path.insert(0, {root!r}); from qllm_exp.generation.sandbox_child import main; main()"


def export(source: str, n_agents: int, state_dim: int, timeout_s: float = 60, states: Tensor | None = None) -> Program:
    """Export a generated function as a tensor program.

    Args:
        source: Python source with the single function credit_assignment(agents_q, global_state).
        n_agents: columns of agents_q.
        state_dim: columns of global_state.
        timeout_s: limit in processor seconds for running and tracing; the start of the child does not count.
        states: [M, state_dim] states to run the function on, preferably states of the task; None for states that are
            uniform in [0, 1).

    Raises:
        Refused: the function is not accepted.
    """
    (result,) = export_all([source], n_agents, state_dim, timeout_s, states)
    if isinstance(result, Refused):
        raise result
    return result


def export_all(
    sources: Sequence[str], n_agents: int, state_dim: int, timeout_s: float = 60, states: Tensor | None = None
) -> list[Program | Refused]:
    """Export several generated functions with one child process.

    Args:
        sources: Python sources, as for `export`.
        n_agents: columns of agents_q.
        state_dim: columns of global_state.
        timeout_s: limit in processor seconds per function.
        states: [M, state_dim] states, as for `export`.

    Returns:
        A program or a refusal per source, in the same order.
    """
    results: list[Program | Refused | None] = [_static_refusal(source) for source in sources]
    waiting = [number for number, result in enumerate(results) if result is None]
    if waiting:
        answers = _ask_child([sources[number] for number in waiting], n_agents, _probes(states, state_dim), timeout_s)
        for number, answer in zip(waiting, answers, strict=True):
            results[number] = _parse_answer(answer, n_agents, state_dim)
    return [result for result in results if result is not None]


def _static_refusal(source: str) -> Refused | None:
    """Return the refusal of the static check, or None if the source passes it."""
    try:
        check(source)
    except Refused as refused:
        return refused
    return None


def _probes(states: Tensor | None, state_dim: int) -> Tensor:
    """Return at least 7 states [M, state_dim] on the CPU: the given ones, repeated where they are fewer, or random ones."""
    if states is None:
        return torch.rand(_PROBES, state_dim, generator=torch.Generator().manual_seed(0))
    if states.dim() != 2 or states.shape[1] != state_dim or not len(states):
        raise ValueError(f"states must have shape [M, {state_dim}] with M >= 1, got {list(states.shape)}")
    return states[torch.arange(max(_PROBES, len(states))) % len(states)].float().cpu()


def _ask_child(sources: list[str], n_agents: int, states: Tensor, timeout_s: float) -> list[object]:
    """Run the child process; return one answer per source, as the child wrote it."""
    request = {
        "sources": sources,
        "states": states.tolist(),
        "n_agents": n_agents,
        "timeout_s": timeout_s,
        "memory": MEMORY,
    }
    root = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="qllm_exp-") as folder, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.run(
                [sys.executable, "-I", "-c", _START.format(root=root)],
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=_environment(folder),
                timeout=_START_S + len(sources) * (wall_limit(timeout_s) + 1),
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = "the child process that runs generated functions did not answer in time"
            return [{"stage": "limits", "reason": reason}] * len(sources)
        try:
            answers = json.loads(process.stdout)["results"]
        except (ValueError, KeyError, TypeError, RecursionError):
            errors.seek(0)
            message = errors.read()[-2000:].decode(errors="replace").strip()
            raise RuntimeError(f"the child process that runs generated functions failed: {message}") from None
    if not isinstance(answers, list) or len(answers) != len(sources):
        raise RuntimeError(f"the child process that runs generated functions did not return {len(sources)} answers")
    return answers


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of the child: no secrets, no GPU, one thread. torch may need the library path."""
    library_path = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return library_path | threads | {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "CUDA_VISIBLE_DEVICES": ""}


def _parse_answer(answer: object, n_agents: int, state_dim: int) -> Program | Refused:
    """Check an answer of the child and return the program or the refusal in it."""
    if isinstance(answer, dict) and isinstance(answer.get("stage"), str) and isinstance(answer.get("reason"), str):
        return Refused(answer["stage"], answer["reason"])
    try:
        program = Program.from_json(answer.get("program") if isinstance(answer, dict) else None)
    except Refused as refused:
        return refused
    if (program.n_agents, program.state_dim) != (n_agents, state_dim):
        return Refused("program", "the child process returned a program for inputs of other sizes")
    return program
