"""What env=grf does on a machine without the football engine."""

import json
import subprocess
import sys

import pytest

# A process in which nothing of gfootball can be found, whether it is installed or not.
WITHOUT_ENGINE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("gfootball", "gfootball_engine"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from qllm_exp.envs import env_module, make_env
from qllm_exp.errors import UserError
from qllm_exp.config.schema import Grf

def error(call):
    try:
        call()
    except UserError as one:
        return str(one)

grf = env_module("grf")
print(json.dumps({
    "make": error(lambda: make_env(Grf(), 2, 0)),
    "check": error(lambda: grf.check(Grf())),
    "unknown": error(lambda: grf.check(Grf(task="academy_conrer"))),
    "tasks": grf.tasks(),
}))
"""


@pytest.fixture(scope="module")
def without_engine() -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ENGINE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("call", ["make", "check"])
def test_the_error_says_what_to_type(without_engine: dict[str, str], call: str) -> None:
    assert without_engine[call] == "env=grf needs the football engine, which is not installed. Type: make grf"


def test_an_unknown_scenario_is_named_with_those_allowed(without_engine: dict[str, str]) -> None:
    message = without_engine["unknown"]
    assert "academy_conrer" in message and "Did you mean 'academy_corner'?" in message
    assert "academy_3_vs_1_with_keeper" in message


def test_the_scenarios_are_known_all_the_same(without_engine: dict[str, str]) -> None:
    assert len(without_engine["tasks"]) == 11
    assert {"academy_3_vs_1_with_keeper", "academy_counterattack_hard"} <= set(without_engine["tasks"])
