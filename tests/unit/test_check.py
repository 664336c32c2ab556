"""The command `qllm-exp check`, for modules of a user's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qllm_exp import check

OWN_CONF = Path(__file__).parents[2] / "docs" / "examples" / "own" / "conf"
Call = Callable[..., tuple[int, str]]
BROKEN = """
import torch
from meeting import Config, Meeting, check, tasks  # noqa: F401


def make(config, num_envs, seed, device):
    return Broken(config, num_envs, seed, device)


class Broken(Meeting):
    def step(self, actions):
        step = super().step(actions)
        FAULT
        return step
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A function that runs the command, and returns its exit code and its output."""

    def run(*arguments: str) -> tuple[int, str]:
        code = check.main(["--config-dir", str(OWN_CONF), *arguments])
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[str]]:
    """A function that writes an environment with a fault, and returns the overrides that choose it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, fault: str) -> list[str]:
        (tmp_path / f"{name}.py").write_text(BROKEN.replace("FAULT", fault))
        return ["env=meeting", f"env.name={name}"]

    return write


def test_the_documented_example_passes(call: Call) -> None:
    code, text = call("env=meeting", "mixer=attentive")
    assert code == 0 and text.count("passed") == 12 and "FAILED" not in text, text
    assert "env=meeting env.task=2p\n" in text and "mixer=attentive\n" in text
    code, text = call("algorithm=calm", "env=meeting", "train=quick", "train.hidden=8")
    assert code == 0 and "algorithm=calm mixer=vdn\n  passed  Actions: available" in text, text


def test_algorithm_is_checked_with_a_mixer_that_it_accepts(call: Call) -> None:
    code, text = call("algorithm=ippo", "train.hidden=8")
    assert code == 0 and "algorithm=ippo mixer=none\n" in text, text
    code, text = call("algorithm=ippo", "mixer=vdn")
    assert code == 2 and "algorithm=ippo does not accept mixer=vdn" in text, text


def test_a_fault_is_one_line_and_what_depends_on_it_is_not_checked(
    call: Call, broken: Callable[..., list[str]]
) -> None:
    overrides = broken("own_wide", "step = step._replace(obs=step.obs[..., :1])")
    code, text = call(*overrides, "mixer=attentive")
    assert code == 1, text
    assert "step() returned obs of shape [3, 2, 1], expected [3, 2, 2], i.e. [N, n_agents, obs_dim]" in text
    assert text.count("FAILED") == 1 and "5 further checks were not run" in text and "not checked: mixer" in text


def test_an_exception_names_its_line(call: Call, broken: Callable[..., list[str]]) -> None:
    code, text = call(*broken("own_raises", "step.obs[99]"))
    assert code == 1 and "env=own_raises: IndexError: " in text and "own_raises.py, line 13)" in text, text
    assert "Traceback" not in text


def test_without_a_choice_the_command_says_what_to_type(call: Call) -> None:
    code, text = call("seed=1")
    assert (code, text) == (2, "error: Nothing to check. Choose env=NAME, mixer=NAME, algorithm=NAME, e.g. env=lbf.\n")
    code, text = call("env=meting")
    assert code == 2 and "env=meting is unknown. Did you mean 'meeting'?" in text, text
