"""A real one-node Slurm, for the tests that need one."""

import os
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "launch" / "slurm_local.sh"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory, worker_id):
    """Start Slurm, and return the environment variables of its clients. With four CPUs, several jobs run at a time anywhere."""
    folder = tmp_path_factory.mktemp("slurm")
    port = 17000 + 10 * int(worker_id.removeprefix("gw") if worker_id.startswith("gw") else 99)
    environment = os.environ | {"SLURM_LOCAL_PORT": str(port), "SLURM_LOCAL_CPUS": "4"}
    subprocess.run([TOOL, "start", folder], env=environment, check=True, timeout=60)
    yield {"SLURM_CONF": f"{folder}/slurm.conf"}
    subprocess.run([TOOL, "stop", folder], env=environment, check=True, timeout=120)
