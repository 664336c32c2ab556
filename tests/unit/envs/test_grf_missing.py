"""env=grf on a machine without the football engine, or with another build of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import headless_engine
import pytest

from qllm_exp.envs.grf import env
from qllm_exp.errors import UserError

# A process in which gfootball cannot be found, whether it is installed or not.
WITHOUT_ENGINE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("gfootball", "gfootball_engine"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import pathlib
from qllm_exp.envs import env_module, make_env
from qllm_exp.errors import UserError

def message_of(call):
    try:
        call()
    except UserError as error:
        return str(error)

grf = env_module("grf")

def hint_of(module, files, prefix=sys.prefix):
    inner = sys.modules["qllm_exp.envs.grf.env"]
    inner.__file__, sys.prefix, sys.executable = module, prefix, "/usr/bin/python3"
    pathlib.Path.exists = lambda path: str(path) in files
    return inner._how_to_install()

print(json.dumps({
    "make": message_of(lambda: make_env(grf.Config(), 2, 0)),
    "check": message_of(lambda: grf.check(grf.Config())),
    "unknown": message_of(lambda: grf.check(grf.Config(task="academy_conrer"))),
    "tasks": grf.tasks(),
    "other": hint_of("/checkout/qllm_exp/envs/grf/env.py", ["/checkout/launch/install_grf.sh"]),
    "made": hint_of("/checkout/qllm_exp/envs/grf/env.py", ["/checkout/launch/install_grf.sh"], "/checkout/.venv"),
    "installed": hint_of("/lib/site-packages/qllm_exp/envs/grf/env.py", []),
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
    text = without_engine[call]
    assert text.startswith("env=grf needs the football engine, which is not installed. Type: ") and "grf" in text[-60:]


def test_what_to_type_is_there_to_be_typed(without_engine: dict[str, str]) -> None:
    assert without_engine["made"] == "Type: make grf"
    assert without_engine["other"] == "Type: /checkout/launch/install_grf.sh /usr/bin/python3"
    installed = without_engine["installed"]
    assert "make" not in installed and "download that, and in its folder type: launch/install_grf.sh" in installed


def test_an_unknown_scenario_is_refused_with_the_allowed_ones(without_engine: dict[str, str]) -> None:
    message = without_engine["unknown"]
    assert "academy_conrer" in message and "Did you mean 'academy_corner'?" in message
    assert "academy_3_vs_1_with_keeper" in message


def test_the_scenarios_are_listed_nevertheless(without_engine: dict[str, str]) -> None:
    assert len(without_engine["tasks"]) == 11
    assert {"academy_3_vs_1_with_keeper", "academy_counterattack_hard"} <= set(without_engine["tasks"])


@pytest.mark.parametrize("installed", ["2.10.2", "2.10.2+headless.1"])
def test_another_build_of_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr(env, "_gfootball_folder", lambda: Path("gfootball"))
    monkeypatch.setattr(env, "tasks", lambda: ["academy_corner"])
    monkeypatch.setattr(env, "_is_installed", lambda module: True)
    monkeypatch.setattr(env, "library_version", lambda name: installed)
    message = (
        rf"needs the football engine {re.escape(env.ENGINE_VERSION)}; {re.escape(installed)} is installed\. Type: "
    )
    with pytest.raises(UserError, match=message):
        env.check(env.Config(task="academy_corner"))


def test_the_engine_that_is_needed_is_the_one_that_is_installed_here() -> None:
    assert env.ENGINE_VERSION == headless_engine.VERSION
