# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparing methods over several tasks
#
# A written credit-assignment function (`tfcaf`), QMIX and VDN on two tasks: tables, learning curves, aggregates over tasks,
# and what three seeds can show about a difference.
#
# **Your own runs.** Set `RUNS` to your directories: runs, sweeps, or folders with many of either, also copied from several
# machines. The default is a sweep that this notebook trains, in under a minute. Such short runs allow no conclusion about the
# methods, and the figures will say so.

# %%
# %matplotlib inline
import pandas as pd

import qllm_exp

# %%
RUNS = ["runs/baseline_comparison"]

# %%
if RUNS == ["runs/baseline_comparison"]:
    qllm_exp.run_sweep(
        [
            "env=lbf,mpe",
            "mixer=tfcaf,qmix,vdn",
            "seed=0-2",
            "train=quick",
            "train.total_steps=8000",
            "train.evaluation.every=2000",
            "train.evaluation.absolute_episodes=32",
            "train.hidden=32",
            "train.batch_episodes=16",
            "env.num_envs=32",
            "algorithm.epsilon_steps=4000",
            "sweep.name=baseline_comparison",
        ]
    )

# %% [markdown]
# ## The runs
#
# A run is identified by the name of its directory, so directories from several machines can be merged. Runs that are not
# finished are counted here, and named below every table and figure.

# %%
runs = qllm_exp.load_runs(*RUNS)
pd.crosstab([runs.env, runs.task, runs.state], runs.method)

# %% [markdown]
# In a comparison of mixers nothing else should differ. A baseline that was trained with another learning rate shows up here,
# and is a method of its own in what follows.

# %%
settings = runs[runs.state == "finished"].filter(regex=r"^(train|algorithm)\.").astype(str)
differing = settings.columns[settings.nunique() > 1].tolist()
print("training settings that differ:", ", ".join(differing) or "none")

# %% [markdown]
# ## Each task

# %%
qllm_exp.table(*RUNS)

# %%
qllm_exp.plot_curves(*RUNS)

# %%
qllm_exp.plot_bars(*RUNS)

# %% [markdown]
# ## All tasks
#
# Returns of different tasks have different scales, so they are normalised first: by the known bounds of a task if there
# are any (no food and all food in foraging), else by the lowest and highest return among these runs. The second kind ranks
# these methods, but cannot be compared with numbers from elsewhere. The notes name the bounds of each task.
#
# The *interquartile mean* (IQM) is the mean of the middle half of all runs. A single lucky seed affects it less than the mean, and
# it uses more of the runs than the median (Agarwal et al. 2021). Its interval is a stratified bootstrap: runs are resampled
# within tasks.

# %%
qllm_exp.table(*RUNS, rows=(), stat="iqm")

# %%
qllm_exp.plot_curves(*RUNS, normalise=True)

# %% [markdown]
# A *performance profile* shows the whole distribution instead of one number: the share of runs with a score above τ. A
# curve that is higher everywhere is better everywhere. If curves cross, the ranking depends on the score that matters to you.

# %%
qllm_exp.plot_profiles(*RUNS)

# %% [markdown]
# The *probability of improvement* is the probability that a run of X scores higher than a run of Y on a random task. It states
# how often X is better, not by how much.

# %%
qllm_exp.plot_improvement(*RUNS)

# %% [markdown]
# ## How certain is a difference?
#
# `compare` returns the difference between each two methods, in normalised score, with two intervals and the p-value of a
# permutation test:

# %%
qllm_exp.compare(*RUNS).round(3)

# %% [markdown]
# - An interval is over *seeds*: it is about training the same settings again. It says nothing about other tasks, other
#   hyper-parameters or longer training.
# - The 95 % bootstrap interval of a mean contains the true mean in about 74 % of cases with three seeds, 84 % with five and
#   89 % with ten (`qllm_exp/results/statistics/aggregate.py`): it claims too much. Welch's interval also holds for few runs, but
#   is wide.
# - With few runs the permutation test cannot give a small p, however large the difference: with three runs against three on one
#   task, never below 0.1. The smallest possible value is `smallest_p`.
# - Overlapping intervals do not mean that there is no difference. Look at the interval *of the difference*.
# - A written function adds another source of randomness: the function itself. Seeds of one function tell how well *that
#   function* trains. A statement about the language model needs several functions (`tfcaf.sample=0-4`); tables then count
#   functions, each as the mean over its seeds.
#
# On the command line: `qllm-exp results table`, `curves`, `bars`, `profiles` and `improvement`, each with `RUN_FOLDER ...`
# Next: `ablation.py`.
