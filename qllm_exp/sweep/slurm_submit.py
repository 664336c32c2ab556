"""`python -m qllm_exp.sweep.slurm_submit FOLDER`: hand a submission to Slurm, through submitit.

A process of its own, in a session of its own: once it has begun, it is not stopped by whatever happens to the one that asked.
"""

import json
import subprocess
import sys
from pathlib import Path

import submitit

from qllm_exp.runs.slurm_queue import packs_of
from qllm_exp.sweep.slurm_task import Pack

PARAMETERS = "submission.json"  # what `Slurm` writes for this: submitit's parameters, and the arguments of a pack


def main(arguments: list[str]) -> int:
    """Submit, and print the job's number. Exit code 1, with Slurm's words, when it is refused."""
    folder = Path(arguments[0])
    given = json.loads((folder / PARAMETERS).read_text())
    executor = submitit.SlurmExecutor(folder, max_num_timeout=given["max_timeouts"], python=given["python"])
    packs = [Pack(str(folder.parent.parent), runs, **given["pack"]) for runs in packs_of(folder)]
    try:
        executor.update_parameters(**given["parameters"])
        with executor.batch():
            jobs = [executor.submit(pack) for pack in packs]
    except (submitit.core.utils.FailedJobError, subprocess.SubprocessError, OSError, ValueError) as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    print(jobs[0].job_id.partition("_")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
