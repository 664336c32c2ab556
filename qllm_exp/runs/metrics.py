"""The metrics file of a run: its rows, and how they are read.

`metrics.jsonl` has one JSON object per line. The trainer appends rows and never changes them, so only the last line can be
truncated, when the process was killed while writing it. A metric that is NaN or infinite is null, and is read as NaN.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from qllm_exp.errors import UserError
from qllm_exp.utils.files import read_regular_file


class EvaluationRow(TypedDict):
    """Episodes without exploration, played with the current parameters.

    Written before the first step, every `train.evaluation.every` environment steps, and at the end of training.
    A metric NAME that an environment reports for each episode appears as NAME_mean.

    Attributes:
        kind: 'evaluation'.
        env_step: point of the grid of evaluations, in environment steps; the same grid for every run, so that learning curves can
            be averaged.
        env_step_exact: environment steps at which the evaluation took place.
        return_mean: mean return of the episodes: the undiscounted sum of the team reward, in the unit of the environment.
        return_std: standard deviation of the returns.
        length_mean: mean length of the episodes, in steps.
        episodes: number of episodes.
        wall_s: seconds of training and evaluation so far, over all processes of the run.
        all_food_collected_mean: lbf: fraction of episodes in which no food is left.
        win_mean: grf: fraction of matches won.
        score_mean: grf: mean goal difference.
    """

    kind: Literal["evaluation"]
    env_step: int
    env_step_exact: int
    return_mean: float
    return_std: float
    length_mean: float
    episodes: int
    wall_s: float
    all_food_collected_mean: NotRequired[float]
    win_mean: NotRequired[float]
    score_mean: NotRequired[float]


class AbsoluteRow(TypedDict):
    """The absolute metric (Gorsane et al. 2022): the best parameters of the run, evaluated once more on more episodes.

    Written once, when training has finished. A metric NAME that an environment reports appears as NAME_mean.

    Attributes:
        kind: 'absolute'.
        env_step: environment steps of the whole run, `train.total_steps`.
        return_mean: mean return of the episodes.
        return_std: standard deviation of the returns.
        length_mean: mean length of the episodes, in steps.
        episodes: number of episodes, `train.evaluation.absolute_episodes`.
        all_food_collected_mean: lbf: fraction of episodes in which no food is left.
        win_mean: grf: fraction of matches won.
        score_mean: grf: mean goal difference.
    """

    kind: Literal["absolute"]
    env_step: int
    return_mean: float
    return_std: float
    length_mean: float
    episodes: int
    all_food_collected_mean: NotRequired[float]
    win_mean: NotRequired[float]
    score_mean: NotRequired[float]


class TrainingRow(TypedDict):
    """Averages over the training episodes and updates since the previous training row.

    Written about every 10,000 environment steps. Metrics of updates are missing if there was no update since the
    previous row. An algorithm of the user's own may add metrics, and one that an environment reports for each episode appears as
    NAME_mean, as in an evaluation.

    Attributes:
        kind: 'training'.
        env_step: environment steps so far.
        episodes: training episodes so far.
        updates: updates so far.
        return_mean: mean return of the episodes since the previous row, with exploration.
        length_mean: mean length of these episodes, in steps.
        all_food_collected_mean: lbf: fraction of these episodes in which no food is left.
        win_mean: grf, smax: fraction of these episodes that were won.
        score_mean: grf: mean goal difference of these episodes.
        wall_s: seconds of training and evaluation so far, over all processes of the run.
        epsilon: current exploration rate, 0 to 1 (q_learning, iql, maser, coma).
        loss: mean squared TD error (q_learning, iql, maser).
        q_tot: mean Q_tot of the joint actions taken (q_learning, iql, maser, riit).
        q: mean value that the critic gives the joint actions taken (coma, lica, maddpg).
        policy_loss: negative objective of the policy, without the entropy bonus (actor-critics).
        value_loss: mean squared error of the critic (actor-critics).
        replay_loss: mean squared error of the critic on replayed episodes (riit).
        entropy: mean entropy of the policy, in nats (actor-critics).
        clipped: fraction of probability ratios outside the clipping range, 0 to 1 (ippo, mappo).
        grad_norm: norm of the gradient of the agents before clipping; in value-based methods that of agents and mixer.
        critic_grad_norm: norm of the gradient of the critic before clipping (actor-critics).
        intrinsic_reward: mean intrinsic reward, the negative distance from the subgoal (maser).
        individual_loss: squared TD error of the individual Qs, summed over the agents (maser).
        exploration_loss: divergence of softmax Q from the uniform distribution, from the subgoal on (maser).
        distance_loss: mean squared error of the learned distance (maser).
    """

    kind: Literal["training"]
    env_step: int
    episodes: int
    updates: int
    return_mean: float
    length_mean: float
    wall_s: float
    all_food_collected_mean: NotRequired[float]
    win_mean: NotRequired[float]
    score_mean: NotRequired[float]
    epsilon: NotRequired[float]
    loss: NotRequired[float]
    q_tot: NotRequired[float]
    q: NotRequired[float]
    policy_loss: NotRequired[float]
    value_loss: NotRequired[float]
    replay_loss: NotRequired[float]
    entropy: NotRequired[float]
    clipped: NotRequired[float]
    grad_norm: NotRequired[float]
    critic_grad_norm: NotRequired[float]
    intrinsic_reward: NotRequired[float]
    individual_loss: NotRequired[float]
    exploration_loss: NotRequired[float]
    distance_loss: NotRequired[float]


MetricsRow = TrainingRow | EvaluationRow | AbsoluteRow

KINDS = ("training", "evaluation", "absolute")
_MAX_BYTES = 2**30  # of a metrics file
_TRAINING_START = b'{"kind": "training"'  # first bytes of a training row


def read_rows(path: Path, *kinds: str) -> list[MetricsRow]:
    """Read rows of a metrics file, in the order in which they were written.

    An incomplete last line is ignored: the process died while writing it, or is writing it now.

    Args:
        path: the metrics file.
        kinds: kinds of rows to return, among KINDS; all if none is given.

    Raises:
        UserError: the file is missing, or a line other than the last is not a valid row.
    """
    wanted = kinds or KINDS
    try:
        lines = read_regular_file(path, _MAX_BYTES).split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Copy the whole run directory.") from None
    rows: list[MetricsRow] = []
    for number, line in enumerate(lines, 1):
        if not line or ("training" not in wanted and _is_complete_training_row(line)):
            continue
        try:
            row = json.loads(line)
            if row["kind"] in wanted:
                rows.append(nan_for_null(row))
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(lines):
                start = line[:60].decode(errors="replace")
                raise UserError(
                    f"{path}, line {number} is not a valid metrics row: {start!r}. Only the last line may be truncated. "
                    "Copy the file again from the machine that made the run, or leave the run out."
                ) from None
    return rows


def nan_for_null(numbers: dict[str, Any]) -> Any:
    """Return an object of metrics or results with NaN in place of null, which stands for a number that JSON does not have."""
    if None not in numbers.values():
        return numbers
    return {key: math.nan if value is None else value for key, value in numbers.items()}


def _is_complete_training_row(line: bytes) -> bool:
    """Recognise a complete training row without parsing it, since most rows are of this kind.

    A row that was truncated and then continued by the next row contains a second brace.
    """
    return line.startswith(_TRAINING_START) and line.endswith(b"}") and line.rfind(b"{") == 0


class MetricsReader:
    """Reads the rows of a metrics file while a run appends them.

    The position in the file is known as a number of rows, too, since a number of bytes does not identify a row: a run that
    resumes from its checkpoint writes the rows after it again, with other wall-clock times and so with other lengths.

    Attributes:
        count: number of rows read so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0  # bytes read so far
        self.count = 0

    def read_new(self) -> list[MetricsRow]:
        """Return the rows that were completed since the last call."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        rows = [nan_for_null(json.loads(line)) for line in complete.splitlines()]
        self.count += len(rows)
        return rows
