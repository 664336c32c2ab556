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
# What does one setting do, everything else being equal? Any key of `conf/` can be an axis: a number of the training, an option
# of a mixer, or a step of the procedure by which a language model writes a credit-assignment function. This notebook has two
# of them, on a penalty game: two agents are paid for their joint action, 25 times in an episode.

# %%
# %matplotlib inline
from pathlib import Path

from qllm_exp.config.compose import compose_run
from qllm_exp.credit import stored_function
from qllm_exp.envs.matrix import PAYOFFS
from qllm_exp.errors import UserError
from qllm_exp.generation.provide import provide
from qllm_exp.results.figures.ablation_effects import effects
from qllm_exp.results.records.collect import collect
from qllm_exp.results.statistics.comparison import difference
from qllm_exp.results.tables.table import ablation
from qllm_exp.utils.notebook import shell

print("payoff[action of agent 0][action of agent 1]", *PAYOFFS["penalty-100"], sep="\n")

# %% [markdown]
# There are two best joint actions, worth 250 in an episode. An agent that aims at one while the other aims at the other costs
# the team 100 at each step; the middle action is safe, at 50 in an episode.
#
# ## A number of the training: the learning rate
#
# An ablation is a sweep with one more list in it.

# %%
SHORT = """env=matrix env.task=penalty-100 seed=0-3 train=quick train.total_steps=12000 train.evaluation.every=4000
           train.hidden=32 algorithm.epsilon_steps=6000"""

shell(f"python -m qllm_exp -m {SHORT} mixer=tfcaf,qmix train.learning_rate=5e-4,5e-3 sweep.name=ablation_learning_rate")

# %% [markdown]
# `ablation` puts the *difference to the default value* beside each figure, with an interval of that difference. That is the
# number to read: two intervals of returns may overlap though the difference is clear, and the other way round.

# %%
learning_rate, _ = ablation(collect([Path("runs/ablation_learning_rate")]), ["train.learning_rate"])
learning_rate


# %% [markdown]
# The same as a figure: the effect of each value.

# %%
effects(learning_rate)

# %% [markdown]
# With so few steps the default learning rate is too small for either mixer. With the larger one the written function finds
# a best joint action with every seed, and QMIX the safe one.
#
# ## A step of the procedure: rounds of coder and evaluator
#
# QLLM lets a language model improve its function in rounds, with a sentence of advice between them. Do the rounds pay? With a
# model that can be asked, it is one more list:
#
#     python -m qllm_exp -m experiment=ablation_rounds llm=deepseek --dry-run
#
# Here nobody is asked: with `llm=folder` prompts are written into files and answers read from files, so that *you* are the
# model. That shows the machinery and the shape of the result, and says nothing about any language model. First you answer with
# the mean of the agents' values, which is VDN; after the advice you subtract something for disagreement.

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
MODEL = "llm=folder llm.path=runs/answers tfcaf.candidates=1 tfcaf.cache=runs/functions"

# %% [markdown]
# `provide` gives the function of a run, and has it written where it is not there. As long as an answer is missing it says so,
# and the prompt lies beside the place of the answer; a call of a model of your own would go here.

# %%
run = compose_run(["env=matrix", "env.task=penalty-100", "mixer=tfcaf", "tfcaf.rounds=2", *MODEL.split()])
function = None
while function is None:
    try:
        function = stored_function.load(provide(run))
    except UserError as error:
        print(error, end="\n\n")
        for prompt in Path("runs/answers").glob("*.prompt.txt"):
            call, _, _ = prompt.name.rpartition("-")
            prompt.with_name(prompt.name.replace("prompt", "answer")).write_text(ANSWERS[call])
print(f"{len(function.transcript)} calls: {function.verdict}")

# %% [markdown]
# Now the sweep. The function of one round has yet to be written; its one answer is there.

# %%
shell(
    f"python -m qllm_exp -m {SHORT} mixer=tfcaf train.learning_rate=5e-3 {MODEL} tfcaf.rounds=1,2 sweep.name=ablation_rounds"
)

# %%
rounds, _ = ablation(collect([Path("runs/ablation_rounds")]), ["tfcaf.rounds"])
rounds

# %% [markdown]
# (The default of the package, three rounds, was not run, so that another value takes its place; the notes say so.) Is it
# chance? Eight runs can be told into four and four in 70 ways, so p cannot be smaller than 2 / 70:

# %%
one, two = (cells[0] for _, cells in rounds.rows)
print(f"permutation test: p = {difference(one.scores, two.scores).p:.3f}")

# %% [markdown]
# For a statement about a language model, four seeds of *one* function are one observation. `tfcaf.sample=0-4` has five
# functions written for each number of rounds, and the table then counts functions. Those of `experiment=ablation_rounds` are
# set up in this way.
#
# On the command line: `python -m qllm_exp.results ablation FOLDER --axis KEY`, with several `--axis` for combinations.
# Next: `reading_a_tfcaf.py`.
