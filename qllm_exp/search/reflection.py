"""What the coder is told about the trainings of a function: figures from its runs, as text.

The texts are the templates search_*.txt of generation/prompts. `tfcaf.search.reflection` switches each part off.

Shapes: T steps of an episode, n agents, S columns of the state.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from qllm_exp.config.schema import RunConfig
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.base import TeamEnv
from qllm_exp.explain.attribution import dependence
from qllm_exp.explain.policy import load_algorithm
from qllm_exp.explain.watch_episode import PlayedEpisode, credit, credit_share, play_evaluation
from qllm_exp.generation.prompt_rendering import Prompts, fill, wrap
from qllm_exp.mixers.base import Mixer
from qllm_exp.mixers.tfcaf import Tfcaf
from qllm_exp.runs.metrics import read_rows
from qllm_exp.search.archive import BASELINES, PLAIN_SUM, Archive, Member, stage_returns
from qllm_exp.search.search_directory import Row, SearchDirectory
from qllm_exp.training.trainer import LOG_EVERY
from qllm_exp.utils.text import count

BASELINE_NAMES = {PLAIN_SUM: "the plain sum (VDN)", "qmix": "QMIX"}
_EPISODES = 32
_PARTS = 5  # of an episode
_STATES = 256  # states for the dependence on the state
_NO_EFFECT = 1e-6  # credit


class Reflection:
    """Writes the requests of a search.

    Args:
        run: the configuration of the search.
        prompts: the prompts of the task.
        directory: the directory of the search.
        env: the task; episodes are played in it.
        enforce: whether the IGM gate is on.
    """

    def __init__(
        self, run: RunConfig, prompts: Prompts, directory: SearchDirectory, env: TeamEnv, enforce: bool
    ) -> None:
        self._run, self._prompts, self._directory = run, prompts, directory
        self._env, self._enforce = env, enforce
        self._parts = run.tfcaf.search.reflection
        self._facts: dict[str, str] = {}

    def request(self, parents: Sequence[Member], archive: Archive) -> str:
        """Return the request for a function that improves others; that of a first function if there are none.

        Args:
            parents: the functions to show, the one to improve first.
            archive: all functions of the search.
        """
        if not parents:
            return self._prompts.coder_request
        texts = []
        for number, parent in enumerate(parents, start=1):
            source = self._directory.function(parent.key).source.strip()
            title = f"Function {number} (generation {parent.generation}{', constants tuned' if parent.tuned else ''})"
            texts.append(fill("search_parent", title=title, source=source, facts=self._facts_of(parent)).strip())
        return fill(
            "search_request",
            n_parents="The function" if len(parents) == 1 else f"The {len(parents)} functions",
            were="was" if len(parents) == 1 else "were",
            parents="\n\n".join(texts),
            comparison=self._comparison(archive.best),
            first="it" if len(parents) == 1 else "function 1",
            env=self._run.env.name,
            task=self._run.env.task,
        )

    def _comparison(self, best: Member) -> str:
        """Return a line with the best return of the search and those of the baselines, if requests have returns."""
        if not self._parts.returns:
            return "The returns of the trainings are not part of these figures."
        stage, value = best.score
        steps = self._run.tfcaf.search.steps[stage]
        line = f"The best return of the search so far is {value:.3f}, after {steps:,} steps"
        if value == -math.inf:
            line = f"Every function of the search so far has diverged within {steps:,} steps"
        baselines = [
            f"{BASELINE_NAMES[name]} {returns[stage]:.3f}"
            for name in BASELINES
            if stage in (returns := stage_returns(self._directory.rows, name))
        ]
        return f"{line} (with the same steps and seeds: {', '.join(baselines)})." if baselines else f"{line}."

    def _facts_of(self, member: Member) -> str:
        """Return all that is known of the trainings of a function. A function that is drawn twice is played once."""
        if member.key not in self._facts:
            parts = [text.strip() for text in self._texts(member) if text]
            self._facts[member.key] = "\n\n".join(parts) or "Nothing is told about its training."
        return self._facts[member.key]

    def _texts(self, member: Member) -> list[str]:
        """Return the parts of the text about a function; '' for a part without content."""
        stage, _ = member.score
        rows = self._directory.of_kind("training", stage=stage)
        own = [row for row in rows if row["function"] == member.key]
        finished = [row for row in own if row["return"] is not None]
        texts = [self._returns(rows, member.key, stage) if self._parts.returns else ""]
        if len(finished) < len(own):
            texts.append(
                f"{len(own) - len(finished)} of {count(len(own), 'training')} diverged: values grew beyond all bounds."
            )
        function = self._directory.function(member.key)
        if finished:
            texts += self._played(function, finished[0]["run"])
        if self._parts.remarks and function.verdict:
            texts.append(wrap(fill("search_remarks", remarks=function.verdict)))
        return texts

    def _returns(self, rows: Sequence[Row], key: str, stage: int) -> str:
        """Return the learning curves of a function and of the baselines in a stage."""
        search = self._run.tfcaf.search
        names = {key: "this function"} | (BASELINE_NAMES if self._parts.baselines else {})
        lines = []
        for function, name in names.items():
            curves = [row["curve"] for row in rows if row["function"] == function and row["curve"]]
            if curves:
                means = [fmean(values) for values in zip(*curves, strict=True)]
                lines.append(f"  {name:<20}{'  '.join(f'{mean:.3f}' for mean in means)}")
        own = [row for row in rows if row["function"] == key and row["curve"]]
        different = min((row.get("evaluations", len(row["curve"])) for row in own), default=0)
        if own and different < len(own[0]["curve"]):
            lines.append(
                f"  (A rollout is longer than a tenth of this training, so that neighbours can be one evaluation: {different} are "
                "different.)"
            )
        seeds = count(search.seeds[stage], "seed")
        return (
            fill("search_returns", steps=f"{search.steps[stage]:,}", seeds=seeds, curves="\n".join(lines))
            if lines
            else ""
        )

    def _played(self, function: StoredFunction, run: str) -> list[str]:
        """Return the parts that need the trained team or its metrics.

        Args:
            function: the function.
            run: name of the run directory of its training.
        """
        directory, parts = self._directory.run(run), self._parts
        algorithm = load_algorithm(directory.path, self._env, "last")
        mixer = algorithm.mixer
        assert isinstance(mixer, Tfcaf)
        played = play_evaluation(self._env, algorithm, 0, _EPISODES)
        states = torch.cat([episode.episode.states[:-1] for episode in played])
        qs = torch.cat([episode.qs for episode in played if episode.qs is not None])
        spread = torch.linspace(0, len(states) - 1, min(_STATES, len(states))).long()
        train = self._run.train
        texts = [
            _q_tot(played, mixer, train.gamma, train.standardise_rewards) if parts.q_tot else "",
            _credit(played) if parts.credit else "",
        ]
        if parts.columns and len(spread) > 1:
            texts.append(self._fields_without_effect(mixer, states[spread], qs[spread]))
        if parts.gradients:
            rows: Any = read_rows(directory.metrics, "training")
            norms = [float(row["grad_norm"]) for row in rows if "grad_norm" in row]
            texts.append(_gradients(norms, train.grad_norm_clip))
        if parts.gate and mixer.affine and self._enforce:
            weights, _ = function.program.weights_and_bias(states)
            shares = (weights < -_NO_EFFECT).float().mean(0).tolist()
            listed = ", ".join(f"agent {agent} {100 * share:.1f}" for agent, share in enumerate(shares))
            texts.append(wrap(fill("search_gate", shares=listed)))
        return texts

    def _fields_without_effect(self, mixer: Mixer, states: Tensor, qs: Tensor) -> str:
        """Return the fields of the state that the credit of no agent depends on; '' if there are none.

        Args:
            mixer: the trained function.
            states: [M, S] states of the trained team.
            qs: [M, n] individual Qs in these states, at which the credit of a function that is not affine is taken.
        """

        def credit_in(states: Tensor) -> Tensor:
            return credit(mixer, qs, states)

        rows = dependence(credit_in, self._env.layout, states, draws=2, curves=0).by_grouping("field")
        fields = [row.label for row in rows if max(row.by_agent) <= _NO_EFFECT]
        return wrap(fill("search_columns", fields=", ".join(sorted(fields)))) if fields else ""


def _q_tot(played: Sequence[PlayedEpisode], mixer: Mixer, gamma: float, standardised: bool) -> str:
    """Return Q_tot against the discounted return that followed, over all steps and by parts of an episode.

    Args:
        played: episodes of the trained team.
        mixer: the trained function.
        gamma: discount factor.
        standardised: whether Q_tot was learned from standardised rewards.
    """
    label = "Q_tot (of standardised rewards)" if standardised else "Q_tot"
    values, returns = [], []
    for episode in played:
        assert episode.qs is not None
        with torch.no_grad():
            values.append(mixer(episode.qs, episode.episode.states[:-1]))
        returns.append(_returns_to_go(episode.episode.rewards, gamma))
    all_values, all_returns = torch.cat(values), torch.cat(returns)
    correlation = (
        float(torch.corrcoef(torch.stack([all_values, all_returns]))[0, 1]) if len(all_values) > 1 else math.nan
    )
    lines = [
        f"  {name:<34}{'  '.join(f'{value:8.3f}' for value in _by_parts(series))}"
        for name, series in ((label, values), ("return that followed", returns))
    ]
    return fill(
        "search_q_tot",
        correlation="not defined, since one of them is constant" if math.isnan(correlation) else f"{correlation:.2f}",
        n_steps=f"{len(all_values):,}",
        rows="\n".join(lines),
    )


def _returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum [T] of the rewards [T] from each step on."""
    total, sums = 0.0, []
    for reward in reversed(rewards.tolist()):
        total = reward + gamma * total
        sums.append(total)
    return torch.tensor(sums[::-1])


def _credit(played: Sequence[PlayedEpisode]) -> str:
    """Return each agent's share of the credit by parts of an episode, and the entropy of the shares."""
    shares = [credit_share(episode.credit).abs() for episode in played if episode.credit is not None]
    if not shares:
        return ""
    n = shares[0].shape[1]
    entropies = [-(share * share.clamp(min=1e-12).log()).sum(1) / math.log(max(n, 2)) for share in shares]
    lines = [
        f"  agent {agent:<12}{'  '.join(f'{100 * value:6.1f}' for value in _by_parts([share[:, agent] for share in shares]))}"
        for agent in range(n)
    ]
    lines.append(f"  {'entropy':<18}{'  '.join(f'{value:6.2f}' for value in _by_parts(entropies))}")
    return fill("search_credit", rows="\n".join(lines))


def _by_parts(series: Sequence[Tensor]) -> list[float]:
    """Return the mean of values [T] over all episodes in each fifth of an episode; short episodes leave some out."""
    parts: list[list[float]] = [[] for _ in range(_PARTS)]
    for values in series:
        ends = [round(len(values) * part / _PARTS) for part in range(_PARTS + 1)]
        for part, (start, stop) in enumerate(pairwise(ends)):
            parts[part] += values[start:stop].tolist()
    return [fmean(part) if part else math.nan for part in parts]


def _gradients(norms: Sequence[float], clip: float) -> str:
    """Return the norm of the gradient in training, early, late and at most; '' if there was no update.

    Args:
        norms: means over the updates between two rows of metrics.
        clip: the norm at which gradients are clipped.
    """
    if not norms:
        return ""
    third = max(1, len(norms) // 3)
    early, late = f"{fmean(norms[:third]):.3g}", f"{fmean(norms[-third:]):.3g}"
    largest = f"{max(norms):.3g} (the largest mean over about {LOG_EVERY:,} environment steps)"
    return fill("search_gradients", clip=f"{clip:g}", early=early, late=late, largest=largest)
