"""Launchers that a record or a command describes."""

import pytest

from qllm_exp.errors import UserError
from qllm_exp.sweep.launch import make_launcher
from qllm_exp.sweep.slurm import Slurm


def test_a_launcher_is_made_from_its_record() -> None:
    launcher = make_launcher({"name": "slurm", "runs_per_job": 3, "time": "1:00:00"})
    assert isinstance(launcher, Slurm) and launcher.runs_per_job == 3
    assert make_launcher({"n_jobs": 2}).options() == {"name": "local", "n_jobs": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slurn"}, "launcher='slurn' is unknown. Did you mean 'slurm'?"),
        ({"name": "slurm", "run_per_job": 3}, "option='run_per_job' is unknown. Did you mean 'runs_per_job'?"),
        (
            {"name": "local", "mem_gb_per_run": 8},
            "launcher=local: option='mem_gb_per_run' is unknown. Allowed: n_jobs.",
        ),
    ],
)
def test_a_misspelt_option_is_followed_by_the_nearest(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_launcher(options)
    assert message in str(error.value)
