"""Figures and tables of a credit-assignment function, for a paper: how much credit each agent gets, when, and why.

credit.png, .pdf          credit per agent along an episode, with rewards, actions, events and scenes
dependence.png, .pdf      importance of the state's fields for each agent's credit, and curves of the most important fields
dependence.md, .csv       the same importances as tables
summary.md                the function, its provenance, its weights, and what the figures show
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
from qllm_exp.explain.episodes import ActFunction, Episode, play, random_policy, visited_states
from qllm_exp.explain.figures import FONTS, credit_figure, dependence_figure
from qllm_exp.utils.text import inert, inert_lines

if TYPE_CHECKING:  # matplotlib is imported only when something is drawn
    from matplotlib.figure import Figure

STATES = 512  # of the task, over which dependence and weights are measured
_SEARCH_STEPS = 5_000  # steps after which the search for an episode with varying rewards ends


@dataclass(frozen=True)
class _Sample:
    """What the figures of a function show.

    Attributes:
        episode: for the credit figure.
        states: [M, S] for the dependence figure.
        affine: whether the function is affine in q.
        q: [M, n] random individual Qs, one row for each state.
        generator: of more random Qs.
        credit_title: title of the credit figure.
        dependence_title: title of the dependence figure.
    """

    episode: Episode
    states: Tensor
    affine: bool
    q: Tensor
    generator: torch.Generator
    credit_title: str
    dependence_title: str


def plot_credit(
    function: StoredFunction, env: TeamEnv, enforce: bool, act: ActFunction | None = None, seed: int = 0
) -> "Figure":
    """Return the figure of credit.png only. Arguments and errors are those of `explain`."""
    sample = _sample(function, env, enforce, act, seed)
    return credit_figure(function, env, sample.episode, sample.affine, enforce, sample.generator, sample.credit_title)


def explain(
    function: StoredFunction,
    env: TeamEnv,
    folder: Path,
    enforce: bool,
    act: ActFunction | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write the files that the module lists into `folder`.

    The episode shown is the `informative_episode`. Dependence is measured over 512 states of further episodes. The state of
    `env` is restored afterwards.

    Args:
        function: to explain.
        env: its task; the episode shown is from the first copy, the states are from all copies.
        folder: to write into; created if it does not exist.
        enforce: whether the IGM gate is on.
        act: the policy (see episodes.ActFunction); None: uniformly random actions.
        seed: of the environment, the random policy and the permutations.

    Returns:
        Paths of the files.

    Raises:
        UserError: the function is for another number of agents or columns, or the gate is on and it is not affine in q.
    """
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs every glyph that it embeds into a PDF
    from matplotlib import rc_context

    sample = _sample(function, env, enforce, act, seed)
    episode, states, affine = sample.episode, sample.states, sample.affine
    folder.mkdir(parents=True, exist_ok=True)

    def credit(rows: Tensor) -> Tensor:
        return credits(function, affine, enforce, rows, sample.q)

    measured = dependence(credit, env.layout, states, seed)
    paths = []
    with rc_context(FONTS):
        figures = {
            "credit": credit_figure(function, env, episode, affine, enforce, sample.generator, sample.credit_title),
            "dependence": dependence_figure(measured, env.n_agents, sample.dependence_title),
        }
        for name, figure in figures.items():
            png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
            figure.savefig(png, dpi=200)
            figure.savefig(pdf, metadata={"CreationDate": None})
            paths += [png, pdf]
    ungated = credits(function, affine, False, states, sample.q).cpu()
    texts = {
        "dependence.md": _dependence_text(measured) + "\n" + measured.markdown(),
        "dependence.csv": measured.csv(),
        "summary.md": _summary(
            function, sample.credit_title, affine, enforce, credit(states).cpu(), ungated, measured, episode
        ),
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _sample(function: StoredFunction, env: TeamEnv, enforce: bool, act: ActFunction | None, seed: int) -> _Sample:
    """Play the episode that is shown, and collect states; restores the state of `env`."""
    function.check_fits(env)
    policy = act if act is not None else random_policy(seed, env.device)
    saved = env.state_dict()
    env.seed(seed)
    episode, number = informative_episode(env, policy)
    states = visited_states(env, policy, STATES)
    env.load_state_dict(saved)
    function.check_values(states)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(len(states), env.n_agents, generator=generator).to(env.device)
    policy_name = "a given policy" if act is not None else "uniformly random actions"
    gate = "on" if enforce else "off"
    task = f"{env.task.env} / {env.task.task}: {policy_name}"
    return _Sample(
        episode=episode,
        states=states,
        affine=function.program.is_affine(states),
        q=q,
        generator=generator,
        credit_title=f"{task}, episode {number} of seed {seed}; IGM gate {gate}",
        dependence_title=f"{task}, {len(states)} states; IGM gate {gate}",
    )


def informative_episode(env: TeamEnv, act: ActFunction) -> tuple[Episode, int]:
    """Play until an episode has rewards that are not all equal, or until 5000 steps are played.

    Args:
        env: to play in.
        act: the policy.

    Returns:
        The last episode, and its number, from 1.
    """
    number = steps = 0
    while True:
        episode = play(env, act, env.episode_limit)
        number += 1
        steps += len(episode.rewards)
        if float(episode.rewards.amax()) > float(episode.rewards.amin()) or steps >= _SEARCH_STEPS:
            return episode, number


def _dependence_text(measured: Dependence) -> str:
    return (
        f"Importance of the state for each agent's credit dQ_tot/dQ_i: the mean absolute change of credit, in units of "
        f"credit (1 is equal credit), when the fields take their values from another state of the task; over "
        f"{measured.n_states} states. First all fields of a kind of entity together, then each field.\n"
    )


def _summary(
    function: StoredFunction,
    title: str,
    affine: bool,
    enforce: bool,
    credit: Tensor,
    ungated: Tensor,
    measured: Dependence,
    episode: Episode,
) -> str:
    """Markdown text of summary.md.

    Args:
        function: that is explained.
        title: of the credit figure.
        affine: whether the function is affine in q.
        enforce: whether the IGM gate is on.
        credit: [M, n] with the gate as set.
        ungated: [M, n] credit with the gate off.
        measured: its dependence on the state.
        episode: that is shown.
    """
    n = credit.shape[1]
    weights, total = credit / n, credit.sum(1) / n
    low, high = float(total.amin()), float(total.amax())
    negative = 100 * (ungated < 0).float().mean(0)
    muted = "muted by the IGM gate" if enforce else "negative (the IGM gate is off)"
    facts = {
        "made for": f"{function.env} / {function.task}",
        "file": function.path.name if function.path else "",
        **function.provenance,
        "verdict": function.verdict,
        "prompt hash": function.prompt_hash,
        "program hash": function.program.hash,
    }
    lines = [f"# Credit assignment: {title}", ""]
    lines += [f"- {inert(name)}: {inert(' '.join(value.split()))}" for name, value in facts.items() if value]
    lines += ["", f"The function is {'affine' if affine else 'not affine'} in the agents' Qs."]
    if not affine:
        lines.append(
            "Its credit depends on q. In credit.png the line is the credit at q = 0, and the band spans its 10 % to 90 % "
            "quantiles over independent standard normal q. All tables use one such q for each state."
        )
    sum_of_weights = f"not always 1, from {low:.4f} to {high:.4f}."
    if max(1 - low, high - 1) < 1e-3:
        sum_of_weights = "1 in every state."
    lines += [
        f"Weights (credit / n) over {len(credit)} states: {float(weights.amin()):.4f} to {float(weights.amax()):.4f}.",
        f"Sum of weights: {sum_of_weights}",
        f"Share of agents {muted}: {float(negative.mean()):.1f} %.",
        f"Episode shown: {len(episode.rewards)} steps, {episode.ended}, return {float(episode.rewards.sum()):.4g}. Letters "
        "mark the steps whose scenes are below the lines. Circles are agents, larger with more credit, with their path over "
        "the last 5 steps; below each scene are every agent's action and credit.",
        "",
        f"| agent | lowest weight | mean | highest | {muted} | depends most on |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for agent in range(n):
        leading = sorted(measured.by_grouping("field"), key=lambda row: -row.by_agent[agent])[:3]
        fields = ", ".join(f"{row.label} ({row.by_agent[agent]:.3f})" for row in leading if row.by_agent[agent] > 0)
        own = weights[:, agent]
        numbers = f"{own.amin():.4f} | {own.mean():.4f} | {own.amax():.4f} | {negative[agent]:.1f} %"
        lines.append(f"| {agent} | {numbers} | {fields or 'nothing'} |")
    source = inert_lines(function.source.strip())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
    return "\n".join([*lines, "", f"{fence}python", source, fence, ""])
