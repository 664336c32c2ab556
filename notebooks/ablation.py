# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablations
#
# What is the effect of one setting if everything else is equal? Any option in `conf/` can be the axis of an ablation: a number of
# the training, an option of a mixer, or a step of the procedure by which a language model writes a credit-assignment function.
# This notebook has two ablations on a penalty game: two agents are paid for their joint action, 25 times per episode.

# %%
# %matplotlib inline
from pathlib import Path

import qllm_exp

print(qllm_exp.make_env("matrix", "penalty-100").task.reward)

# %% [markdown]
# There are two best joint actions, (0, 2) and (2, 0), worth 250 per episode. If the agents aim at different ones, the team loses
# 100 at each step. The action in the middle is safe, and worth 50 per episode.
#
# ## A number of the training: the learning rate
#
# An ablation is a sweep with one more list.

# %%
SETTINGS = [
    "env=matrix",
    "env.task=penalty-100",
    "seed=0-3",
    "train=quick",
    "train.total_steps=12000",
    "train.evaluation.every=4000",
    "train.hidden=32",
    "algorithm.epsilon_steps=6000",
]
qllm_exp.run_sweep(
    [*SETTINGS, "mixer=tfcaf,qmix", "train.learning_rate=5e-4,5e-3", "sweep.name=ablation_learning_rate"]
).groupby(["method", "train.learning_rate"]).final_return.describe()

# %% [markdown]
# `ablation` shows the *difference to the default value* beside each return, with the interval of that difference. This is the
# number to read: the intervals of two returns may overlap although the difference is clear.

# %%
qllm_exp.ablation("runs/ablation_learning_rate", axis="train.learning_rate")

# %% [markdown]
# The same differences as a figure:

# %%
qllm_exp.plot_ablation("runs/ablation_learning_rate", axis="train.learning_rate")

# %% [markdown]
# With so few steps the default learning rate is too small for either mixer. With the larger one, every seed of the written
# function learns a best joint action, and every seed of QMIX the safe one.
#
# ## A step of the procedure: rounds of coder and evaluator
#
# In QLLM a language model improves its function in rounds, with a sentence of advice between them. Are the rounds worth their
# cost? With an online model this is one more list:
#
#     qllm-exp -m experiment=ablation_rounds llm=deepseek --dry-run
#
# This notebook calls no model. With `llm=folder`, prompts are written to files and answers are read from files, so *you* are the
# model. This demonstrates the procedure and says nothing about any language model. Your first answer is the mean of the agents' Qs,
# which is VDN. After the advice, your second function lowers the team's value where the agents' Qs disagree.

# %%
ANSWERS = {
    "round-1-coder-1": """
```python
import torch

def credit_assignment(agents_q, global_state):
    return agents_q.mean(dim=1, keepdim=True)
```
""",
    "round-2-advice": "Lower the value of the team where the agents' values disagree.",
    "round-2-coder-1": """
```python
import torch

def credit_assignment(agents_q, global_state):
    gap = agents_q[:, 0:1] - agents_q[:, 1:2]
    disagreement = torch.sqrt(gap * gap + 1.0) - 1.0
    return agents_q.mean(dim=1, keepdim=True) - 2.0 * disagreement
```
""",
}
MODEL = ["llm=folder", "llm.path=runs/answers", "tfcaf.candidates=1", "tfcaf.cache=runs/functions"]

# %% [markdown]
# `generate` returns the function of a configuration, and generates it if it is not stored yet. The error for a missing answer
# names its file, which is beside that of the prompt. Here you could call a model of your own.

# %%
TWO_ROUNDS = ["env=matrix", "env.task=penalty-100", "tfcaf.rounds=2", *MODEL]
for call, answer in ANSWERS.items():
    try:
        qllm_exp.generate(TWO_ROUNDS)
    except qllm_exp.UserError as error:
        print(error, end="\n\n")
        (prompt,) = Path("runs/answers").glob(f"{call}-*.prompt.txt")
        prompt.with_name(prompt.name.replace("prompt", "answer")).write_text(answer)
function = qllm_exp.generate(TWO_ROUNDS)
print(f"{len(function.transcript)} calls: {function.verdict}")

# %% [markdown]
# Now the sweep. It first generates the function of one round, whose only answer is already there.

# %%
qllm_exp.run_sweep(
    [*SETTINGS, "mixer=tfcaf", "train.learning_rate=5e-3", "tfcaf.rounds=1,2", *MODEL, "sweep.name=ablation_rounds"]
)
qllm_exp.ablation("runs/ablation_rounds", axis="tfcaf.rounds")

# %% [markdown]
# (No run has the package's default, three rounds, so another value takes its place; the notes say so.) Could the difference be
# chance? Eight runs can be divided into four and four in 70 ways, so p cannot be smaller than 2 / 70:

# %%
qllm_exp.compare("runs/ablation_rounds", by="tfcaf.rounds").round(3)

# %% [markdown]
# For a statement about a language model, four seeds of *one* function are one observation. With `tfcaf.sample=0-4` the model
# writes five functions for each number of rounds, and the table counts functions. `experiment=ablation_rounds` does this.
#
# On the command line: `qllm-exp results ablation FOLDER --axis KEY`, with several `--axis` for combinations.
# Next: `reading_a_tfcaf.py`.
