"""env=smax: parity with the published jaxmarl in every step, and the same distribution of starts; `make bench` takes all maps."""

from functools import cache

import pytest
import torch
from scipy.stats import ks_2samp
from smax_comparison import Comparison, compare, jaxmarl_blocks

from qllm_exp.envs.smax import tasks
from qllm_exp.envs.smax.maps import MAPS
from qllm_exp.envs.smax.starts import sample_start

SAMPLE = ("3s_vs_5z", "smacv2_5_units")  # unequal sides in fixed places; all types, drawn, in drawn places


@cache
def compared(task: str) -> Comparison:
    return compare(task, 100)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", SAMPLE)
def test_the_same_starts_actions_and_draws_lead_to_the_same_steps(task: str) -> None:
    result = compared(task)
    assert result.faults == []
    assert result.episodes >= 100 and result.steps > 1000
    if task != "3s_vs_5z":
        assert 0 < result.wins < result.episodes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", SAMPLE)
def test_starts_have_the_same_distribution(task: str) -> None:
    result, allies = compared(task), len(MAPS[task].allies)
    types, positions = sample_start(MAPS[task], 2000, torch.Generator().manual_seed(0))
    for unit in (0, allies - 1, allies, MAPS[task].size - 1):
        for axis in range(2):
            test = ks_2samp(result.starts[:, unit, axis], positions[:, unit, axis])
            assert test.pvalue > 1e-4, f"unit {unit}, axis {axis}"
    if MAPS[task].drawn:
        assert torch.equal(result.types[:, :allies], result.types[:, allies:])
        assert set(result.types.flatten().tolist()) == set(types.flatten().tolist()) == set(range(6))


def test_the_sample_is_of_maps_that_exist() -> None:
    assert set(SAMPLE) <= set(tasks())


def test_a_missing_jaxmarl_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("smax_comparison.PYTHON", tmp_path / "bin/python")
    with pytest.raises(RuntimeError, match=r"tests/install_jaxmarl.sh"):
        next(jaxmarl_blocks("3m", 1))
