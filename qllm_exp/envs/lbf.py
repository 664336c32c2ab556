"""Level-based foraging: the rules of lbforaging 2.0.0 (`Foraging-...-v3`), vectorised over N copies in torch.

Rules, levels, observations and rewards are those of the package's registered ids: players of level 1 to 2, foods of
level 1 to the sum of the three lowest player levels, no penalty, normalised rewards. The global state is that of the
QLLM code (arXiv 2504.12961). As in the package, in EPyMARL and in QLLM's code, every action is available in every
state, and an action without effect (a move against the border or a food, a load beside no food) counts as 'none'. With
`env.mask_ineffective=true` such an action is not available, which makes the tasks easier (docs/pages/methods/index.md).
There are two deviations from the package:

1. The package reports every end of an episode as "done". Here the time limit truncates.
2. From its second episode on, the package keeps the players off the cells where they last stood. Here all episodes are
   independent of each other, like the package's first one.

Shapes: N copies (num_envs), n players (n_agents), F foods, A = 6 actions. A position is (row, column), in cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from qllm_exp.config import schema
from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.errors import UserError, nearest


@dataclass
class Config(schema.EnvConfig):
    """Options of level-based foraging."""

    name: str = "lbf"
    task: str = "8x8-2p-2f-coop-2s"
    episode_limit: int = schema.number(50, 1)
    mask_ineffective: bool = False


ACTIONS = ("none", "north", "south", "west", "east", "load")
MAX_PLAYER_LEVEL = 2
_LOAD = ACTIONS.index("load")
_MOVES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0))  # (row, column), per action
_ABSENT = (-1.0, -1.0, 0.0)  # row of a food that is not on the board, and of an entity that is not observed
_SPAWN_ATTEMPTS = 1000  # cells that are tried for all foods of an episode together
_LEVEL_DRAWS = 60  # a multiple of every possible highest food level, so that draws modulo that level are uniform

_TASKS = (
    "8x8-2p-2f-coop-2s",
    "10x10-3p-3f-2s",
    "10x10-3p-3f-coop-2s",
    "15x15-4p-3f-2s",
    "15x15-4p-3f-coop-2s",
    "8x8-2p-2f-coop",
    "10x10-3p-3f",
    "10x10-3p-3f-coop",
    "15x15-4p-3f",
    "15x15-4p-3f-coop",
    "15x15-3p-5f",
    "15x15-4p-5f",
)
_TASK_FORM = "[SIZE]x[SIZE]-[P]p-[F]f[-coop][-2s]"
_TASK_PATTERN = re.compile(r"([1-9]\d*)x\1-([1-9]\d*)p-([1-9]\d*)f(-coop)?(-2s)?")


class Board(NamedTuple):
    """A parsed task string, SIZExSIZE-[players]p-[foods]f[-coop][-2s].

    Attributes:
        size: cells along one side.
        players: number of players.
        foods: number of foods.
        coop: every food needs the three lowest player levels together.
        sight: cells that a player sees in each direction; equal to `size` for the whole board.
    """

    size: int
    players: int
    foods: int
    coop: bool
    sight: int

    @property
    def max_food_level(self) -> int:
        """The highest level that a food can have."""
        return MAX_PLAYER_LEVEL * min(3, self.players)


def tasks() -> list[str]:
    """The standard tasks, default first. Any other string of the same form is accepted too."""
    return list(_TASKS)


def check(config: Config) -> None:
    """Raise UserError if `config.task` is not a foraging task; see `parse_task`."""
    parse_task(config.task)


def make(config: Config, num_envs: int, seed: int, device: torch.device) -> "LevelBasedForaging":
    """Build `num_envs` copies of `config.task`.

    Raises:
        UserError: see `parse_task`.
    """
    return LevelBasedForaging(config, num_envs, seed, device)


def parse_task(task: str) -> Board:
    """Parse a task string.

    Args:
        task: e.g. '8x8-2p-2f-coop-2s'.

    Raises:
        UserError: the string does not have the form of a task, or its numbers do not describe a playable board.
    """
    match = _TASK_PATTERN.fullmatch(task)
    if match is None:
        raise UserError(
            f"env.task={task!r} is not a foraging task.{nearest(task, _TASKS)} Allowed: {_TASK_FORM}, with one size "
            "for both sides, P players, F foods, -coop if each food needs the levels of the three weakest players "
            f"together, and -2s for a sight of 2 cells; for example {', '.join(_TASKS)}."
        )
    size, players, foods = (int(number) for number in match.group(1, 2, 3))
    max_players = size * size // 2
    # Foods keep a distance: no two of them, each with its four neighbours, share a cell. That makes 5 cells per food.
    max_foods = size * size // 5
    allowed = None
    if size < 5:
        allowed = "a size of at least 5"
    elif not 2 <= players <= max_players:
        allowed = f"2 to {max_players} players (at most one for every two cells)"
    elif foods > max_foods:
        allowed = f"1 to {max_foods} foods (at most one for every five cells, since foods keep a distance)"
    if allowed is not None:
        hint = nearest(task, _TASKS)
        raise UserError(f"env.task={task!r} is not a playable board.{hint} Allowed: {_TASK_FORM} with {allowed}.")
    return Board(size, players, foods, match.group(4) is not None, 2 if match.group(5) else size)


def sample_start(board: Board, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample initial states from the package's distribution, without reading a value back to the host.

    Players stand on distinct cells. Foods lie off the border, not on a player, and more than two cells from each other
    (squared distance above 4).

    Args:
        board: the task.
        num_envs: number of states, N.
        generator: source of the random numbers; the states are on its device.

    Returns:
        Agents [N, n, 3] and foods [N, F, 3], float32 rows (row, column, level). The foods are in reading order. Foods
        for which no cell was found come last, as (-1, -1, 0).
    """
    size, device = board.size, generator.device
    cells = torch.arange(size * size, device=device)
    row, column = cells // size, cells % size
    inner = (row > 0) & (row < size - 1) & (column > 0) & (column < size - 1)

    # Visit the cells in a random order: players take the first cells, each food the first cell that is still free.
    # Whatever was taken, the order of the other cells remains uniform, so each food's cell is uniform over the free
    # cells.
    order = torch.rand(num_envs, size * size, generator=generator, device=device)
    player_cell = order.topk(board.players).indices
    free = inner.expand(num_envs, -1).scatter(1, player_cell, False)
    # The package draws inner cells until one is free, at most 1000 times for all foods together. The number of draws
    # for one food is geometric in the fraction of free cells; if no cell is free, it is infinite. It is sampled by
    # inversion.
    uniform = 1 - torch.rand(num_envs, board.foods, generator=generator, device=device)
    attempts = torch.zeros(num_envs, device=device)
    food_cells = []
    for log_uniform in uniform.log().unbind(1):
        free_fraction = free.sum(1) / (size - 2) ** 2
        attempts = attempts + (log_uniform / torch.log1p(-free_fraction)).floor() + 1
        cell = order.masked_fill(~free, -1).argmax(1, keepdim=True)
        free = free & ((row - row[cell]) ** 2 + (column - column[cell]) ** 2 > 4)
        food_cells.append(cell.squeeze(1).where(attempts <= _SPAWN_ATTEMPTS, size * size))
    food_cell = torch.stack(food_cells, 1).sort().values

    player_level = torch.randint(1, MAX_PLAYER_LEVEL + 1, player_cell.shape, generator=generator, device=device)
    max_level = player_level.sort().values[:, :3].sum(1, keepdim=True).expand(-1, board.foods)
    draw = torch.randint(_LEVEL_DRAWS, food_cell.shape, generator=generator, device=device)
    food_level = max_level if board.coop else draw % max_level + 1

    agents = torch.stack((player_cell // size, player_cell % size, player_level), -1).float()
    foods = torch.stack((food_cell // size, food_cell % size, food_level), -1).float()
    absent = torch.tensor(_ABSENT).to(device, non_blocking=True)
    return agents, foods.where((food_cell < size * size).unsqueeze(-1), absent)


class LevelBasedForaging(TeamEnv):
    """N copies of one foraging task, with the rules that the module describes.

    Args:
        config: the options.
        num_envs: number of parallel copies.
        seed: seed of the initial states.
        device: device of all tensors.

    Raises:
        UserError: `config.task` is not a foraging task; see `parse_task`.
    """

    n_actions = len(ACTIONS)

    # State of the current episodes:
    _positions: Tensor  # [N, n, 2] float32, positions of the players
    _levels: Tensor  # [N, n] float32, levels of the players
    _foods: Tensor  # [N, F, 3] float32 rows (row, column, level)
    _adjacent: Tensor  # [N, n, F] bool, whether the player stands next to the food
    _effective: Tensor  # [N, n, A] bool, actions that are not the same as 'none' by the rules, and 'none' itself
    _playing: Tensor  # [N, 1] bool, copies whose episode has not ended
    _reward_scale: Tensor  # [N] float32, team reward per level of food
    _elapsed: int  # steps since the start

    def __init__(self, config: Config, num_envs: int, seed: int, device: torch.device) -> None:
        board = self.board = parse_task(config.task)
        self.num_envs, self.n_agents, self.episode_limit = num_envs, board.players, config.episode_limit
        self.obs_dim = 3 * (board.foods + board.players)
        self.device = device
        self.layout = _layout(board)
        self.task = _describe(config, board)
        self._mask_ineffective = config.mask_ineffective
        self._reward_share = 1 / board.players if config.reward == "mean" else 1.0
        self._generator = torch.Generator(device)
        self.seed(seed)

        last = board.size - 1.0
        self._moves = torch.tensor(_MOVES, device=device)  # [A, 2]
        self._neighbour_offsets = self._cell_number(self._moves[1:_LOAD])  # [4]
        self._absent = torch.tensor(_ABSENT, device=device)
        self._edges = torch.tensor((0.0, last, 0.0, last), device=device)  # north, south, west, east
        self._edge_axis = torch.tensor((0, 0, 1, 1), device=device)
        self_first = [[i, *(j for j in range(board.players) if j != i)] for i in range(board.players)]
        self._self_first = torch.tensor(self_first, device=device)  # [n, n]
        # Adding 1 for an entity that is not observed gives a sort key: foods come before players, and within each kind
        # the observed entities come first.
        self._sort_key = torch.tensor([0] * board.foods + [2] * board.players, dtype=torch.uint8, device=device)

    def reset(self) -> Observation:
        """Start a new episode in every copy."""
        return self._start(*sample_start(self.board, self.num_envs, self._generator))

    def set_positions(self, agents: Tensor, foods: Tensor) -> Observation:
        """Start an episode in a given state instead of a random one.

        Args:
            agents: [N, n, 3] rows (row, column, level).
            foods: [N, F, 3] rows (row, column, level), in any order; (-1, -1, 0) for a food that is not on the board.

        Raises:
            ValueError: the rules do not cover the state: a wrong shape, a player off the board or on a food, a food on
                the border or off the board, or two foods so close that one player could reach both.
        """
        board = self.board
        shapes = (tuple(agents.shape), tuple(foods.shape))
        expected = ((self.num_envs, board.players, 3), (self.num_envs, board.foods, 3))
        if shapes != expected:
            raise ValueError(f"agents and foods have the shapes {shapes}; expected {expected}")
        agents, foods = (rows.to(self.device, torch.float32, copy=True) for rows in (agents, foods))
        present = foods[..., 2] > 0
        positions, food_positions = agents[..., :2], foods[..., :2]
        squared_distance = ((food_positions.unsqueeze(2) - food_positions.unsqueeze(1)) ** 2).sum(-1)
        same_food = torch.eye(board.foods, dtype=torch.bool, device=self.device)
        pairs = present.unsqueeze(2) & present.unsqueeze(1) & ~same_food
        off_board = (positions < 0).any() or (positions >= board.size).any()
        on_food = (positions.unsqueeze(2) == food_positions.unsqueeze(1)).all(-1).any()
        if off_board or on_food:
            raise ValueError(
                f"a player is off the {board.size}x{board.size} board or on a food. Players stand in rows and columns "
                f"0 to {board.size - 1}, on cells without food"
            )
        on_border = (food_positions < 1) | (food_positions > board.size - 2)
        if on_border[present].any() or (foods != self._absent)[~present].any():
            raise ValueError(
                f"a food is outside rows and columns 1 to {board.size - 2}. A food that is not on the board is "
                "(-1, -1, 0)"
            )
        if (squared_distance <= 4)[pairs].any():
            raise ValueError("two foods are within two cells of each other. Their squared distance must be above 4")
        reading_order = self._cell_number(food_positions).masked_fill(~present, torch.inf).argsort(1)
        return self._start(agents, foods.gather(1, reading_order.unsqueeze(-1).expand_as(foods)))

    def step(self, actions: Tensor) -> Step:
        """Apply the joint actions [N, n]. An action without effect counts as 'none'."""
        # Every action in a copy that has ended counts as 'none', too.
        allowed = self._effective.gather(2, actions.unsqueeze(2)).squeeze(2) & self._playing
        effective = actions * allowed
        # Players with the same target cell do not move; the target of a player that stays is its own cell. The package
        # compares targets only, so a player may enter the cell of a player that was blocked from leaving it.
        target = self._positions + embedding(effective, self._moves)
        cell = self._cell_number(target)
        clash = (cell.unsqueeze(2) == cell.unsqueeze(1)).sum(2, keepdim=True) > 1
        self._positions = self._positions.where(clash, target)

        # Foods keep a distance, so a player is next to at most one food: all loaders of a food act together.
        load_level = ((effective == _LOAD) * self._levels).unsqueeze(2) * self._adjacent
        food_level = self._foods[..., 2]
        collected = load_level.sum(1) >= food_level  # true for an absent food (level 0) too, without effect
        # The loaders of a food share level / total in proportion to their levels, so the team gets all of it.
        reward = (collected * food_level).sum(1) * self._reward_scale
        self._foods = self._absent.where(collected.unsqueeze(2), self._foods)

        self._elapsed += 1
        terminated = (self._foods[..., 2] == 0).all(1)
        self._playing = ~terminated.unsqueeze(1)
        if self._elapsed >= self.episode_limit:
            self._playing = torch.zeros_like(self._playing)
            truncated = ~terminated
        else:
            truncated = torch.zeros_like(terminated)
        observation = self._observe(actions.float())
        return Step(*observation, reward, terminated, truncated)

    def seed(self, seed: int) -> None:
        """Seed the generator of initial states."""
        self._generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator of initial states."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the generator from a `state_dict`."""
        self._generator.set_state(saved["generator"])

    def episode_metrics(self) -> dict[str, Tensor]:
        """'all_food_collected': [N] float32, 1 where no food is left."""
        return {"all_food_collected": (self._foods[..., 2] == 0).all(1).float()}

    def observation_fields(self, agent: int) -> Sequence[StateField]:
        """Foods that the agent sees, the agent itself, then other agents that it sees; missing ones last in each kind."""
        return _observation_fields(self.board, agent)

    def _start(self, agents: Tensor, foods: Tensor) -> Observation:
        """Start an episode from agents [N, n, 3] and foods [N, F, 3] in reading order."""
        self._positions, self._levels, self._foods = agents[..., :2], agents[..., 2], foods
        self._reward_scale = self._reward_share / foods[..., 2].sum(1).clamp(min=1)
        self._playing = torch.ones(self.num_envs, 1, dtype=torch.bool, device=self.device)
        self._elapsed = 0
        return self._observe(torch.full_like(self._levels, -1.0))

    def _cell_number(self, position: Tensor) -> Tensor:
        """Number the cells: [..., 2] -> [...].

        Rows are numbered two cells wider than the board. A difference of cell numbers therefore identifies a
        neighbour, even of the absent position (-1, -1).
        """
        return torch.add(position[..., 1], position[..., 0], alpha=self.board.size + 2)

    def _observe(self, last_actions: Tensor) -> Observation:
        """Observe the current positions; also update `_adjacent` and `_effective` for the next step.

        Args:
            last_actions: [N, n] float32, the actions just chosen; -1 at the start of an episode.
        """
        positions, foods, sight = self._positions, self._foods, self.board.sight
        agents = torch.cat((positions, self._levels.unsqueeze(2)), 2)
        state = torch.cat((agents.flatten(1), foods.flatten(1), last_actions), 1)

        food_positions = foods[..., :2]
        offset = self._cell_number(food_positions).unsqueeze(1) - self._cell_number(positions).unsqueeze(2)  # [N, n, F]
        # [N, n, F, 4]: the food is the player's northern, southern, western, eastern neighbour
        is_neighbour = offset.unsqueeze(3) == self._neighbour_offsets
        self._adjacent = is_neighbour.any(3)
        food_on_side = is_neighbour.any(2)
        blocked = food_on_side | (positions.index_select(2, self._edge_axis) == self._edges)
        none = torch.ones_like(self._levels, dtype=torch.bool).unsqueeze(2)
        self._effective = torch.cat((none, ~blocked, food_on_side.any(2, keepdim=True)), 2)
        available = self._effective.clone() if self._mask_ineffective else torch.ones_like(self._effective)

        # Observed positions are relative to the corner of the part of the board that the agent sees. Foods are seen up
        # to `sight` cells away. For players the package only requires that the relative position lies in 0 to
        # 2 * sight, which reaches further when the observer stands near the northern or western border.
        corner = pad((positions - sight).clamp(min=0), (0, 1)).unsqueeze(2)
        relative_foods = foods.unsqueeze(1) - corner
        relative_agents = agents[:, self._self_first] - corner
        food_distance = (food_positions.unsqueeze(1) - positions.unsqueeze(2)).abs()
        food_visible = (food_distance <= sight).all(3) & (foods[..., 2] > 0).unsqueeze(1)
        agent_visible = ((relative_agents[..., :2] - sight).abs() <= sight).all(3)
        visible = torch.cat((food_visible, agent_visible), 2)
        entities = torch.cat((relative_foods, relative_agents), 2).where(visible.unsqueeze(3), self._absent)
        order = (self._sort_key + ~visible).argsort(dim=2, stable=True)
        obs = entities.gather(2, order.unsqueeze(3).expand_as(entities)).flatten(2)
        return Observation(obs, state, available)


def _layout(board: Board) -> StateLayout:
    """Layout of the global state: players, foods, last actions."""
    absent = "collected, or never placed"
    no_action = {-1.0: "no action yet"}
    last, axes = board.size - 1.0, ("x", "y")
    fields = []
    for i in range(board.players):
        fields.append(StateField("agent", i, "position", axes, 0.0, last, "cells"))
        fields.append(StateField("agent", i, "level", ("level",), 1.0, MAX_PLAYER_LEVEL))
    for i in range(board.foods):
        fields.append(StateField("food", i, "position", axes, -1.0, last - 1, "cells", {-1.0: absent}))
        fields.append(StateField("food", i, "level", ("level",), 0.0, board.max_food_level, "", {0.0: absent}))
    for i in range(board.players):
        fields.append(StateField("agent", i, "last_action", ("action",), -1.0, _LOAD, "action index", no_action))
    return StateLayout.from_fields(fields)


def _observation_fields(board: Board, agent: int) -> list[StateField]:
    """Names of the columns of an agent's observation."""
    unseen, axes, last = {-1.0: "no other is in sight"}, ("x", "y"), board.size - 1.0
    unit, far = "cells", last
    if board.sight < board.size:
        unit, far = "cells from the north-western corner of what the agent sees", min(2.0 * board.sight, last)
    fields = []
    for i in range(board.foods):
        levels = {0.0: "no other is in sight"}
        fields.append(StateField("agent", agent, f"visible_food_{i}_position", axes, -1.0, far, unit, unseen))
        fields.append(
            StateField("agent", agent, f"visible_food_{i}_level", ("level",), 0.0, board.max_food_level, "", levels)
        )
    fields.append(StateField("agent", agent, "own_position", axes, 0.0, min(board.sight, last), unit))
    fields.append(StateField("agent", agent, "own_level", ("level",), 1.0, MAX_PLAYER_LEVEL))
    for i in range(board.players - 1):
        levels = {0.0: "no other is in sight"}
        fields.append(StateField("agent", agent, f"visible_agent_{i}_position", axes, -1.0, far, unit, unseen))
        fields.append(
            StateField("agent", agent, f"visible_agent_{i}_level", ("level",), 0.0, MAX_PLAYER_LEVEL, "", levels)
        )
    return fields


def _describe(config: Config, board: Board) -> TaskDescription:
    """Describe the task in words, with the numbers of this board."""
    size = board.size
    weakest = "the two agents" if board.players == 2 else f"the {min(3, board.players)} weakest agents"
    if board.coop:
        need = f"Every food has the summed level of {weakest}, so agents must cooperate on each food."
    else:
        need = f"A food's level is drawn from 1 to the summed level of {weakest}, so some foods need several agents."
    if board.sight < size:
        sight = f"An agent sees about {board.sight} cells far in each direction"
        sight += "; the global state shows everything." if config.state == "features" else "."
    else:
        sight = "Every agent sees the whole board."
    if config.reward == "sum":
        team_reward, max_return = "The team reward is the sum of these", "1"
    else:
        team_reward, max_return = "The team reward is the mean of these", f"1/{board.players}"
    return TaskDescription(
        env="lbf",
        task=config.task,
        goal=(
            f"{board.players} agents on a board of {size}x{size} cells collect {board.foods} foods as fast as they "
            f"can. x is the row, from 0 at the northern edge to {size - 1} at the southern; y is the column, from 0 at "
            f"the western edge to {size - 1} at the eastern. So north is x - 1, south x + 1, west y - 1, east y + 1. "
            f"Agents have levels from 1 to {MAX_PLAYER_LEVEL}, foods from 1 to {board.max_food_level}. A food is "
            "collected when agents in cells next to it (north, south, west or east of it, not diagonal) load in the "
            "same step and their levels add up to at least its level; otherwise loading does nothing. "
            f"{need} Agents cannot enter the cell of a food, nor leave the board; agents that would move to the same "
            f"cell, or to that of an agent that chose to stay, do not move. {sight}"
        ),
        reward=(
            "Each agent that helps to load a food gets (food level x its own level / summed level of all who load it), "
            f"divided by the summed level of all foods at the start. {team_reward} over the agents; a whole episode "
            f"gives at most {max_return}. Nothing else is rewarded or punished."
        ),
        actions=ACTIONS,
        episode=f"Ends when all foods are collected (terminated) or after {config.episode_limit} steps (truncated).",
        n_agents=board.players,
    )
