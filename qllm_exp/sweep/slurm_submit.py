"""The command `python -m qllm_exp.sweep.slurm_submit FOLDER`: submit an array of jobs to Slurm, with submitit.

It runs in a process and a session of its own, so that a submission that has begun also ends, whatever happens to the sweep.
"""

import json
import subprocess
import sys
from pathlib import Path

import submitit

from qllm_exp.runs.slurm_queue import read_packs
from qllm_exp.sweep.slurm_task import Pack

PARAMETERS = "submission.json"  # written by `Slurm`: submitit's parameters of a job, and arguments of its Pack


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
    try:
        executor.update_parameters(**submission["parameters"])
        with executor.batch():
            jobs = [executor.submit(pack) for pack in packs]
    except (submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError, ValueError) as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    print(jobs[0].job_id.partition("_")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
