# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading a written credit-assignment function
#
# A training-free credit-assignment function (TFCAF) is data: Python source for the reader, a tensor program that training runs,
# and the origin of both. It defines `Q_tot = n f(q, s)`, where a language model has written `f`, which is never trained. This
# notebook takes a function apart: its source, its Q_tot, and which agent gets credit when and why. It ends with a function of
# your own.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

import qllm_exp

# %% [markdown]
# ## The source and its origin
#
# The package has a function for every default task. This is the one for level-based foraging. For a function that your own model
# has written, pass the `tfcaf.json` of a run.

# %%
function = qllm_exp.load_function("lbf/8x8-2p-2f-coop-2s")
print({**function.provenance, **function.cost})
print(function.verdict)
Markdown(f"```python\n{function.source}\n```")

# %% [markdown]
# The transcript has every call. The model explains its code before writing it; this is the explanation of the chosen candidate:

# %%
for row in function.transcript:
    print(f"{row['call']}: {row['outcome']}")
chosen = next(row for row in function.transcript if function.source.strip() in row["answer"])
Markdown("> " + chosen["answer"].partition("```")[0].strip().replace("\n", "\n> "))

# %% [markdown]
# ## The state that it reads
#
# The environment names every column of the global state. The prompt, the verification and the figures below use these names.

# %%
env = qllm_exp.make_env("lbf")
pd.DataFrame(
    {
        "columns": f"{field.start}:{field.stop}",
        "field": field.label,
        "components": ", ".join(field.components),
        "range": f"{field.low:g} to {field.high:g} {field.unit}",
        "special values": "; ".join(f"{value:g}: {meaning}" for value, meaning in field.special.items()),
    }
    for field in env.layout
)

# %% [markdown]
# ## Q_tot in one state
#
# `function.program(q, state)` is f. Take the first state of an episode, and let the Qs of the two agents vary:

# %%
state = env.reset().state  # [1, 14]
grid = np.linspace(-1, 1, 21)
q = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)  # [441, 2]
q_tot = 2 * function.program(state.new_tensor(q), state.expand(len(q), -1))

figure, axis = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
levels = axis.contourf(grid, grid, q_tot.view(21, 21), levels=15)
figure.colorbar(levels, label="Q_tot")
axis.set(xlabel="Q of agent 0", ylabel="Q of agent 1")
plt.show()

# %% [markdown]
# The lines are straight and equally spaced: in a given state this function is a weighted sum, and the state determines the weights.
# The *credit* of an agent is the derivative of Q_tot with respect to its Q, here by autograd and by `assign_credit`:

# %%
q = state.new_zeros(1, 2).requires_grad_()
(2 * function.program(q, state)).backward()
print("autograd:     ", q.grad[0].tolist())
print("assign_credit:", qllm_exp.assign_credit(function, env, state).iloc[0].tolist())

# %% [markdown]
# Equal credit, as in VDN, is 1 for each agent. In training, the *IGM gate* of the mixer sets negative credit to 0, so that the best
# joint action consists of each agent's best action. `assign_credit` does so as well; here no credit is negative.
#
# ## What does the credit depend on?
#
# Replace a field of the state by its value in another state, and measure how much the credit changes (permutation
# importance, in units of credit). The states are those of twelve episodes with random actions.

# %%
steps = qllm_exp.play(env, episodes=12)
states = steps.iloc[:, -env.state_dim :]
credit = qllm_exp.assign_credit(function, env, states)

importance = {}
for field in env.layout:
    permuted = states.copy()
    permuted.iloc[:, field.columns] = states.iloc[:, field.columns].sample(frac=1, random_state=0).to_numpy()
    importance[field.label] = (qllm_exp.assign_credit(function, env, permuted) - credit).abs().mean()
pd.DataFrame(importance).T.sort_values("agent 0", ascending=False).round(4)

# %% [markdown]
# And the mean credit if one column has the same value in all states, and the other columns stay as they are:

# %%
column = "agent 0 position x"
mean_credit = pd.DataFrame(
    {x: qllm_exp.assign_credit(function, env, states.assign(**{column: x})).mean() for x in range(8)}
).T
mean_credit.plot(style="o-", xlabel=f"{column} (cells)", ylabel="mean credit", figsize=(4.2, 3))
plt.show()

# %% [markdown]
# ## Credit along an episode
#
# Random actions rarely collect food; in these episodes they do so once. `plot_credit` plays the same episodes and shows the first
# one with a reward. To see a trained team, pass the result of `load_policy` as `policy`.

# %%
returns = steps.groupby("episode").reward.sum()
print(returns[returns > 0])
qllm_exp.plot_credit(function, env)

# %% [markdown]
# `qllm-exp tfcaf explain lbf/8x8-2p-2f-coop-2s --output FOLDER` writes this figure, one of the importances, tables and a summary.
#
# ## A function of your own
#
# The source of a function is text, whether you or a language model has written it, and `verify` treats both in the same way. An
# allow-list checks the source. It runs only in a child process with limits and without network, which turns it into a tensor
# program. The program is probed on states of the task. Never `exec` such a text yourself: it may do something else than it claims.

# %%
HEAD = "import torch\n\ndef credit_assignment(agents_q, global_state):\n"
NEARER = (
    HEAD
    + """
    agents = torch.stack([global_state[:, 0:2], global_state[:, 3:5]], dim=1)
    foods = torch.stack([global_state[:, 6:8], global_state[:, 9:11]], dim=1)
    distances = (agents.unsqueeze(2) - foods.unsqueeze(1)).abs().sum(dim=3)
    weights = torch.softmax(-0.3 * distances.amin(dim=2), dim=1)
    return (weights * agents_q).sum(dim=1, keepdim=True)
"""
)
nearer = qllm_exp.verify(NEARER, env)

# %% [markdown]
# The agent nearer to food gets more credit. This function is accepted. Others are refused, with a reason that says what to
# write instead. During a generation, this message goes back to the language model.

# %%
REFUSED = {
    "only one agent gets credit": HEAD + "    return agents_q[:, 0:1]\n",
    "not a weighted sum": HEAD + "    return agents_q.amin(dim=1, keepdim=True)\n",
    "lists files": "import os\n\n" + HEAD + "    os.listdir('/')\n    return agents_q.mean(dim=1, keepdim=True)\n",
}
for name, source in REFUSED.items():
    try:
        qllm_exp.verify(source, env)
    except qllm_exp.UserError as error:
        print(f"{name}: {error}\n")

# %% [markdown]
# Your function beside the bundled one, along the episode above:

# %%
episode = steps[steps.episode == returns.idxmax()].set_index("step")
axis = qllm_exp.assign_credit(function, env, episode).add_prefix("bundled, ").plot(figsize=(7, 3), color=["C0", "C1"])
qllm_exp.assign_credit(nearer, env, episode).add_prefix("nearer, ").plot(ax=axis, style="--", color=["C0", "C1"])
axis.set_ylabel("credit")
axis.legend(fontsize=7)
plt.show()

# %% [markdown]
# To train with your function, write it to a file and pass that file as the mixer's function. (For a Python file,
# `qllm-exp tfcaf import FILE env=lbf` does the same.)

# %%
nearer.save("runs/nearer.json")
print("qllm-exp -m env=lbf mixer=tfcaf mixer.file=runs/nearer.json seed=0-4")
