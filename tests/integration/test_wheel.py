"""The package as it is installed from a wheel: in an environment of its own, in a folder without the checkout."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("env=matrix", "train=quick", "train.total_steps=2000", "train.evaluation.every=1000", "device=cpu")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel; the libraries it needs are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    paths = sysconfig.get_paths(vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    # Listed in a .pth file, a folder's own .pth files do not count, so that the editable installation there stays out.
    Path(paths["purelib"], "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


def call(installed: Path, folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_an_installed_wheel_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert "0.2.0" in call(installed, tmp_path, "qllm-exp", "--version")
    assert "level-based foraging" in call(installed, tmp_path, "qllm-exp", "--help").lower()
    text = call(installed, tmp_path, "qllm-exp", "-m", *SMALL, "mixer=tfcaf,vdn", "sweep.name=s")
    assert "runs/s/table.md" in text
    assert "tfcaf" in call(installed, tmp_path, "qllm-exp", "results", "table", "runs/s")
    assert "2 finished" in call(installed, tmp_path, "qllm-exp", "status", "runs/s")
    assert "bundled" in call(installed, tmp_path, "qllm-exp", "tfcaf", "list", f"tfcaf.cache={tmp_path / 'cache'}")
    code = "import qllm_exp; print(qllm_exp.__file__, len(qllm_exp.load_runs('runs/s')))"
    where, runs = call(installed, tmp_path, "python", "-c", code).split()[:2]
    assert Path(where).is_relative_to(installed.parent) and runs == "2"


def test_a_wheel_puts_no_package_into_the_environment_that_others_have(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u; print([name for name in ('launch', 'conf', 'tests', 'docs') if u.find_spec(name)])"
    )
    assert call(installed, tmp_path, "python", "-c", code).strip() == "[]"
