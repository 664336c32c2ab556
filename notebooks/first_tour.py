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
# Two agents play the *climbing game* 25 times in an episode: each picks one of three actions, and the team is paid for the joint
# action. The best one is guarded by penalties, so that whoever tries it while the other still explores is punished. A mixer
# that is monotonic in the agents' Qs (VDN, QMIX) cannot represent such a payoff. A *credit-assignment function* written by a
# language model (a TFCAF) may, since it may subtract something for disagreement.
#
# This notebook trains all three, reads what the runs left behind, and compares them. It takes about half a minute.

# %%
# %matplotlib inline
import json
from pathlib import Path

import matplotlib.pyplot as plt

from qllm_exp.config.compose import compose_run
from qllm_exp.envs import make_env
from qllm_exp.envs.matrix import PAYOFFS
from qllm_exp.errors import UserError
from qllm_exp.explain.episodes import play
from qllm_exp.explain.policy import load_policy
from qllm_exp.results.figures.per_task import curves
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.table import comparison
from qllm_exp.runs.metrics import read_rows
from qllm_exp.utils.notebook import shell

print("payoff[action of agent 0][action of agent 1]", *PAYOFFS["climbing"], sep="\n")

# %% [markdown]
# ## What is a run?
#
# *Environment, algorithm, mixer, language model, training preset, seed*: a few words on a command line choose them, and
# `conf/` gives every other value. `compose_run` makes of such words what the command makes of them, without running it.

# %%
run = compose_run(["env=matrix", "env.task=climbing", "mixer=qmix", "train=quick"])
print(run.env)
print(run.mixer)
print(run.train)

# %% [markdown]
# Everything is checked before anything starts, and a misspelt word is refused with the nearest right one.

# %%
try:
    compose_run(["env=matrix", "mixer=qmix", "train.learning_rat=0.001"])
except UserError as error:
    print(error)

# %% [markdown]
# ## Nine runs with one command
#
# `-m` multiplies the lists out: three mixers by three seeds. `shell` runs the command as you would type it in a terminal.
# The budget is tiny so that you need not wait; `train=fair`, the default, is for results.

# %%
SWEEP = """python -m qllm_exp -m env=matrix env.task=climbing mixer=tfcaf,qmix,vdn seed=0-2 sweep.name=first_tour
           train=quick train.total_steps=12000 train.evaluation.every=2000 train.hidden=32 algorithm.epsilon_steps=6000"""
shell(SWEEP)

# %% [markdown]
# A run's folder is named by what defines it, so no command runs anything twice. With a fourth seed, nine of the twelve runs
# would be there already (`--dry-run` plans and stops):

# %%
shell(f"{SWEEP} seed=0-3 --dry-run")

# %% [markdown]
# ## What a run leaves behind
#
# Everything that follows is made from such folders alone: copy them from a cluster and go on here.

# %%
sweep = collect([Path("runs/first_tour")])
print(sweep.counts())
qmix = next(one for one in sweep.finished if one.method == "qmix" and one.seed == 2)
for file in sorted(qmix.path.iterdir()):
    print(f"{file.stat().st_size:8,} bytes  {file.name}")

# %%
print(json.dumps(json.loads((qmix.path / "result.json").read_text()), indent=1))

# %% [markdown]
# `metrics.jsonl` has a row per evaluation (greedy episodes at fixed environment steps, the same for every run) and rows of
# figures from training.

# %%
evaluations = read_rows(qmix.path / "metrics.jsonl", "evaluation")
training = read_rows(qmix.path / "metrics.jsonl", "training")
print(json.dumps(evaluations[-1]))
print(json.dumps(training[-1]))

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot([row["env_step"] for row in evaluations], [row["return_mean"] for row in evaluations], "o-")
axis.set(xlabel="environment steps", ylabel="evaluation return", title="qmix, seed 2")
plt.show()

# %% [markdown]
# ## The comparison
#
# A cell is `mean [95 % interval] (n seeds)`. The notes below a table say its rules, and what is missing from it.

# %%
table, _ = comparison(sweep)
table

# %% [markdown]
# The learning curves show what the table does not. At step 0 the networks are untrained, and for equal seeds they are the same
# whatever the mixer; by chance, some of them play (0, 0) already. QMIX and VDN *leave* it for (2, 2): while the team
# explores, -30 comes up often, and a monotonic mixer can only lower the value of action 0 as a whole.

# %%
curves(sweep.finished)

# %% [markdown]
# This is also why one metric is not enough. The *absolute* metric evaluates the best parameters of each run once more, on
# more episodes. Here it rewards QMIX and VDN for networks that had not learnt anything yet:

# %%
comparison(sweep, metric="absolute")[0]

# %% [markdown]
# ## What did the team learn?
#
# `load_policy` gives the trained team, to be played with. A greedy episode of seed 2 of each method, with the last parameters:

# %%
env = make_env(run.env, num_envs=1, seed=0)
for one in sweep.finished:
    if one.seed == 2:
        episode = play(env, load_policy(one.path, env, "last"), env.episode_limit)
        joint = sorted({tuple(actions) for actions in episode.actions.tolist()})
        print(f"{one.method:6} return {float(episode.rewards.sum()):6.1f}, joint actions {joint}")

# %% [markdown]
# The same table and figure on the command line: `python -m qllm_exp.results table runs/first_tour` and `... curves ...`.
# Next: `baseline_comparison.py`, on several tasks at once and on how sure one can be.
