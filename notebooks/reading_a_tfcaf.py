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
# A TFCAF (training-free credit-assignment function) is data: Python source for reading, a tensor program that training runs, and
# where both come from. `Q_tot = n f(q, s)`, with `f` written by a language model and never trained. This notebook takes one
# apart: what it says, what it does, to whom it gives credit when; and ends with a function of your own.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from matplotlib import rc_context

from qllm_exp.config.compose import compose_run
from qllm_exp.credit import stored_function
from qllm_exp.credit.refused import Refused
from qllm_exp.envs import make_env
from qllm_exp.explain.attribution import credits, curve, dependence
from qllm_exp.explain.episodes import random_policy, visited_states
from qllm_exp.explain.explain import informative_episode
from qllm_exp.explain.figures import FONTS, credit_figure
from qllm_exp.generation.prompt_rendering import state_table
from qllm_exp.generation.provide import igm_enforced, import_function
from qllm_exp.generation.verify import verify_all
from qllm_exp.mixers.tfcaf import make_from_function

# %% [markdown]
# ## The source and where it comes from
#
# One function ships with the package for every default task. This is that of level-based foraging. For one that your own model
# wrote, give `stored_function.load` the run's `tfcaf.json`.

# %%
function = stored_function.load(stored_function.bundled_path("lbf", "8x8-2p-2f-coop-2s"))
print({**function.provenance, **function.cost})
print(function.verdict)
Markdown(f"```python\n{function.source}\n```")

# %% [markdown]
# The transcript has every call. The model gives its reasons before its code; those of the candidate that was chosen:

# %%
for row in function.transcript:
    print(f"{row['call']}: {row['outcome']}")
chosen = next(row for row in function.transcript if function.source.strip() in row["answer"])
Markdown("> " + chosen["answer"].partition("```")[0].strip().replace("\n", "\n> "))

# %% [markdown]
# ## The state it reads
#
# The columns of the global state are named once, by the environment. The prompt, the verifier and the figures below all use these
# names.

# %%
run = compose_run(["env=lbf", "mixer=tfcaf"])
env = make_env(run.env, num_envs=8, seed=0)
print(state_table(env.layout))

# %% [markdown]
# ## Q_tot by hand
#
# The mixer of a run is the function with the IGM gate, which keeps every agent's contribution non-negative where the task
# asks for it. Take the first state of an episode, and let the two agents' Qs vary:

# %%
mixer = make_from_function(function, "auto", env)
state = env.reset().state[0]
line = torch.linspace(-1, 1, 21)
q = torch.cartesian_prod(line, line)  # [441, 2]
q_tot = mixer(q[None], state.expand(1, len(q), -1))[0]

figure, axis = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
lines = axis.contourf(line, line, q_tot.view(21, 21).T, levels=15)
figure.colorbar(lines, label="Q_tot")
axis.set(xlabel="Q of agent 0", ylabel="Q of agent 1", title=f"affine in q: {mixer.affine}, gate on: {mixer.enforce}")
plt.show()

# %% [markdown]
# The lines are straight: in a given state this function is a weighted sum, and the state sets the weights. An agent's *credit* is
# the gradient of Q_tot in its Q. By autograd, and by the package's `credits`:

# %%
mine = torch.zeros(1, 1, 2, requires_grad=True)
(gradient,) = torch.autograd.grad(mixer(mine, state[None, None]).sum(), mine)
print("by autograd:", gradient[0, 0].tolist())
print("by credits: ", credits(function, mixer.affine, mixer.enforce, state[None])[0].tolist())

# %% [markdown]
# Equal credit, which is VDN, is 1 for each agent.
#
# ## What does the credit depend on?
#
# Over states that a random team meets: swap a field of the state with its value in another state, and see how much the credit
# changes (permutation importance, in units of credit).

# %%
states = visited_states(env, random_policy(0, env.device), 256)


def credit(rows: torch.Tensor) -> torch.Tensor:
    """Credit [M, n] in states [M, S]."""
    return credits(function, mixer.affine, mixer.enforce, rows)


depends = dependence(credit, env.layout, states)
Markdown(depends.markdown())

# %% [markdown]
# And the mean credit as one column is moved over the values that it takes, all else being as it was:

# %%
moved = curve(credit, env.layout.find("agent", "position", 0), 0, states)
figure, axis = plt.subplots(figsize=(4.2, 3), layout="constrained")
for agent in range(env.n_agents):
    axis.plot(moved.values, moved.credit[:, agent], "o-", label=f"agent {agent}")
axis.set(xlabel=moved.label, ylabel="mean credit")
axis.legend()
plt.show()

# %% [markdown]
# ## Credit along an episode
#
# The first episode of a random team in which something is paid. For a trained team, put
# `load_policy(Path("runs/..."), env)` of `qllm_exp.explain.policy` in the place of `random_policy`.

# %%
env.seed(2)
episode, number = informative_episode(env, random_policy(2, env.device))
print(f"episode {number}: return {float(episode.rewards.sum()):g} in {len(episode.rewards)} steps")
generator = torch.Generator().manual_seed(0)
title = f"{run.env.task}, uniformly random actions, episode {number} of seed 2"
with rc_context(FONTS):
    figure = credit_figure(function, env, episode, mixer.affine, mixer.enforce, generator, title)
figure

# %% [markdown]
# `python -m qllm_exp.tfcaf explain lbf/8x8-2p-2f-coop-2s` writes these pictures, tables and a summary into a folder.
#
# ## A function of your own
#
# It is text, as a language model's is, and goes the same way: read by an allow-list, run only in a child process with limits and
# without network, turned into a tensor program, and probed on states of the task. Never `exec` such a text yourself: what it
# says it does is not what it may do.

# %%
HEAD = "import torch\n\ndef credit_assignment(agents_q, global_state):\n"
NEARER = (
    HEAD
    + """
    agents = torch.stack([global_state[:, 0:2], global_state[:, 3:5]], dim=1)
    foods = torch.stack([global_state[:, 6:8], global_state[:, 9:11]], dim=1)
    steps = (agents.unsqueeze(2) - foods.unsqueeze(1)).abs().sum(dim=3)
    weights = torch.softmax(-0.3 * steps.amin(dim=2), dim=1)
    return (weights * agents_q).sum(dim=1, keepdim=True)
"""
)
OTHERS = {
    "one value for the batch": HEAD + "    return agents_q.mean().reshape(1, 1)\n",
    "a weight that explodes": HEAD + "    return (agents_q / (global_state[:, 0:1] - 3)).sum(dim=1, keepdim=True)\n",
    "one agent only": HEAD + "    return agents_q[:, 0:1]\n",
    "no weighted sum": HEAD + "    return agents_q.amin(dim=1, keepdim=True)\n",
    "looks around": "import os\n\n" + HEAD + "    os.listdir('/')\n    return agents_q.mean(dim=1, keepdim=True)\n",
}
gate = igm_enforced(run, env)
nearer, *judged = verify_all([NEARER, *OTHERS.values()], env, gate)
print(f"nearer: accepted; affine: {nearer.affine}; notes: {nearer.notes}")

# %% [markdown]
# The others are refused, each with a reason that says what to write instead. In a generation this sentence goes back to the model.

# %%
for name, verdict in zip(OTHERS, judged, strict=True):
    assert isinstance(verdict, Refused)
    print(f"{name}: refused ({verdict.stage}): {verdict.reason}\n")

# %% [markdown]
# Yours beside the bundled one, along the same episode:

# %%
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
acted_in = episode.states[:-1]
for name, program, style in (("bundled", function.program, "-"), ("nearer", nearer.program, "--")):
    for agent, values in enumerate(credits(program, True, gate, acted_in).T):
        axis.plot(values, style, color=f"C{agent}", label=f"{name}, agent {agent}")
axis.set(xlabel="step", ylabel="credit")
axis.legend(fontsize=7)
plt.show()

# %% [markdown]
# To train with it, keep it as a file and name that as the mixer's function. (For a `.py` file the same is done by
# `python -m qllm_exp.tfcaf import FILE env=lbf`.)

# %%
import_function(nearer, env, "a notebook").save("runs/nearer.json")
env.close()
print("python -m qllm_exp -m env=lbf mixer=tfcaf mixer.file=runs/nearer.json seed=0-4")
