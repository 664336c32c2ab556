"""Figures of a reflection, from episodes that are written down here."""

import math
import re

import pytest
import torch
from searches import Searches, searches
from torch import Tensor

from qllm_exp.explain.episodes import Episode
from qllm_exp.explain.watch_episode import PlayedEpisode
from qllm_exp.generation import provide
from qllm_exp.mixers.base import Mixer
from qllm_exp.mixers.vdn import Vdn
from qllm_exp.search import reflection
from qllm_exp.search.search_directory import SearchDirectory

__all__ = ["searches"]  # a fixture


def played(rewards: list[float], qs: Tensor, credit: Tensor) -> PlayedEpisode:
    steps = len(rewards)
    episode = Episode(
        torch.zeros(steps + 1, 3), torch.zeros(steps, 2, dtype=torch.int64), torch.tensor(rewards), "terminated"
    )
    return PlayedEpisode(episode, sum(rewards), qs, credit)


def numbers(text: str, label: str) -> list[float]:
    """Return the numbers after a label in a text."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return [float(number) for number in re.findall(r"-?\d+\.\d+|nan", line.strip().removeprefix(label))]


def test_q_tot_is_compared_with_the_discounted_return_that_followed() -> None:
    qs = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 4.0], [3.0, 3.0], [5.0, 3.0]])
    text = reflection._q_tot([played([0.0, 0.0, 1.0, 0.0, 2.0], qs, torch.ones(5, 2))], Vdn(), 0.5, True)
    assert numbers(text, "return that followed") == pytest.approx([0.375, 0.75, 1.5, 1.0, 2.0], abs=1e-3)
    assert numbers(text, "Q_tot (of standardised rewards)") == [1.0, 3.0, 4.0, 6.0, 8.0]
    assert (
        f"correlation {torch.corrcoef(torch.tensor([[0.375, 0.75, 1.5, 1.0, 2.0], [1.0, 3, 4, 6, 8]]))[0, 1]:.2f}"
        in text
    )
    constant = reflection._q_tot([played([0.0] * 5, qs, torch.ones(5, 2))], Vdn(), 0.5, True)
    assert "not defined, since one of them is constant" in constant
    raw = reflection._q_tot([played([0.0] * 5, qs, torch.ones(5, 2))], Vdn(), 0.5, False)
    assert "standardised" not in raw and numbers(raw, "Q_tot  ") == [1.0, 3.0, 4.0, 6.0, 8.0]


def test_shares_of_the_credit_and_their_entropy_are_means_by_fifths_of_all_episodes() -> None:
    credit = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    other = torch.ones(10, 2)
    text = reflection._credit([played([0.0] * 5, credit, credit), played([0.0] * 10, other, other)])
    assert numbers(text, "agent 0") == pytest.approx([(75 + 100) / 3, 50.0, 50.0, 50.0, (100 + 100) / 3], abs=0.05)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert numbers(text, "entropy") == pytest.approx([(entropy + 2) / 3, 1.0, 1.0, 1.0, 2 / 3], abs=0.01)


def test_an_episode_shorter_than_the_parts_leaves_some_out() -> None:
    assert reflection._by_parts([torch.tensor([1.0, 2.0])]) == pytest.approx(
        [math.nan, 1.0, math.nan, 2.0, math.nan], nan_ok=True
    )


def test_norms_of_the_gradient_are_those_of_the_first_and_the_last_third() -> None:
    text = reflection._gradients([9.0, 3.0, 30.0, 2.0, 1.0, 3.0], 10.0)
    assert (
        "before clipping at 10: 6 in the first third, 2 in the last third, at most\n30 (the largest mean over about"
        in text
    )
    assert reflection._gradients([], 10.0) == ""


class Product(Mixer):
    """Q_tot = q_0 q_1 + s_0 q_0^2: the credit depends on column 0 of the state unless q_0 is 0."""

    def forward(self, agent_qs: Tensor, state: Tensor) -> Tensor:
        return agent_qs[:, 0] * agent_qs[:, 1] + state[:, 0] * agent_qs[:, 0] ** 2


def test_fields_without_effect_are_those_at_the_qs_that_were_played(searches: Searches) -> None:
    run = searches.config()
    with provide.small_environment(run) as env:
        written = reflection.Reflection(run, provide.prompts_for(run), SearchDirectory(searches.folder), env, False)
        states = torch.arange(4.0 * env.state_dim).reshape(4, env.state_dim)
        first = next(field.label for field in env.layout if field.start == 0)
        qs = torch.tensor([[1.0, 2.0], [2.0, 0.0], [-1.0, 1.0], [3.0, 1.0]])
        assert first not in fields(written._fields_without_effect(Product(), states, qs))
        assert first in fields(written._fields_without_effect(Product(), states, torch.zeros(4, 2)))


def fields(text: str) -> list[str]:
    """Return the fields that a text lists."""
    return " ".join(text.partition(": ")[2].split()).rstrip(".").split(", ")
