"""Pictures and tables of a credit-assignment function, for a paper: what it gives to whom, when, and because of what.

credit.png, .pdf          credit per agent along an episode, beside rewards, actions, events and the scene
dependence.png, .pdf      importance of the state's fields for each agent's credit, and curves of the leading fields
dependence.md, .csv       the same importances as tables
summary.md                the function, where it comes from, its weights, and what the pictures show
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.base import TeamEnv
from qllm_exp.explain.attribution import Dependence, credits, dependence
from qllm_exp.explain.episodes import Act, Episode, play, random_policy, visited
from qllm_exp.explain.figures import FONTS, credit_figure, dependence_figure

if TYPE_CHECKING:  # drawing is imported when something is drawn
    from matplotlib.figure import Figure

STATES = 512  # of the task, over which dependence and weights are measured
_SEARCH_STEPS = 5_000  # of episodes that are played until the rewards of one are not all the same


@dataclass(frozen=True)
class _Seen:
    """What the pictures of a function show. q: [M, n], one for each of the states [M, S]."""

    episode: Episode
    states: Tensor
    affine: bool
    q: Tensor
    generator: torch.Generator
    title: str
    over: str


def picture(entry: StoredFunction, env: TeamEnv, enforce: bool, act: Act | None = None, seed: int = 0) -> "Figure":
    """The figure of credit.png alone. Parameters, and what is raised, as `explain`."""
    seen = _look(entry, env, enforce, act, seed)
    return credit_figure(entry, env, seen.episode, seen.affine, enforce, seen.generator, seen.title)


def explain(
    entry: StoredFunction, env: TeamEnv, folder: Path, enforce: bool, act: Act | None = None, seed: int = 0
) -> list[Path]:
    """Write the files that the module names into `folder` and return their paths.

    The episode shown is the `telling_episode`. Dependence is measured over 512 states of further episodes. `env` is left as
    if it had not been used.

    Args:
        entry: the function. env: its task; the first copy's episode is shown, all copies give states.
        enforce: whether the IGM gate is on.
        act: the policy, see episodes.Act; None: uniformly random actions.
        seed: of the environment, the random policy and the draws.

    Raises:
        UserError: the function is for other sizes, or the gate is on and it is not affine in q.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph that it puts into a PDF
    from matplotlib import rc_context

    seen = _look(entry, env, enforce, act, seed)
    episode, states, affine = seen.episode, seen.states, seen.affine
    folder.mkdir(parents=True, exist_ok=True)

    def credit(rows: Tensor) -> Tensor:
        return credits(entry, affine, enforce, rows, seen.q)

    depends = dependence(credit, env.layout, states, seed)
    paths = []
    with rc_context(FONTS):
        for name, figure in (
            ("credit", credit_figure(entry, env, episode, affine, enforce, seen.generator, seen.title)),
            ("dependence", dependence_figure(depends, env.n_agents, seen.over)),
        ):
            paths += [folder / f"{name}.png", folder / f"{name}.pdf"]
            figure.savefig(paths[-2], dpi=200)
            figure.savefig(paths[-1], metadata={"CreationDate": None})
    ungated = credits(entry, affine, False, states, seen.q).cpu()
    texts = {
        "dependence.md": _dependence_text(depends) + "\n" + depends.markdown(),
        "dependence.csv": depends.csv(),
        "summary.md": _summary(entry, seen.title, affine, enforce, credit(states).cpu(), ungated, depends, episode),
    }
    for name, text in texts.items():
        paths.append(folder / name)
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def _look(entry: StoredFunction, env: TeamEnv, enforce: bool, act: Act | None, seed: int) -> _Seen:
    """Play the episode that is shown, and visit the states; `env` is left as if it had not been used."""
    entry.check_fits(env)
    policy = act if act is not None else random_policy(seed, env.device)
    saved = env.state_dict()
    env.seed(seed)
    episode, number = telling_episode(env, policy)
    states = visited(env, policy, STATES)
    env.load_state_dict(saved)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(len(states), env.n_agents, generator=generator).to(env.device)
    who = "a given policy" if act is not None else "uniformly random actions"
    gate = "on" if enforce else "off"
    task = f"{env.task.env} / {env.task.task}: {who}"
    return _Seen(
        *(episode, states, entry.program.affine(states), q, generator),
        title=f"{task}, episode {number} of seed {seed}; IGM gate {gate}",
        over=f"{task}, {len(states)} states; IGM gate {gate}",
    )


def telling_episode(env: TeamEnv, act: Act) -> tuple[Episode, int]:
    """The first episode whose rewards are not all the same, or the last where none is within 5000 steps; and its number, from 1."""
    number = steps = 0
    while True:
        episode = play(env, act, env.episode_limit)
        number, steps = number + 1, steps + len(episode.rewards)
        if float(episode.rewards.amax()) > float(episode.rewards.amin()) or steps >= _SEARCH_STEPS:
            return episode, number


def _dependence_text(depends: Dependence) -> str:
    return (
        f"Importance of the state for each agent's credit dQ_tot/dQ_i: the mean absolute change of credit, in units of "
        f"credit (1 is equal credit), when the fields take their values from another state of the task; over "
        f"{depends.n_states} states. First all fields of a kind of entity together, then each field.\n"
    )


def _summary(
    entry: StoredFunction,
    title: str,
    affine: bool,
    enforce: bool,
    credit: Tensor,
    ungated: Tensor,
    depends: Dependence,
    episode: Episode,
) -> str:
    """Markdown. credit, ungated: [M, n] with the gate as set and with it off."""
    n = credit.shape[1]
    weights, total = credit / n, credit.sum(1) / n
    low, high = float(total.amin()), float(total.amax())
    negative = 100 * (ungated < 0).float().mean(0)
    muted = "muted by the IGM gate" if enforce else "negative (the IGM gate is off)"
    facts = {
        "made for": f"{entry.env} / {entry.task}",
        "file": entry.path.name if entry.path else "",
        **entry.provenance,
        "verdict": entry.verdict,
        "prompt hash": entry.prompt_hash,
        "program hash": entry.program.hash,
    }
    lines = [f"# Credit assignment: {title}", ""]
    lines += [f"- {name}: {' '.join(value.split())}" for name, value in facts.items() if value]
    lines += ["", f"The function is {'affine' if affine else 'not affine'} in the agents' Qs."]
    if not affine:
        lines.append(
            "Its credit depends on q. In credit.png the line is the credit at q = 0 and the band holds 10 % to 90 % of it "
            "over q of independent standard normal numbers; all tables are at such a q for each state."
        )
    lines += [
        f"Weights (credit / n) over {len(credit)} states: {float(weights.amin()):.4f} to {float(weights.amax()):.4f}.",
        "Sum of weights: "
        + ("1 in every state." if max(1 - low, high - 1) < 1e-3 else f"not always 1, from {low:.4f} to {high:.4f}."),
        f"Share of agents {muted}: {float(negative.mean()):.1f} %.",
        f"Episode shown: {len(episode.rewards)} steps, {episode.ended}, return {float(episode.rewards.sum()):.4g}. Letters "
        "mark the steps whose scenes are below the lines: circles are agents, larger with more credit, with their way in "
        "the last 5 steps; below each scene every agent's action and credit.",
        "",
        f"| agent | lowest weight | mean | highest | {muted} | depends most on |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for agent in range(n):
        leading = sorted(depends.of("field"), key=lambda row: -row.by_agent[agent])[:3]
        top = ", ".join(f"{row.label} ({row.by_agent[agent]:.3f})" for row in leading if row.by_agent[agent] > 0)
        own = weights[:, agent]
        figures = f"{own.amin():.4f} | {own.mean():.4f} | {own.amax():.4f} | {negative[agent]:.1f} %"
        lines.append(f"| {agent} | {figures} | {top or 'nothing'} |")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", entry.source)), default=0))
    return "\n".join([*lines, "", f"{fence}python", entry.source.strip(), fence, ""])
