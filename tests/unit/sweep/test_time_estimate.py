"""The time estimate of a plan."""

from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import make_run, run_config

from qllm_exp.config import schema
from qllm_exp.config.load import config_class, run_name
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.sweep import time_estimate
from qllm_exp.sweep.prepare import PreparedRun
from qllm_exp.sweep.time_estimate import SPEEDS_SOURCE, estimate

PERFORMANCE = Path(__file__).parents[3] / "docs" / "pages" / "performance.md"


def prepared(folder: Path, run: schema.RunConfig) -> PreparedRun:
    return PreparedRun(run, RunDirectory(folder / run_name(run, None)), None, None)


def config(env: str, mixer: str, algorithm: str = "q_learning", **train: object) -> schema.RunConfig:
    options = schema.TrainConfig(**train)  # type: ignore[arg-type]
    groups = {name: config_class(name, choice)() for name, choice in (("env", env), ("mixer", mixer))}
    return schema.RunConfig(**groups, algorithm=config_class("algorithm", algorithm)(), train=options, device="cpu")


def test_a_first_sweep_has_a_rough_estimate_that_names_its_source(tmp_path: Path) -> None:
    runs = [prepared(tmp_path, config("lbf", mixer)) for mixer in ("qmix", "vdn")]
    text = estimate(runs, [0.0, 0.0], 2)
    assert f"no run of this kind is finished here: a rough estimate, {SPEEDS_SOURCE}" in text, text
    assert text.startswith("about 1 min") or text.startswith("about 2 min"), text


@pytest.mark.parametrize(("env", "steps_per_update", "per_s"), [("lbf", 400, 30_841), ("mpe", 200, 19_741)])
def test_the_speeds_are_those_of_the_page_performance(
    tmp_path: Path, env: str, steps_per_update: int, per_s: int
) -> None:
    steps = 10_000_000
    evaluation = schema.EvaluationConfig(every=steps, episodes=1, absolute_episodes=1)
    run = config(env, "qmix", total_steps=steps, steps_per_update=steps_per_update, evaluation=evaluation)
    minutes = int(estimate([prepared(tmp_path, run)], [0.0], 1).split()[1])
    assert minutes == pytest.approx(steps / per_s / 60, abs=1)


def test_the_times_of_updates_are_those_of_the_page_performance() -> None:
    """The means of lbf and mpe, to one decimal; `none` is Q-learning without a mixer, which is IQL."""
    table = [line.strip("| ").split(" | ") for line in PERFORMANCE.read_text().splitlines() if line.startswith("| ")]
    methods = next(cells for cells in table if cells[:2] == ["vdn", "iql"])
    lbf, mpe = ([float(cell) for cell in cells[1:]] for cells in table if cells[0] in ("lbf", "mpe") and len(cells) > 9)
    measured = {name: (ratios[0] + ratios[1]) / 2 for name, *ratios in zip(methods, lbf, mpe, strict=True)}
    measured |= {"qmix": 1.0, "none": measured["iql"]}
    assert measured == pytest.approx(time_estimate._UPDATES, abs=0.051)


def test_what_ran_here_counts_before_what_was_measured_elsewhere(tmp_path: Path) -> None:
    done = run_config("qmix")
    make_run(tmp_path, done, 0.5)  # 100 s for 200,000 steps
    again = replace(done, seed=7, device="cpu")
    text = estimate([prepared(tmp_path, again)], [0.0], 1)
    seconds = 100 * again.train.total_steps / 200_000
    assert text.startswith(f"about {round(seconds // 60)} min") and "measured" not in text, text
    unlike = [prepared(tmp_path, again), prepared(tmp_path, config("mpe", "vdn"))]
    assert "1 of a kind of which none is finished here: a rough estimate" in estimate(unlike, [0.0, 0.0], 1)


def test_nothing_is_estimated_where_nothing_is_known(tmp_path: Path) -> None:
    assert estimate([prepared(tmp_path, config("meeting", "vdn"))], [0.0], 1) == ""
    on_gpu = replace(config("lbf", "vdn"), device="cuda")
    assert estimate([prepared(tmp_path, on_gpu)], [0.0], 1) == ""
