# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First tour: from nothing to a comparison
#
# In the *climbing game*, each of two agents chooses one of three actions, 25 times per episode, and the joint action decides the
# reward of the team. The best joint action is next to penalties: an agent that plays its part while the other one still explores
# is punished. A monotonic mixer (VDN, QMIX) cannot represent such payoffs. A *credit-assignment function* written by a language
# model (a TFCAF) can: it may lower the team's value where the agents' Qs disagree.
#
# This notebook trains all three mixers, reads the run directories, and compares the mixers. It takes about half a minute.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

import qllm_exp

env = qllm_exp.make_env("matrix", "climbing")
print(env.task.reward)

# %% [markdown]
# ## The configuration of a run
#
# A run is defined by *environment, algorithm, mixer, language model, training preset and seed*. Overrides choose them, and the
# YAML files in `conf/` have the default of every other option. `compose` returns the configuration and starts nothing.

# %%
config = qllm_exp.compose(["env=matrix", "env.task=climbing", "mixer=qmix", "train=quick"])
print(config.env)
print(config.mixer)
print(config.train)

# %% [markdown]
# Everything is checked before anything starts. The error for a misspelt option names the closest one.

# %%
try:
    qllm_exp.compose(["env=matrix", "mixer=qmix", "train.learning_rat=0.001"])
except qllm_exp.UserError as error:
    print(error)

# %% [markdown]
# ## A sweep of nine runs
#
# A list or a range of values makes a sweep: three mixers times three seeds. On the command line this is
# `qllm-exp -m env=matrix mixer=tfcaf,qmix,vdn seed=0-2 ...`. The budget is tiny, so that you need not wait; results need
# `train=fair`, the default.

# %%
SWEEP = [
    "env=matrix",
    "env.task=climbing",
    "mixer=tfcaf,qmix,vdn",
    "train=quick",
    "train.total_steps=12000",
    "train.evaluation.every=2000",
    "train.hidden=32",
    "algorithm.epsilon_steps=6000",
    "sweep.name=first_tour",
]
runs = qllm_exp.run_sweep([*SWEEP, "seed=0-2"])
runs[["method", "seed", "state", "final_return", "absolute_return"]]

# %% [markdown]
# The name of a run directory contains a hash of the configuration, so no run is trained twice. The same sweep with a fourth seed
# trains three more runs:

# %%
runs = qllm_exp.run_sweep([*SWEEP, "seed=0-3"])

# %% [markdown]
# ## A run directory
#
# Everything that follows is made from run directories alone. You can copy them from a cluster and continue here.

# %%
run = runs[(runs.method == "qmix") & (runs.seed == 2)].iloc[0]
for file in sorted(run.path.iterdir()):
    print(f"{file.stat().st_size:8,} bytes  {file.name}")

# %%
print((run.path / "result.json").read_text())

# %% [markdown]
# `metrics.jsonl` has a row per evaluation (greedy episodes, at the same environment steps in every run) and rows with training
# metrics.

# %%
qllm_exp.load_curves(run.path, kind="training").T

# %%
evaluations = qllm_exp.load_curves(run.path)
axis = evaluations.plot("env_step", "return_mean", style="o-", legend=False, figsize=(5, 3), title="qmix, seed 2")
axis.set(xlabel="environment steps", ylabel="evaluation return")
plt.show()

# %% [markdown]
# ## The comparison
#
# A cell is `mean [95 % interval] (n seeds)`. The notes below a table state its rules, and which runs are missing.

# %%
qllm_exp.table("runs/first_tour")

# %% [markdown]
# The learning curves show what the table does not. At step 0 the networks are untrained, and networks with equal seeds are equal
# whatever the mixer. By chance, some of them already play the best joint action, (0, 0). QMIX and VDN *leave* it for (2, 2): while
# the team explores, the penalty of -30 is frequent, and a monotonic mixer can only lower the value of action 0 as a whole.

# %%
qllm_exp.plot_curves("runs/first_tour")

# %% [markdown]
# This is also why one metric is not enough. The *absolute* metric evaluates the best parameters of each run once more, on
# more episodes. Here it rewards QMIX and VDN for networks that had not learned anything yet:

# %%
qllm_exp.table("runs/first_tour", metric="absolute")

# %% [markdown]
# ## What has the team learned?
#
# `load_policy` returns the trained team, and `play` returns a row per step of its episodes. Here each method with seed 2 plays
# one greedy episode, with its last parameters:

# %%
for run in runs[runs.seed == 2].itertuples():
    steps = qllm_exp.play(env, qllm_exp.load_policy(run.path, env, "last"))
    joint_actions = steps[["action_0", "action_1"]].drop_duplicates().to_numpy().tolist()
    print(f"{run.method:6} return {steps.reward.sum():6.1f}, joint actions {joint_actions}")

# %% [markdown]
# The same table and figure on the command line: `qllm-exp results table runs/first_tour` and
# `qllm-exp results curves runs/first_tour`.
# Next: `baseline_comparison.py`, on several tasks at once and on how certain a difference is.
