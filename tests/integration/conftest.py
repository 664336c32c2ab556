"""A real one-node Slurm, for the tests that need one."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "launch" / "slurm_local.sh"


def _free_pair() -> int:
    """Return the first of two neighbouring free ports. The system chooses it, so test runs on one machine do not collide."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@pytest.fixture(scope="session")
def slurm(tmp_path_factory, worker_id):
    """Start Slurm, and return the environment variables of its clients.

    It has four CPUs, whatever the machine has, so that several jobs run at a time, and claims to have two GPUs.
    """
    folder = tmp_path_factory.mktemp("slurm")
    port = _free_pair()
    environment = os.environ | {"SLURM_LOCAL_PORT": str(port), "SLURM_LOCAL_CPUS": "4", "SLURM_LOCAL_GPUS": "2"}
    subprocess.run([TOOL, "start", folder], env=environment, check=True, timeout=60)
    yield {"SLURM_CONF": f"{folder}/slurm.conf"}
    subprocess.run([TOOL, "stop", folder], env=environment, check=True, timeout=120)
