"""The plan of a sweep: what it says about runs that are there already."""

import json
import logging
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qllm_exp.config.compose import CONF
from qllm_exp.sweep.launch import pending_functions, print_plan
from qllm_exp.sweep.local import Local
from qllm_exp.sweep.plan import Plan, make_plan


def planned(folder: Path, steps: int, *overrides: str) -> Plan:
    arguments = ("mixer=vdn", "device=cpu", f"dir={folder}", f"train.total_steps={steps}", *overrides)
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return make_plan([arguments], lambda overrides: compose("config", list(overrides)), lambda error, _: str(error))


def finish(plan: Plan) -> Path:
    """Write the files of a finished run where the plan has it."""
    (run,) = plan.runs
    run.directory.create(run.config, run.tfcaf)
    run.directory.set_status("finished", total_steps=run.config.train.total_steps)
    run.directory.finish({"final_return": 0.5, "absolute_return": 0.5})
    return run.directory.path


@pytest.mark.parametrize("mixer", ["vdn", "tfcaf"])
def test_a_longer_run_does_not_continue_a_finished_one_and_the_plan_says_so(tmp_path: Path, mixer: str) -> None:
    first = planned(tmp_path, 1000, f"mixer={mixer}")
    assert first.other_lengths == ""
    path = finish(first)
    assert planned(tmp_path, 1000, f"mixer={mixer}").other_lengths == "", "it is finished, and not asked for more"
    line = planned(tmp_path, 2000, f"mixer={mixer}").other_lengths
    assert line.startswith("1 run begins anew") and f"{path.name}, 1,000 steps" in line
    assert "train.total_steps is part of what defines a run" in line
    assert planned(tmp_path, 2000, f"mixer={mixer}", "seed=1").other_lengths == ""
    assert planned(tmp_path, 2000, f"mixer={mixer}", "train.gamma=0.9").other_lengths == ""
    (path / "result.json").unlink()
    assert planned(tmp_path, 2000, f"mixer={mixer}").other_lengths == ""


def test_folders_that_are_no_runs_do_not_matter(tmp_path: Path) -> None:
    name = planned(tmp_path, 1000).runs[0].directory.path.name
    for status in ({"total_steps": "many"}, {"total_steps": 2.5}, {}):
        folder = tmp_path / f"{name[:-8]}{abs(hash(str(status))):08d}"
        folder.mkdir()
        (folder / "status.json").write_text(json.dumps(status))
    assert planned(tmp_path, 1000).other_lengths == ""


def test_the_plan_counts_the_functions_that_a_search_looks_for(tmp_path: Path) -> None:
    options = ["mixer=tfcaf", "llm=folder", f"llm.path={tmp_path}", f"tfcaf.cache={tmp_path}", "sweep.dry_run=true"]
    plan = planned(tmp_path, 1000, *options, "tfcaf.search.method=best_of")
    assert len(plan.pending) == plan.searches == 1
    assert pending_functions(plan) == (
        "first, a language model writes 1 function used by 1 run; for 1 of these functions, a search also trains its candidates "
        "first, which the time above leaves out"
    )
    without = planned(tmp_path, 1000, *options)
    assert len(without.pending) == 1 and without.searches == 0
    assert pending_functions(without) == "first, a language model writes 1 function used by 1 run"


def test_the_time_counts_the_runs_whose_function_a_language_model_has_yet_to_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = ["mixer=tfcaf", "llm=folder", f"llm.path={tmp_path}", f"tfcaf.cache={tmp_path}", "sweep.dry_run=true"]
    times = []
    for options in (waiting, ["mixer=tfcaf", "llm=bundled"]):
        caplog.clear()
        with caplog.at_level(logging.INFO, "qllm_exp"):
            print_plan(planned(tmp_path, 2_000_000, *options), Local())
        times += [record.getMessage() for record in caplog.records if "  time: " in record.getMessage()]
    assert len(times) == 2 and times[0] == times[1]
