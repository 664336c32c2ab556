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
# and how much of a difference three seeds can show at all.
#
# **Your own runs.** Set `RUNS` to your folders: runs, sweeps, or folders that hold many of either, copied from several
# machines if need be. The default is a sweep that this notebook makes itself, in under a minute; nothing can be concluded
# about the methods from such short runs, and the figures will say so.

# %%
# %matplotlib inline
from pathlib import Path

from qllm_exp.results.figures import across_tasks, per_task
from qllm_exp.results.records import keys
from qllm_exp.results.records.collect import collect
from qllm_exp.results.statistics.comparison import difference
from qllm_exp.results.tables.sheet import notes_on_missing
from qllm_exp.results.tables.table import comparison
from qllm_exp.utils.notebook import shell

# %%
RUNS = ["runs/baseline_comparison"]

# %%
if RUNS == ["runs/baseline_comparison"]:
    shell("""python -m qllm_exp -m env=lbf,mpe mixer=tfcaf,qmix,vdn seed=0-2 sweep.name=baseline_comparison
             train=quick train.total_steps=8000 train.evaluation.every=2000 train.evaluation.absolute_episodes=32
             train.hidden=32 train.batch_episodes=16 env.num_envs=32 algorithm.epsilon_steps=4000""")

# %% [markdown]
# ## Collecting
#
# Runs are known by their folders' names, so the folders of several machines merge. What is not finished is not forgotten: it is
# counted here and named below every table and figure.

# %%
runs = collect(map(Path, RUNS))
records, missing = runs.finished, notes_on_missing(runs)
print(runs.counts())
print("methods:", ", ".join(keys.methods(records)))
print("tasks:  ", ", ".join(keys.tasks(records)))
unequal = [key for key in keys.differing_keys(records) if key.startswith(("train.", "algorithm."))]
print("settings of the training that differ:", ", ".join(unequal) or "none")

# %% [markdown]
# The last line is worth a look: in a comparison of mixers nothing else should differ. A baseline that was run with another
# learning rate shows up there (and would be a method of its own in what follows).
#
# ## Task by task

# %%
comparison(runs)[0]

# %%
per_task.curves(records, missing=missing)

# %%
per_task.bars(records, missing=missing)

# %% [markdown]
# ## Over all tasks
#
# Returns of different tasks have different scales, so scores are normalised first: by the known bounds of a task where there
# are any (no food and all food in foraging), else by the lowest and highest return among these runs. The second kind orders
# the methods at hand and compares with no other paper; the notes say which kind was used.
#
# The *interquartile mean* (IQM) is the mean of the middle half of all runs: less at the mercy of one lucky seed than the
# mean, and less wasteful than the median (Agarwal et al. 2021). Its interval is a stratified bootstrap, runs within tasks.

# %%
comparison(runs, rows=(), stat="iqm")[0]

# %%
across_tasks.aggregated_curves(records, missing=missing)

# %% [markdown]
# A *performance profile* shows the whole distribution instead of one figure: the share of runs with a score above τ. A
# curve that is higher everywhere is better everywhere; curves that cross say that the answer depends on what one asks for.

# %%
across_tasks.profiles(records, missing=missing)

# %% [markdown]
# The *probability of improvement* asks another question: how likely is a run of X to beat a run of Y on a task drawn at
# random? It says how often, not by how much.

# %%
across_tasks.improvement(records, missing=missing)

# %% [markdown]
# ## What the intervals say, and what they do not
#
# The differences between two methods, in normalised score, with three answers to "is it chance?":

# %%
scores = across_tasks.shared_tasks(records).scores("final")
first, *others = keys.methods(records)
for other in others:
    found = difference(scores[first], scores[other])
    print(f"{first} - {other}: {found.bootstrap.value:+.3f}, fewest seeds of a task: {found.bootstrap.runs}")
    print(f"    bootstrap 95 %:   [{found.bootstrap.low:+.3f}, {found.bootstrap.high:+.3f}]")
    print(f"    Welch 95 %:       [{found.welch_low:+.3f}, {found.welch_high:+.3f}]")
    print(f"    permutation test: p = {found.p:.3f} (with so few runs never below {found.p_smallest:.3f})")

# %% [markdown]
# - An interval is over *seeds*: what would happen if the same settings were trained again. It says nothing about other
#   tasks, other hyper-parameters or longer training.
# - The bootstrap interval of a mean of three seeds, called 95 %, holds the true mean in about 74 % of cases, with five in
#   84 %, with ten in 89 % (`qllm_exp/results/statistics/aggregate.py`): it errs towards claiming too much. Welch's interval
#   holds for few runs, at the price of being wide.
# - The permutation test cannot give a small p with few runs, however large the difference: with three against three on one
#   task never below 0.1.
# - Overlapping intervals do not mean that there is no difference; look at the interval *of the difference*.
# - With a written function there is one more source of chance: the function. Seeds of one function say how well *that
#   function* trains. For a statement about the language model, sample several (`tfcaf.sample=0-4`); tables then count
#   functions, each as the mean over its seeds.
#
# On the command line: `python -m qllm_exp.results table | curves | profiles | improvement | bars FOLDER ...`
# Next: `ablation.py`.
