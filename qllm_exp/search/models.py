"""Which language model writes a candidate, where several are given: a bandit that counts dollars.

The value of model m, after n_m of N candidates, is that of UCB1 (Auer et al. 2002) less the price of a candidate:

    r_m + c sqrt(2 ln N / n_m) - w d_m / max d

r_m is the mean reward of its candidates. The reward of a candidate is the share of the other candidates with a lower rank, and
0 if it was refused. d_m is the mean price of its candidates, repairs included; c and w are `tfcaf.search.exploration` and
`tfcaf.search.dollar_weight`. A model without a candidate comes first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from qllm_exp.llm import Backend, CallFailed, OnAnswer, Reply, Request
from qllm_exp.search.archive import Archive
from qllm_exp.search.search_directory import Row


class Models(Backend):
    """Several language models behind one interface, so that one ledger with one budget has the calls of all.

    Args:
        backends: language models by name.
        model_of: returns the name of the model for the name of a call.
    """

    def __init__(self, backends: Mapping[str, Backend], model_of: Callable[[str], str]) -> None:
        self._backends, self._model_of = backends, model_of

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        """Send each request to its model; see `Backend.ask`."""
        return self.ask_each(requests, lambda request, answer: None)

    def ask_each(self, requests: Sequence[Request], on_answer: OnAnswer) -> list[Reply | CallFailed]:
        """Send each request to its model, one model after the other; see `Backend.ask_each`."""
        answers: dict[str, Reply | CallFailed] = {}
        for name, own in self._by_model(requests).items():
            replies = self._backends[name].ask_each(own, on_answer)
            answers |= {request.name: reply for request, reply in zip(own, replies, strict=True)}
        return [answers[request.name] for request in requests]

    def check(self) -> None:
        """Check every model; see `Backend.check`."""
        for backend in self._backends.values():
            backend.check()

    def worst_case_usd(self, requests: Sequence[Request]) -> float | None:
        """Return the sum over the models; None if a price is not known."""
        bounds = [self._backends[name].worst_case_usd(own) for name, own in self._by_model(requests).items()]
        known = [bound for bound in bounds if bound is not None]
        return sum(known) if len(known) == len(bounds) else None

    def _by_model(self, requests: Sequence[Request]) -> dict[str, list[Request]]:
        groups: dict[str, list[Request]] = {}
        for request in requests:
            groups.setdefault(self._model_of(request.name), []).append(request)
        return groups


def choose_models(
    rows: Sequence[Row], archive: Archive, names: Sequence[str], count: int, exploration: float, dollar_weight: float
) -> list[str]:
    """Return the model of each candidate of a generation. Candidates of the same generation count as tries without a reward yet.

    Args:
        rows: rows of the log.
        archive: all functions of the search.
        names: names of the models.
        count: number of candidates.
        exploration: weight of the uncertainty.
        dollar_weight: weight of the price.
    """
    rewards = _rewards(rows, archive, names)
    prices = _prices(rows, names)
    highest = max(prices.values()) or 1.0
    tries = {name: len(rewards[name]) for name in names}
    chosen: list[str] = []
    for _ in range(count):
        total = sum(tries.values())

        def value(name: str, total: int = total) -> float:
            if not tries[name]:
                return math.inf
            mean = fmean(rewards[name]) if rewards[name] else 0.0
            bonus = exploration * math.sqrt(2 * math.log(max(total, 1)) / tries[name])
            return mean + bonus - dollar_weight * prices[name] / highest

        chosen.append(max(names, key=value))  # of equal ones the first
        tries[chosen[-1]] += 1
    return chosen


def _rewards(rows: Sequence[Row], archive: Archive, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the rewards of the candidates of each model."""
    models = {row["name"]: row["model"] for row in rows if row["kind"] == "question"}
    ranks = {member.key: member.rank for member in archive.members}
    rewards: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        if row["kind"] == "candidate" and not row["tuned"]:
            others = [rank for key, rank in ranks.items() if key != row["key"]]
            lower = sum(rank < ranks[row["key"]] for rank in others) if row["key"] else 0
            rewards[models[row["name"]]].append(lower / len(others) if others else float(bool(row["key"])))
    return rewards


def _prices(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """Return the mean price of a candidate of each model, in US dollars; calls without a known price count as 0."""
    models = {row["name"]: row["model"] for row in rows if row["kind"] == "question"}
    spent = dict.fromkeys(names, 0.0)
    for row in rows:
        if row["kind"] == "call":
            spent[models[candidate_of(row["call"])]] += row["cost_usd"] or 0.0
    return {name: spent[name] / max(1, list(models.values()).count(name)) for name in names}


def candidate_of(call: str) -> str:
    """Return the candidate that a call is for: 'generation-1-candidate-2' of 'generation-1-candidate-2-attempt-3'."""
    return call.partition("-attempt-")[0]
