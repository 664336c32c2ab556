"""The command `python -m qllm_exp.sweep.slurm_submit FOLDER`: submit an array of jobs to Slurm, with submitit.

It runs in a process and a session of its own, so that a submission that has begun also ends, whatever happens to the sweep.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import submitit

from qllm_exp.errors import UserError
from qllm_exp.runs.slurm_queue import read_packs, squeue
from qllm_exp.sweep.slurm_task import Pack

PARAMETERS = "submission.json"  # written by `Slurm`: submitit's parameters of a job, and arguments of its Pack
# Environment variables, by the start of their names, that Slurm sets for jobs and their steps (OUTPUT ENVIRONMENT VARIABLES of
# sbatch(1), salloc(1) and srun(1), spank(7), and its PMI plugins). A job would take those of the allocation in which it is
# submitted for its own: SLURM_CPU_BIND, for example, binds its steps to cores that it may not have.
_SET_FOR_JOBS = (
    *("SLURM_", "SLURMD_", "SRUN_", "_SLURM_", "SPANK_", "PMI_", "PMIX_"),
    *("SBATCH_CPU_BIND", "SBATCH_MEM_BIND"),
)
# Those that Slurm's commands need to reach the cluster, or that a user or a site sets.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_DEBUG_FLAGS", "PMIX_MCA_")
# Those of Slurm's GPU plugins (gres.conf); a user may set them too, outside of an allocation.
_GPUS_OF_JOB = (
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
    *("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"),
)
# For sbatch, an environment variable outweighs the submission file. These options are part of every file.
_SET_BY_SUBMISSION = (
    *("SBATCH_ARRAY_INX", "SBATCH_OUTPUT", "SBATCH_ERROR", "SBATCH_OPEN_MODE", "SBATCH_SIGNAL", "SBATCH_TIMELIMIT"),
    *("SBATCH_NO_REQUEUE", "SBATCH_WAIT"),
)
_MEMORY = ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU")  # sbatch accepts one of these options


def main(arguments: list[str]) -> int:
    """Submit an array, and print its job id.

    Args:
        arguments: the folder of the submission.

    Returns:
        Exit code: 0 submitted, 1 rejected, with Slurm's message on standard error.
    """
    folder = Path(arguments[0])
    submission = json.loads((folder / PARAMETERS).read_text())
    executor = submitit.SlurmExecutor(folder, max_num_timeout=submission["max_timeouts"], python=submission["python"])
    sweep = str(folder.parent.parent)
    packs = [Pack(sweep, runs, **submission["pack"]) for runs in read_packs(folder)]
    parameters = submission["parameters"]

    def read_job_id(output: str | bytes) -> str:
        return job_id(output if isinstance(output, str) else output.decode(errors="replace"), parameters["job_name"])

    # submitit creates the executor of an array itself, so a subclass would not do. mypy has no type for a replaced static method.
    submitit.SlurmExecutor._get_job_id_from_submission_command = staticmethod(read_job_id)  # type: ignore
    try:
        executor.update_parameters(**parameters)
        with executor.batch():
            jobs = [executor.submit(pack) for pack in packs]
    except (UserError, RuntimeError, subprocess.SubprocessError, OSError, ValueError) as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    print(jobs[0].job_id.partition("_")[0])
    return 0


def job_environment(variables: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that jobs inherit from the submitting process.

    Without those that Slurm has set for a job around that process, and without the defaults of sbatch's options that the
    submission sets.

    Args:
        variables: environment variables of the submitting process.
        parameters: submitit's parameters of the jobs.
    """
    options = [*parameters, *parameters.get("additional_parameters", {})]
    dropped = {*_SET_BY_SUBMISSION, *(f"SBATCH_{option.upper().replace('-', '_')}" for option in options)}
    dropped |= {*_MEMORY} if "mem" in parameters else set()
    dropped |= {*_GPUS_OF_JOB} if "SLURM_JOB_ID" in variables else set()
    return {
        name: value
        for name, value in variables.items()
        if name not in dropped and (name.startswith(_KEPT) or not name.startswith(_SET_FOR_JOBS))
    }


def job_id(output: str, job_name: str) -> str:
    """Return the id of the job that sbatch has submitted.

    sbatch prints 'Submitted batch job 12', perhaps with ' on cluster NAME', and with --parsable '12' or '12;NAME'. Sites wrap
    it in scripts that add lines of their own. If the output does not tell, Slurm is asked for the job.

    Args:
        output: standard output of sbatch.
        job_name: name of the job, unique to this submission.

    Raises:
        UserError: neither sbatch nor squeue names the job.
    """
    submitted = re.findall(r"\bSubmitted batch job (\d+)\b", output)
    numbers = re.findall(r"^\s*(\d+)(?:;\S+)?\s*$", output, re.MULTILINE)
    if submitted or len(numbers) == 1:
        return str((submitted or numbers)[-1])
    queued = [line.strip() for line in squeue("--name", job_name, "--states", "all", "--format", "%F") if line.strip()]
    if not queued:
        printed = " ".join(output.split())[:200]
        raise UserError(f"sbatch printed {printed!r} instead of a job number, and squeue lists no job named {job_name}")
    return queued[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
