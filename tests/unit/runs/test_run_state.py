"""The state of a run from its directory alone."""

import json
from pathlib import Path

import pytest
from run_folders import make_unfinished_run, run_config

from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.run_state import state_of
from qllm_exp.runs.slurm_queue import Queue


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ({"env_step": 60, "checkpoint_step": 40}, "at 60%, checkpoint at 40%; "),
        ({"env_step": 40, "checkpoint_step": 40}, "at 40%; "),
        ({"env_step": 60, "checkpoint_step": 0}, "at 60%, checkpoint at 0%; "),
        ({"env_step": 60}, "at 60%; "),  # of an older version
    ],
)
def test_a_dead_run_says_how_far_it_was_and_where_it_resumes(
    tmp_path: Path, entries: dict[str, int], place: str
) -> None:
    run = make_unfinished_run(tmp_path, run_config("vdn"), "running")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"total_steps": 100} | entries))
    state = state_of(RunDirectory(run), Queue({}))
    assert state.state == "dead" and f"ended without an error message {place}last heartbeat" in state.reason
