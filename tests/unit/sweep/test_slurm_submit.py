"""Submission of an array: the environment that jobs inherit, and the job number in what sbatch prints."""

import os
from pathlib import Path

import pytest

from qllm_exp.errors import UserError
from qllm_exp.sweep.slurm import Slurm
from qllm_exp.sweep.slurm_submit import job_environment, job_id

PARAMETERS = Slurm()._job_parameters("sweep.ab12", 1)

# Set for a shell that `srun --pty` starts (Slurm 22.05, with task/affinity, a GPU and PMIx), and what newer versions add.
OF_A_STEP = """
SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE SLURM_MEM_BIND SLURM_MEM_BIND_TYPE SBATCH_CPU_BIND
SBATCH_MEM_BIND SBATCH_MEM_BIND_TYPE SLURM_CLUSTER_NAME SLURM_CPUS_ON_NODE SLURM_CPUS_PER_TASK SLURM_DISTRIBUTION SLURM_EXPORT_ENV
SLURM_GPUS SLURM_GPUS_ON_NODE SLURM_GTIDS SLURM_HINT SLURM_JOBID SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES SLURM_LOCALID
SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_NNODES SLURM_NTASKS SLURM_NTASKS_PER_NODE SLURM_OVERLAP SLURM_PROCID SLURM_STEP_ID
SLURM_STEP_NODELIST SLURM_STEP_RESV_PORTS SLURM_TASKS_PER_NODE SLURM_TRES_PER_TASK SLURM_UMASK SLURM_WORKING_CLUSTER SLURMD_NODENAME
SLURM_ARRAY_TASK_ID SLURM_SPANK__SLURM_SPANK_OPTION_pyxis_container_image _SLURM_SPANK_OPTION_x11spank_force SPANK_X SRUN_DEBUG
SRUN_CPUS_PER_TASK PMI_FD PMI_RANK PMI_SIZE PMIX_RANK PMIX_NAMESPACE PMIX_SERVER_URI21 CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES
CUDA_MPS_ACTIVE_THREAD_PERCENTAGE CUDA_MPS_PIPE_DIRECTORY
"""
OF_THE_USER = """
PATH HOME PYTHONPATH TMPDIR OMP_NUM_THREADS SLURM_CONF SLURM_CLUSTERS SLURM_JWT PMIX_MCA_psec SBATCH_ACCOUNT SBATCH_PARTITION
SBATCH_RESERVATION SBATCH_EXPORT SQUEUE_FORMAT MYSLURM_DIR
"""


def test_jobs_inherit_nothing_that_slurm_set_for_the_job_around_the_submission() -> None:
    variables = dict.fromkeys((OF_A_STEP + OF_THE_USER).split(), "1")
    assert sorted(job_environment(variables, PARAMETERS)) == sorted(OF_THE_USER.split())


def test_gpus_that_the_user_chose_outside_of_an_allocation_are_kept() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25"}
    assert job_environment(variables, PARAMETERS) == variables


def test_options_of_the_submission_outweigh_variables_of_sbatch() -> None:
    """For sbatch, a variable outweighs the submission file: the jobs would have another name, other logs or another limit."""
    names = (
        "JOB_NAME ARRAY_INX TIMELIMIT OUTPUT ERROR OPEN_MODE SIGNAL REQUEUE NO_REQUEUE MEM_PER_CPU MEM_PER_NODE WAIT"
    )
    set_by_submission = [f"SBATCH_{name}" for name in names.split()]
    own = {"SBATCH_PARTITION": "long", "SBATCH_QOS": "high", "SBATCH_MAIL_TYPE": "END"}
    assert job_environment(dict.fromkeys(set_by_submission, "1") | own, PARAMETERS) == own
    launcher = Slurm(partition="short", qos="low", sbatch={"mail-type": "FAIL"}, mem_gb_per_run=None)
    parameters = launcher._job_parameters("sweep.ab12", 1)
    variables = own | {"SBATCH_MEM_PER_CPU": "4G"}
    assert job_environment(variables, parameters) == {"SBATCH_MEM_PER_CPU": "4G"}


@pytest.mark.parametrize(
    "output",
    [
        "Submitted batch job 1234\n",
        "1234\n",
        "1234",
        "1234;cluster9\n",
        "Submitted batch job 1234 on cluster cluster9\n",
        "Checking quota of job 5 ... ok\n7 jobs of yours are queued.\nSubmitted batch job 1234\n",
        "Welcome to cluster 9\n\n1234\n",
        "-- note: 12 nodes are down\n-- job 99 waits\n1234\nthank you\n",
        "3\nSubmitted batch job 1234\n4\n",
        "sbatch: Submitted batch job 1234\r\n",
    ],
)
def test_the_job_number_in_what_sbatch_prints(output: str) -> None:
    assert job_id(output, "sweep.ab12") == "1234"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for squeue on the path, and return the file whose content it prints."""
    command, answer = tmp_path / "squeue", tmp_path / "answer"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat {answer}\n')
    command.chmod(0o755)
    answer.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return answer


@pytest.mark.parametrize("output", ["", "ok\n", "12\n13\n", "queued as number 12\n"])
def test_slurm_is_asked_where_the_output_does_not_tell(tmp_path: Path, squeue: Path, output: str) -> None:
    squeue.write_text("1234\n1234\n")  # two tasks of an array
    assert job_id(output, "sweep.ab12") == "1234"
    assert "--name sweep.ab12" in (tmp_path / "arguments").read_text()


def test_an_output_without_a_job_is_an_error_that_quotes_it(squeue: Path) -> None:
    with pytest.raises(UserError, match="sbatch printed 'try again later' instead of a job number"):
        job_id("try again\nlater\n", "sweep.ab12")
