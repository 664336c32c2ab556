"""The script that measures a GPU, in the mode that shortens everything, mostly where there is none."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))  # its scripts import each other

import gpu  # noqa: E402

pytestmark = pytest.mark.slow


def test_every_part_is_measured_without_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [BENCH / "gpu.sh", "--out", tmp_path / "out", "--quick"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.startswith("No GPU is used: there is no NVIDIA GPU here. All numbers are of the CPU.\n")
    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    parts, table = results["parts"], (tmp_path / "out" / "gpu.md").read_text()
    assert results["device"] == "cpu" and results["gpu"] is None and list(parts) == list(gpu.PARTS)
    compared = {row["case"]: max(row["metrics"], row["gradients"]) for row in parts["equal"]}
    assert {"q_learning+qmix on mpe", "coma on lbf"} <= compared.keys()
    # The code for GPUs does compute something else, within the tolerance.
    assert 0 < max(compared.values()) < gpu.TOLERANCE / 10 and all(row["ok"] for row in parts["equal"])
    assert all(row["env_steps_per_s"] > 0 for row in (*parts["steps"], *parts["training"], parts["jaxmarl"][0]))
    assert all(row["eager_ms"] > 0 and "nothing was captured" in row["error"] for row in parts["graph"])
    assert table.startswith("NO GPU") and "--quick, the numbers mean nothing" in table
    assert all(f"| {name} | " in table for name in gpu.PARTS)


def rows(fault: str) -> Iterator[gpu.Row]:
    """Yield a row, and then fail."""
    yield {"case": "first"}
    if fault == "raise":
        raise RuntimeError("out of memory")
    if fault == "die":
        os._exit(9)
    if fault == "hang":
        time.sleep(600)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("raise", "RuntimeError: out of memory"),
        ("die", "its process ended with exit code 9"),
        ("hang", "not done after 1 s"),
    ],
)
def test_a_part_that_fails_leaves_what_it_has_measured(fault: str, error: str) -> None:
    assert gpu.isolated(rows(fault), 1.0) == [{"case": "first"}, {"error": error}]
    assert gpu.isolated(rows(""), 10.0) == [{"case": "first"}]


def test_the_other_parts_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--quick", "--only", "steps", "graph"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(gpu.PARTS, "steps", lambda device, quick: rows("raise"))
    monkeypatch.setitem(gpu.PARTS, "graph", lambda device, quick: rows(""))
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 0
    table = (tmp_path / "gpu.md").read_text()
    assert "| steps | - | error RuntimeError: out of memory |" in table and "| graph | first |" in table


def test_an_update_that_differs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = {"agents": torch.randn(100, dtype=torch.float64)}
    assert gpu._difference(gradient, {"agents": gradient["agents"] * (1 + gpu.TOLERANCE * 2)}) > gpu.TOLERANCE
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--only", "equal"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(gpu.PARTS, "equal", lambda device, quick: iter([{"case": "qmix on lbf", "ok": False}]))
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 1
