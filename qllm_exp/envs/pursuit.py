"""Predator-prey with a miscoordination penalty, on which value decompositions that keep IGM by monotonicity fail.

The rules are those of `stag_hunt` with the settings of `pred_prey_punish` (Böhmer et al. 2020, arXiv 1910.00091; Rashid et al.
2020, arXiv 2006.10800), vectorised over N copies in torch. In a step, the hunters act one after the other in a random order; a
move into an occupied cell has no effect. Then the prey act, also in a random order. A prey is captured if at least two hunters
next to it have chosen 'catch': the team gets 10, and prey and hunters leave the board. If a single hunter has, the team gets the
penalty. A prey that is not captured moves to a random free cell next to it. An episode ends when all prey or all hunters are
gone, so its highest return is 10 for every two hunters, 40 with 8 of them.

There are these deviations from the published code:

1. The published configuration files have borders; `env.torus=false` is that. On a torus, the published code does not let hunters
   catch prey across the seam, nor see across it. Here they do both.
2. The published state is the board as an image. Here it lists the positions, and observations leave out the published third
   plane, which is for hares and always 0.
3. The published code reports the time limit as the end of an episode or not, as its learner wants. Here it truncates.

Shapes: N copies (num_envs), n hunters (n_agents), P prey, C cells, A = 6 actions. A cell has the number row * size + column.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.episode_generator import EpisodeGenerator
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.errors import UserError, nearest


@dataclass
class Config(schema.EnvConfig):
    """Options of predator-prey."""

    name: str = "pursuit"
    task: str = "10x10-8h-8p"
    episode_limit: int = schema.number(200, 1)
    penalty: float = -1.0
    torus: bool = True


ACTIONS = ("north", "south", "west", "east", "stay", "catch")
CAPTURE_REWARD = 10.0
MIN_PENALTY = -100.0
_STAY, _CATCH = ACTIONS.index("stay"), ACTIONS.index("catch")
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (row, column), of the first four actions
_NEEDED = 2  # hunters that capture a prey
_SIGHT = 2  # cells that a hunter sees in each direction

_TASKS = ("10x10-8h-8p", "10x10-4h-4p", "7x7-4h-4p")
_TASK_PATTERN = re.compile(r"([1-9]\d*)x\1-([1-9]\d*)h-([1-9]\d*)p")


class Board(NamedTuple):
    """A parsed task string, SIZExSIZE-[hunters]h-[prey]p.

    Attributes:
        size: cells along one side.
        hunters: number of hunters.
        prey: number of prey.
    """

    size: int
    hunters: int
    prey: int


def tasks() -> list[str]:
    """The standard tasks, default first. Any other string of the same form is accepted too."""
    return list(_TASKS)


def check(config: Config) -> None:
    """Raise UserError if the task is not one of predator-prey, or the penalty is out of bounds."""
    parse_task(config.task)
    if not MIN_PENALTY <= config.penalty <= 0:
        raise UserError(
            f"env.penalty={config.penalty:g} must be between {MIN_PENALTY:g} and 0: it is the team reward of each prey that one "
            "hunter tries to catch alone. Published: 0, -0.5, -1, -1.5, -2."
        )


def make(config: Config, num_envs: int, seed: int, device: torch.device) -> "Pursuit":
    """Build `num_envs` copies of `config.task`.

    Raises:
        UserError: see `check`.
    """
    check(config)
    return Pursuit(config, num_envs, seed, device)


def parse_task(task: str) -> Board:
    """Parse a task string.

    Args:
        task: e.g. '10x10-8h-8p'.

    Raises:
        UserError: the string does not have the form of a task, or its numbers do not describe a playable board.
    """
    match = _TASK_PATTERN.fullmatch(task)
    if match is None:
        raise UserError(
            f"env.task={task!r} is not a task of predator-prey.{nearest(task, _TASKS)} Allowed: [SIZE]x[SIZE]-[H]h-[P]p, with one "
            f"size for both sides, H hunters and P prey; for example {', '.join(_TASKS)}."
        )
    board = Board(*(int(number) for number in match.groups()))
    smallest, half = 2 * _SIGHT + 1, board.size**2 // 2
    if board.size < smallest or board.hunters < _NEEDED or board.hunters + board.prey > half:
        raise UserError(
            f"env.task={task!r} is not a playable board. Allowed: a size of at least {smallest}, at least {_NEEDED} hunters, and "
            f"at most one hunter or prey for every two cells, {half} together on this board."
        )
    return board


class Pursuit(TeamEnv):
    """N copies of one task of predator-prey, with the rules that the module describes.

    Args:
        config: the options, which `check` accepts.
        num_envs: number of parallel copies.
        seed: seed of the starts and of what happens at random.
        device: device of all tensors.
    """

    n_actions = len(ACTIONS)

    # State of the current episodes. What has left the board is in the cell C, which is outside of it.
    _hunters: Tensor  # [N, n] int64, cells of the hunters
    _prey: Tensor  # [N, P] int64, cells of the prey
    _occupied: Tensor  # [N, C + 1] bool, cells with a hunter or a prey; never C
    _playing: Tensor  # [N, 1] bool, copies whose episode has not ended
    _elapsed: int  # steps since the start

    def __init__(self, config: Config, num_envs: int, seed: int, device: torch.device) -> None:
        board = self.board = parse_task(config.task)
        self.num_envs, self.n_agents, self.episode_limit = num_envs, board.hunters, config.episode_limit
        self.obs_dim = 2 * (2 * _SIGHT + 1) ** 2
        self.device = device
        self.layout = _layout(board)
        self.task = _describe(config, board)
        share = 1 / board.hunters if config.reward == "mean" else 1.0
        self._capture, self._penalty = share * CAPTURE_REWARD, share * config.penalty
        self._generator = EpisodeGenerator(device)
        self.seed(seed)

        self._outside = board.size**2
        self._next_cells = self._shifted(_MOVES, config.torus)  # [C + 1, 4], the same cell where a border is in the way
        around = range(-_SIGHT, _SIGHT + 1)
        self._windows = self._shifted([(row, column) for row in around for column in around], config.torus, True)
        cells = torch.arange(self._outside + 1, device=device)
        moves = self._next_cells != cells.unsqueeze(1)
        on_board = (cells < self._outside).unsqueeze(1)
        self._moves = torch.cat((moves & on_board, torch.ones_like(on_board)), 1)  # [C + 1, 5], moves and 'stay'
        self._targets = torch.cat((self._next_cells, cells.unsqueeze(1).expand(-1, 2)), 1)  # [C + 1, A]
        self._rows = torch.arange(num_envs, device=device)

    def reset(self) -> Observation:
        """Start a new episode in every copy: hunters and prey on random cells, no two on one."""
        board = self.board
        self._generator.start()
        cells = self._random(self._outside).topk(board.hunters + board.prey).indices
        return self.set_cells(cells[:, : board.hunters], cells[:, board.hunters :])

    def set_cells(self, hunters: Tensor, prey: Tensor) -> Observation:
        """Start an episode in a given state.

        Args:
            hunters: [N, n] int64, cells of the hunters, no two the same.
            prey: [N, P] int64, cells of the prey, none of them that of another or of a hunter.
        """
        self._hunters, self._prey = hunters.clone(), prey.clone()
        everyone = torch.cat((hunters, prey), 1)
        empty = torch.zeros(self.num_envs, self._outside + 1, dtype=torch.bool, device=self.device)
        self._occupied = empty.scatter(1, everyone, True)
        self._playing = torch.ones(self.num_envs, 1, dtype=torch.bool, device=self.device)
        self._elapsed = 0
        return self._observe()

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n]."""
        actions = actions.where(self._playing, _STAY)
        for agent in self._random(self.n_agents).argsort(1).unbind(1):
            self._move_hunter(agent, actions[self._rows, agent])
        order, preferences = self._random(self.board.prey).argsort(1), self._random(self.board.prey, len(_MOVES))
        catches = actions == _CATCH
        reward = torch.zeros(self.num_envs, device=self.device)
        for prey, preference in zip(order.unbind(1), preferences.unbind(1), strict=True):
            reward += self._let_prey_act(prey, catches, preference)

        self._elapsed += 1
        terminated = (self._prey == self._outside).all(1) | (self._hunters == self._outside).all(1)
        self._playing = self._playing & ~terminated.unsqueeze(1)
        truncated = torch.zeros_like(terminated)
        if self._elapsed >= self.episode_limit:
            truncated = ~terminated
            self._playing = torch.zeros_like(self._playing)
        return Step(*self._observe(), reward, terminated, truncated)

    def seed(self, seed: int) -> None:
        """Seed the generator of starts and of what happens at random."""
        self._generator.seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return self._generator.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the generator from a `state_dict`."""
        self._generator.load_state_dict(saved)

    def episode_metrics(self) -> dict[str, Tensor]:
        """'captured': [N] float32, the number of prey that were captured."""
        return {"captured": (self._prey == self._outside).sum(1).float()}

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """Whether each cell around the agent holds an agent, then whether it holds a prey."""
        around = range(-_SIGHT, _SIGHT + 1)
        cells = tuple(f"x{row:+d}_y{column:+d}" for row in around for column in around)
        codes = {0.0: "no", 1.0: "yes"}
        return [
            StateField("agent", agent, f"{kind}_at_offset", cells, 0.0, 1.0, "", codes) for kind in ("agent", "prey")
        ]

    def _random(self, *shape: int) -> Tensor:
        """Return random numbers from 0 to 1 [N, *shape]."""
        return self._generator.random(self.num_envs, *shape)

    def _move_hunter(self, agent: Tensor, action: Tensor) -> None:
        """Move a hunter [N] of each copy by its action [N], unless the cell is occupied."""
        cell = self._hunters[self._rows, agent]
        target = self._targets[cell, action]
        moves = ~self._occupied[self._rows, target] & (cell != self._outside)
        self._relocate(cell, target, moves)
        self._hunters[self._rows, agent] = target.where(moves, cell)

    def _let_prey_act(self, prey: Tensor, catches: Tensor, preference: Tensor) -> Tensor:
        """Capture a prey of each copy, or move it.

        Args:
            prey: [N], the prey.
            catches: [N, n] bool, hunters that have chosen 'catch'.
            preference: [N, 4], random numbers: the free cell with the highest is taken.

        Returns:
            The reward [N].
        """
        cell = self._prey[self._rows, prey]
        on_board, cells = cell != self._outside, self._next_cells[cell]  # [N], [N, 4]
        is_next = (self._hunters.unsqueeze(2) == cells.unsqueeze(1)).any(2) & (self._hunters != self._outside)
        catching = is_next & catches & on_board.unsqueeze(1)
        count = catching.sum(1)
        captured = count >= _NEEDED

        leaves = catching & captured.unsqueeze(1)
        gone = torch.cat(
            (self._hunters.where(leaves, self._outside), cell.where(captured, self._outside).unsqueeze(1)), 1
        )
        self._occupied.scatter_(1, gone, False)
        self._hunters = self._hunters.masked_fill(leaves, self._outside)

        free = ~self._occupied.gather(1, cells)
        target = cells.gather(1, preference.where(free, -1.0).argmax(1, keepdim=True)).squeeze(1)
        moves = on_board & ~captured & free.any(1)
        self._relocate(cell, target, moves)
        self._prey[self._rows, prey] = torch.where(captured, self._outside, target.where(moves, cell))
        return self._capture * captured + self._penalty * ((count > 0) & ~captured)

    def _relocate(self, cell: Tensor, target: Tensor, moves: Tensor) -> None:
        """Note in which copies [N] somebody moves from a cell [N] to another [N]."""
        self._occupied[self._rows, cell.where(moves, self._outside)] = False
        self._occupied[self._rows, target.where(moves, self._outside)] = True
        self._occupied[:, self._outside] = False

    def _observe(self) -> Observation:
        """Observe the current positions."""
        size, outside = self.board.size, self._outside
        everyone = torch.cat((self._hunters, self._prey), 1)
        rows, columns = everyone // size, everyone % size
        positions = torch.stack((rows, columns), 2).masked_fill((everyone == outside).unsqueeze(2), -1)

        present = torch.stack([self._planes(self._hunters), self._planes(self._prey)], 1)  # [N, 2, C + 1]
        windows = self._windows[self._hunters]  # [N, n, 25]
        seen = (
            present.unsqueeze(1).expand(-1, self.n_agents, -1, -1).gather(3, windows.unsqueeze(2).expand(-1, -1, 2, -1))
        )

        next_to_prey = (
            present[:, 1].gather(1, self._next_cells[self._hunters].flatten(1)).view(*self._hunters.shape, -1)
        )
        available = torch.cat((self._moves[self._hunters], next_to_prey.any(2, keepdim=True)), 2)
        return Observation(seen.flatten(2).float(), positions.flatten(1).float(), available)

    def _planes(self, cells: Tensor) -> Tensor:
        """Return which cells are among these [N, K], as a mask [N, C + 1] in which C is False."""
        planes = one_hot(cells, self._outside + 1).any(1)
        planes[:, self._outside] = False
        return planes

    def _shifted(self, shifts: Sequence[tuple[int, int]], torus: bool, may_leave: bool = False) -> Tensor:
        """Return for each cell, and for C, the cells that lie at some shifts from it, [C + 1, shifts] int64.

        Args:
            shifts: (row, column) for each.
            torus: whether the board wraps around.
            may_leave: whether a cell beyond a border is C; else it is the cell itself.
        """
        size = self.board.size
        cells = torch.arange(size**2)
        columns = []
        for row_shift, column_shift in shifts:
            row, column = cells // size + row_shift, cells % size + column_shift
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            there = (row % size) * size + column % size
            columns.append(there if torus else there.where(inside, self._outside if may_leave else cells))
        table = torch.stack(columns, 1)
        return torch.cat((table, torch.full((1, table.shape[1]), self._outside))).to(self.device)


def _layout(board: Board) -> StateLayout:
    """Layout of the global state: hunters, then prey."""
    last, axes = board.size - 1.0, ("x", "y")
    gone = {"agent": "has captured a prey and left the board", "prey": "captured"}
    return StateLayout.from_fields(
        StateField(entity, index, "position", axes, -1.0, last, "cells", {-1.0: gone[entity]})
        for entity, number in (("agent", board.hunters), ("prey", board.prey))
        for index in range(number)
    )


def _describe(config: Config, board: Board) -> TaskDescription:
    """Describe the task in words, with its numbers."""
    size, last = board.size, board.size - 1
    share = f", divided by {board.hunters}" if config.reward == "mean" else ""
    if config.torus:
        edges = f"The board wraps around: row {last} is next to row 0, and column {last} next to column 0."
    else:
        edges = "Nobody can leave the board."
    pairs = min(board.hunters // _NEEDED, board.prey)
    shown = "; the global state shows everything" if config.state == "features" else ""
    return TaskDescription(
        env="pursuit",
        task=config.task,
        goal=(
            f"{board.hunters} agents hunt {board.prey} prey on a board of {size}x{size} cells. x is the row, from 0 in the north "
            f"to {last} in the south; y is the column, from 0 in the west to {last} in the east. {edges} A cell holds one agent or "
            "prey; a move into an occupied cell has no effect. A prey is captured when at least two agents next to it (north, "
            "south, west or east of it, not diagonal) choose 'catch' in the same step: the prey and these agents leave the "
            "board. If a single agent next to a prey chooses it, nothing is captured and the team pays a penalty. 'catch' is "
            "available next to a prey only. Prey that are not captured move to a random free cell next to theirs after the "
            f"agents have moved. An agent sees {_SIGHT} cells far in each direction{shown}."
        ),
        reward=(
            f"Each captured prey gives the team {CAPTURE_REWARD:g}, each prey that a single agent tries to catch "
            f"{config.penalty:g}{share}. A whole episode gives at most {CAPTURE_REWARD * pairs:g}{share}, with {pairs} prey "
            "captured by two agents each."
        ),
        actions=ACTIONS,
        episode=(
            "Ends when all prey are captured or all agents have left (terminated), or after "
            f"{config.episode_limit} steps (truncated)."
        ),
        n_agents=board.hunters,
        monotonic=config.penalty == 0,
    )
