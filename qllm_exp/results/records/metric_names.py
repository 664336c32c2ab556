"""What tables and figures show of a run: a return, or a metric that its environment reports for each episode."""

from collections.abc import Sequence
from dataclasses import dataclass

from qllm_exp.errors import choose
from qllm_exp.results.records.reader import WIN_RATE, Record


@dataclass(frozen=True)
class Metric:
    """A metric, as `--metric` names it.

    Attributes:
        name: its name.
        key: what `Record.score` takes.
        title: title of a table.
        label: label of an axis.
        is_share: whether it lies between 0 and 1 on every task, so that it is never normalised.
        higher_is_better: whether the highest value is known to be the best, which tables mark.
    """

    name: str
    key: str
    title: str
    label: str
    is_share: bool = False
    higher_is_better: bool = True

    @property
    def episode_metric(self) -> str:
        """Its name in `Record.episode_metrics`; '' for a return."""
        return self.key.removesuffix("_mean") if self.key.endswith("_mean") else ""

    @property
    def noun(self) -> str:
        """A value of it in a sentence: 'return', 'win rate', 'length'."""
        return self.label if self.episode_metric else "return"


_NAMED = {
    metric.name: metric
    for metric in (
        Metric("return", "final_return", "Return of an evaluation", "evaluation return"),
        Metric("final", "final_return", "Return of the last evaluation", "final return"),
        Metric("absolute", "absolute_return", "Absolute metric (best parameters of each run)", "absolute return"),
        Metric(WIN_RATE, "win_mean", "Share of episodes won in the last evaluation", "win rate", is_share=True),
    )
}
TABLE_METRICS = ("final", "absolute", WIN_RATE)
CURVE_METRICS = ("return", WIN_RATE)


def metric_named(name: str) -> Metric:
    """Return the metric of a name: one of TABLE_METRICS or CURVE_METRICS, or one that an environment reports, e.g. 'score'."""
    words = name.replace("_", " ")
    title = f"{words.capitalize()} of the last evaluation"
    return _NAMED.get(name) or Metric(name, f"{name}_mean", title, words, higher_is_better=False)


def check_metric(name: str, records: Sequence[Record], named: Sequence[str] = TABLE_METRICS) -> Metric:
    """Return the metric of a name.

    Args:
        name: one of `named`, or a metric that the environment of a record reports for each episode.
        records: finished runs.
        named: TABLE_METRICS or CURVE_METRICS.

    Raises:
        UserError: no record has a metric of that name.
    """
    reported = dict.fromkeys(own for record in records for own in record.episode_metrics if own != "win")
    return metric_named(choose("--metric", name, [*named, *reported]))


def reported_metrics(records: Sequence[Record]) -> list[str]:
    """Return those of TABLE_METRICS that all records have."""
    return [
        name
        for name in TABLE_METRICS
        if all(
            metric_named(name).key in record.result or (name == WIN_RATE and "win" in record.episode_metrics)
            for record in records
        )
    ]
