"""The public Python API: what `import qllm_exp` offers.

    runs = qllm_exp.load_runs("runs/baselines")        # a DataFrame, one row per run
    qllm_exp.table("runs/baselines")                   # the comparison, as the command prints it
    policy = qllm_exp.load_policy(runs.path[0])        # a trained team, to be played with

A *source* is the directory of a run, of a sweep, or of many of either; `wandb://ENTITY/PROJECT[/SWEEP]`; an archive; or results of
another program: a marl-eval .json file, a folder of Sacred, a .csv file, or a .yaml mapping file.
"""

from qllm_exp.api.figures import plot_ablation, plot_bars, plot_curves, plot_improvement, plot_profiles
from qllm_exp.api.functions import assign_credit, generate, load_function, plot_credit, verify
from qllm_exp.api.results import ablation, compare, export, load_curves, load_runs, table
from qllm_exp.api.runs import compose, run, run_sweep
from qllm_exp.api.teams import load_policy, make_env, play
from qllm_exp.errors import RunFailed, UserError

__all__ = [
    "RunFailed",
    "UserError",
    "ablation",
    "assign_credit",
    "compare",
    "compose",
    "export",
    "generate",
    "load_curves",
    "load_function",
    "load_policy",
    "load_runs",
    "make_env",
    "play",
    "plot_ablation",
    "plot_bars",
    "plot_credit",
    "plot_curves",
    "plot_improvement",
    "plot_profiles",
    "run",
    "run_sweep",
    "table",
    "verify",
]
