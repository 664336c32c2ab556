"""env=grf on a machine without the football engine."""

import json
import subprocess
import sys

import pytest

# A process in which gfootball cannot be found, whether it is installed or not.
WITHOUT_ENGINE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("gfootball", "gfootball_engine"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from qllm_exp.envs import env_module, make_env
from qllm_exp.errors import UserError

def message_of(call):
    try:
        call()
    except UserError as error:
        return str(error)

grf = env_module("grf")
print(json.dumps({
    "make": message_of(lambda: make_env(grf.Config(), 2, 0)),
    "check": message_of(lambda: grf.check(grf.Config())),
    "unknown": message_of(lambda: grf.check(grf.Config(task="academy_conrer"))),
    "tasks": grf.tasks(),
}))
"""


@pytest.fixture(scope="module")
def without_engine() -> dict[str, str]:
    process = subprocess.run([sys.executable, "-c", WITHOUT_ENGINE], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    results: dict[str, str] = json.loads(process.stdout)
    return results


@pytest.mark.parametrize("call", ["make", "check"])
def test_the_error_says_what_to_type(without_engine: dict[str, str], call: str) -> None:
    assert without_engine[call] == "env=grf needs the football engine, which is not installed. Type: make grf"


def test_an_unknown_scenario_is_refused_with_the_allowed_ones(without_engine: dict[str, str]) -> None:
    message = without_engine["unknown"]
    assert "academy_conrer" in message and "Did you mean 'academy_corner'?" in message
    assert "academy_3_vs_1_with_keeper" in message


def test_the_scenarios_are_listed_nevertheless(without_engine: dict[str, str]) -> None:
    assert len(without_engine["tasks"]) == 11
    assert {"academy_3_vs_1_with_keeper", "academy_counterattack_hard"} <= set(without_engine["tasks"])
