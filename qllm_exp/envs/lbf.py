"""Level-based foraging: the rules of lbforaging 2.0.0 (`Foraging-...-v3`) for N copies at once, in tensors.

Rules, levels, observations and rewards are those of the package's registered ids (players of level 1 to 2, foods of
level 1 to the sum of the three lowest player levels, no penalty, rewards normalised); the global state is the one of
the QLLM code (arXiv 2504.12961). Two things differ. The package calls every end "done", here a time limit truncates.
In its second and later episodes the package keeps the players off the cells where they last stood; here episodes are
independent of each other, as in the package's first one.

Shapes: N copies (num_envs), n players (n_agents), F foods, A = 6 actions. A position is (row, column), in cells.
"""

import re
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
    name: str = "lbf"
    task: str = "8x8-2p-2f-coop-2s"
    episode_limit: int = schema.number(50, 1)


ACTIONS = ("none", "north", "south", "west", "east", "load")
MAX_PLAYER_LEVEL = 2
_LOAD = ACTIONS.index("load")
_MOVES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0))  # (row, column), per action
_GONE = (-1.0, -1.0, 0.0)  # the row of a food that is not there, and of an entity that is not seen
_SPAWN_ATTEMPTS = 1000  # cells that are tried for all foods of an episode together
_LEVEL_DRAWS = 60  # a multiple of every possible highest food level, so that draws modulo that level are uniform

_TASKS = (
    *("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s", "10x10-3p-3f-coop-2s", "15x15-4p-3f-2s", "15x15-4p-3f-coop-2s"),
    *("8x8-2p-2f-coop", "10x10-3p-3f", "10x10-3p-3f-coop", "15x15-4p-3f", "15x15-4p-3f-coop"),
    *("15x15-3p-5f", "15x15-4p-5f"),
)
_GRAMMAR = re.compile(r"([1-9]\d*)x\1-([1-9]\d*)p-([1-9]\d*)f(-coop)?(-2s)?")


class Board(NamedTuple):
    """What a task string says: SIZExSIZE-[players]p-[foods]f[-coop][-2s]."""

    size: int  # cells along one side
    players: int
    foods: int
    coop: bool  # every food needs the three lowest player levels together
    sight: int  # cells in each direction; the whole board when equal to size

    @property
    def top_food_level(self) -> int:
        return MAX_PLAYER_LEVEL * min(3, self.players)


def tasks() -> list[str]:
    """The usual tasks, default first; every other string of the same grammar is accepted too."""
    return list(_TASKS)


def check(config: Config) -> None:
    """UserError when there is no such task."""
    parse_task(config.task)


def make(config: Config, num_envs: int, seed: int, device: torch.device) -> "LevelBasedForaging":
    """Build `num_envs` copies of `config.task`."""
    return LevelBasedForaging(config, num_envs, seed, device)


def parse_task(task: str) -> Board:
    """Read a task string. UserError for another grammar, or for numbers that make no board to play on."""
    form = "[SIZE]x[SIZE]-[P]p-[F]f[-coop][-2s]"
    match = _GRAMMAR.fullmatch(task)
    if match is None:
        raise UserError(
            f"env.task={task!r} is not a foraging task.{nearest(task, _TASKS)} Allowed: {form}, with one size for both "
            f"sides, P players, F foods, -coop when each food takes the level of the three weakest players together, and "
            f"-2s for a sight of 2 cells; for example {', '.join(_TASKS)}."
        )
    size, players, foods = (int(number) for number in match.group(1, 2, 3))
    # Foods keep a distance, so that no two of them, each with its four neighbours, share a cell: 5 cells a food.
    for wrong, allowed in (
        (size < 5, "a size of at least 5"),
        (not 2 <= players <= size * size // 2, f"2 to {size * size // 2} players (half of the cells)"),
        (foods > size * size // 5, f"1 to {size * size // 5} foods (they keep a distance from each other)"),
    ):
        if wrong:
            hint = nearest(task, _TASKS)
            raise UserError(f"env.task={task!r} cannot be played.{hint} Allowed: {form} with {allowed}.")
    return Board(size, players, foods, match.group(4) is not None, 2 if match.group(5) else size)


def sample_start(board: Board, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw initial states, distributed as the package's, on the generator's device and without a host read.

    Returns agents [N, n, 3] and foods [N, F, 3], float32 rows (row, column, level). Players stand on different cells,
    foods off the border, on no player and more than two cells from each other (squared distance above 4). The foods
    are in reading order; those for which no cell was found come last as (-1, -1, 0).
    """
    size, device = board.size, generator.device
    cells = torch.arange(size * size, device=device)
    row, column = cells // size, cells % size
    inner = (row > 0) & (row < size - 1) & (column > 0) & (column < size - 1)

    # The cells in a random order: players take the first ones, each food the first that is still free. Given what was
    # taken, the order of the others remains uniform, so each food's cell is uniform over the free cells.
    order = torch.rand(num_envs, size * size, generator=generator, device=device)
    player_cell = order.topk(board.players).indices
    free = inner.expand(num_envs, -1).scatter(1, player_cell, False)
    # The package draws inner cells until one is free, 1000 times for all foods together. The number of draws for one
    # food is geometric in the share of free cells; with none free it is infinite.
    luck = 1 - torch.rand(num_envs, board.foods, generator=generator, device=device)
    attempts = torch.zeros(num_envs, device=device)
    food_cells = []
    for log_luck in luck.log().unbind(1):
        share = free.sum(1) / (size - 2) ** 2
        attempts = attempts + (log_luck / torch.log1p(-share)).floor() + 1
        cell = order.masked_fill(~free, -1).argmax(1, keepdim=True)
        free = free & ((row - row[cell]) ** 2 + (column - column[cell]) ** 2 > 4)
        food_cells.append(cell.squeeze(1).where(attempts <= _SPAWN_ATTEMPTS, size * size))
    food_cell = torch.stack(food_cells, 1).sort().values

    player_level = torch.randint(1, MAX_PLAYER_LEVEL + 1, player_cell.shape, generator=generator, device=device)
    top = player_level.sort().values[:, :3].sum(1, keepdim=True).expand(-1, board.foods)
    draw = torch.randint(_LEVEL_DRAWS, food_cell.shape, generator=generator, device=device)
    food_level = top if board.coop else draw % top + 1

    agents = torch.stack((player_cell // size, player_cell % size, player_level), -1).float()
    foods = torch.stack((food_cell // size, food_cell % size, food_level), -1).float()
    gone = torch.tensor(_GONE, device=device)
    return agents, foods.where((food_cell < size * size).unsqueeze(-1), gone)


class LevelBasedForaging(TeamEnv):
    """N copies of one foraging task, see the module."""

    n_actions = len(ACTIONS)

    # The episode under way:
    _where: Tensor  # [N, n, 2] float32, positions of the players
    _levels: Tensor  # [N, n] float32, their levels
    _foods: Tensor  # [N, F, 3] float32 rows (row, column, level)
    _adjacent: Tensor  # [N, n, F] bool, who stands next to which food
    _available: Tensor  # [N, n, A] bool
    _playing: Tensor  # [N, 1] bool, the copies that have not ended
    _reward_scale: Tensor  # [N] float32, team reward per level of food
    _elapsed: int  # steps

    def __init__(self, config: Config, num_envs: int, seed: int, device: torch.device) -> None:
        board = self.board = parse_task(config.task)
        self.num_envs, self.n_agents, self.episode_limit = num_envs, board.players, config.episode_limit
        self.obs_dim = 3 * (board.foods + board.players)
        self.device = device
        self.layout = _layout(board)
        self.task = _describe(config, board)
        self._per_head = 1 / board.players if config.reward == "mean" else 1.0
        self._generator = torch.Generator(device)
        self.seed(seed)

        last = board.size - 1.0
        self._moves = torch.tensor(_MOVES, device=device)  # [A, 2]
        self._beside = self._cell_number(self._moves[1:_LOAD])  # [4]
        self._gone = torch.tensor(_GONE, device=device)
        self._edges = torch.tensor((0.0, last, 0.0, last), device=device)  # north, south, west, east
        self._edge_axis = torch.tensor((0, 0, 1, 1), device=device)
        me_first = [[i, *(j for j in range(board.players) if j != i)] for i in range(board.players)]
        self._me_first = torch.tensor(me_first, device=device)  # [n, n]
        # Sorting by this plus 1 where unseen moves what is seen to the front, foods and players each among themselves.
        self._kind = torch.tensor([0] * board.foods + [2] * board.players, dtype=torch.uint8, device=device)

    def reset(self) -> Observation:
        return self._start(*sample_start(self.board, self.num_envs, self._generator))

    def set_positions(self, agents: Tensor, foods: Tensor) -> Observation:
        """Start an episode in a given state instead of a random one.

        Args:
            agents: [N, n, 3] rows (row, column, level).
            foods: [N, F, 3] rows (row, column, level), in any order; (-1, -1, 0) for a food that is not there.

        Raises:
            ValueError: a wrong shape, a player off the board or on a food, a food on the border or off the board, or
                two foods so close that one player could reach both: the rules say nothing about such states.
        """
        board = self.board
        given = (tuple(agents.shape), tuple(foods.shape))
        expected = ((self.num_envs, board.players, 3), (self.num_envs, board.foods, 3))
        if given != expected:
            raise ValueError(f"agents and foods have the shapes {given}, not {expected}")
        agents, foods = (rows.to(self.device, torch.float32, copy=True) for rows in (agents, foods))
        there = foods[..., 2] > 0
        where, food_at = agents[..., :2], foods[..., :2]
        apart = ((food_at.unsqueeze(2) - food_at.unsqueeze(1)) ** 2).sum(-1)
        pairs = there.unsqueeze(2) & there.unsqueeze(1) & ~torch.eye(board.foods, dtype=torch.bool, device=self.device)
        on_food = (where.unsqueeze(2) == food_at.unsqueeze(1)).all(-1).any()
        if (where < 0).any() or (where >= board.size).any() or on_food:
            raise ValueError(f"a player is off the {board.size}x{board.size} board or on a food")
        if ((food_at < 1) | (food_at > board.size - 2))[there].any() or (foods != self._gone)[~there].any():
            raise ValueError(f"a food is not inside rows and columns 1 to {board.size - 2}, nor (-1, -1, 0)")
        if (apart <= 4)[pairs].any():
            raise ValueError("two foods are within two cells of each other")
        reading = self._cell_number(food_at).masked_fill(~there, torch.inf).argsort(1)
        return self._start(agents, foods.gather(1, reading.unsqueeze(-1).expand_as(foods)))

    def step(self, actions: Tensor) -> Step:
        # An action that is not available counts as none, and so does every action in a copy that has ended.
        allowed = self._available.gather(2, actions.unsqueeze(2)).squeeze(2) & self._playing
        done = actions * allowed
        # Whoever would share the target cell with another stays; one that stays counts with its own cell. The package
        # looks at targets only, so a player may enter the cell of one that wanted to leave and could not.
        target = self._where + embedding(done, self._moves)
        cell = self._cell_number(target)
        clash = (cell.unsqueeze(2) == cell.unsqueeze(1)).sum(2, keepdim=True) > 1
        self._where = self._where.where(clash, target)

        # Foods keep a distance, so a player is next to one food at most: all loaders of a food act together.
        strength = ((done == _LOAD) * self._levels).unsqueeze(2) * self._adjacent
        food_level = self._foods[..., 2]
        taken = strength.sum(1) >= food_level  # a food that is gone has level 0: taken again, without effect
        # The loaders of a food share level / total in proportion to their levels, so the team gets all of it.
        reward = (taken * food_level).sum(1) * self._reward_scale
        self._foods = self._gone.where(taken.unsqueeze(2), self._foods)

        self._elapsed += 1
        terminated = (self._foods[..., 2] == 0).all(1)
        self._playing = ~terminated.unsqueeze(1)
        if self._elapsed >= self.episode_limit:
            self._playing = torch.zeros_like(self._playing)
            truncated = ~terminated
        else:
            truncated = torch.zeros_like(terminated)
        seen = self._observe(actions.float())
        return Step(*seen, reward, terminated, truncated)

    def seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._generator.set_state(saved["generator"])

    def episode_metrics(self) -> dict[str, Tensor]:
        """'all_food_collected' [N] float32: 1 where no food is left."""
        return {"all_food_collected": (self._foods[..., 2] == 0).all(1).float()}

    def _start(self, agents: Tensor, foods: Tensor) -> Observation:
        self._where, self._levels, self._foods = agents[..., :2], agents[..., 2], foods
        self._reward_scale = self._per_head / foods[..., 2].sum(1).clamp(min=1)
        self._playing = torch.ones(self.num_envs, 1, dtype=torch.bool, device=self.device)
        self._elapsed = 0
        return self._observe(torch.full_like(self._levels, -1.0))

    def _cell_number(self, position: Tensor) -> Tensor:
        """[..., 2] -> [...]. So wide a numbering that neighbours are told by the difference, those of (-1, -1) too."""
        return torch.add(position[..., 1], position[..., 0], alpha=self.board.size + 2)

    def _observe(self, last_actions: Tensor) -> Observation:
        """What is seen now; also notes who is next to which food, and the available actions, for the next step."""
        where, foods, sight = self._where, self._foods, self.board.sight
        agents = torch.cat((where, self._levels.unsqueeze(2)), 2)
        state = torch.cat((agents.flatten(1), foods.flatten(1), last_actions), 1)

        food_at = foods[..., :2]
        apart = self._cell_number(food_at).unsqueeze(1) - self._cell_number(where).unsqueeze(2)  # [N, n, F]
        beside = apart.unsqueeze(3) == self._beside  # [N, n, F, 4]: the food is to the north, south, west, east
        self._adjacent = beside.any(3)
        food_side = beside.any(2)
        blocked = food_side | (where.index_select(2, self._edge_axis) == self._edges)
        none = torch.ones_like(self._levels, dtype=torch.bool).unsqueeze(2)
        self._available = torch.cat((none, ~blocked, food_side.any(2, keepdim=True)), 2)

        # Positions are told from the corner of the part of the board that the agent sees. Foods are seen up to `sight`
        # cells away; for players the package asks only that the told position lies in 0 to 2 * sight, which reaches
        # further when the agent stands near the northern or western border.
        corner = pad((where - sight).clamp(min=0), (0, 1)).unsqueeze(2)
        foods_told = foods.unsqueeze(1) - corner
        agents_told = agents[:, self._me_first] - corner
        away = (food_at.unsqueeze(1) - where.unsqueeze(2)).abs()
        food_seen = (away <= sight).all(3) & (foods[..., 2] > 0).unsqueeze(1)
        agent_seen = ((agents_told[..., :2] - sight).abs() <= sight).all(3)
        seen = torch.cat((food_seen, agent_seen), 2)
        told = torch.cat((foods_told, agents_told), 2).where(seen.unsqueeze(3), self._gone)
        order = (self._kind + ~seen).argsort(dim=2, stable=True)
        obs = told.gather(2, order.unsqueeze(3).expand_as(told)).flatten(2)
        return Observation(obs, state, self._available.clone())


def _layout(board: Board) -> StateLayout:
    """Columns of the global state: players, foods, last actions."""
    gone = "collected, or never placed"
    unset = {-1.0: "no action yet"}
    last, axes = board.size - 1.0, ("x", "y")
    fields = []
    for i in range(board.players):
        fields.append(StateField("agent", i, "position", axes, 0.0, last, "cells"))
        fields.append(StateField("agent", i, "level", ("level",), 1.0, MAX_PLAYER_LEVEL))
    for i in range(board.foods):
        fields.append(StateField("food", i, "position", axes, -1.0, last - 1, "cells", {-1.0: gone}))
        fields.append(StateField("food", i, "level", ("level",), 0.0, board.top_food_level, "", {0.0: gone}))
    for i in range(board.players):
        fields.append(StateField("agent", i, "last_action", ("action",), -1.0, _LOAD, "action index", unset))
    return StateLayout.of(fields)


def _describe(config: Config, board: Board) -> TaskDescription:
    """The task in words, with its own numbers."""
    size, together = board.size, min(3, board.players)
    who = "the two agents" if board.players == 2 else f"the {together} weakest agents"
    if board.coop:
        need = f"Every food has the summed level of {who}, so agents must cooperate on each food."
    else:
        need = f"A food's level is drawn from 1 to the summed level of {who}, so some foods need several agents."
    if board.sight < size:
        sight = f"An agent sees about {board.sight} cells far in each direction; the global state shows everything."
    else:
        sight = "Every agent sees the whole board."
    team = "The team reward is the sum of these" if config.reward == "sum" else "The team reward is the mean of these"
    total = "1" if config.reward == "sum" else f"1/{board.players}"
    return TaskDescription(
        env="lbf",
        task=config.task,
        goal=(
            f"{board.players} agents on a board of {size}x{size} cells collect {board.foods} foods as fast as they "
            f"can. x is the row, from 0 at the northern edge to {size - 1} at the southern; y is the column, from 0 at "
            f"the western edge to {size - 1} at the eastern. So north is x - 1, south x + 1, west y - 1, east y + 1. "
            f"Agents have levels from 1 to {MAX_PLAYER_LEVEL}, foods from 1 to {board.top_food_level}. A food is "
            "collected when agents in cells next to it (north, south, west or east of it, not diagonal) load in the "
            "same step and their levels add up to at least its level; otherwise loading does nothing. "
            f"{need} Agents cannot enter the cell of a food, nor leave the board; agents that would move to the same "
            f"cell, or to that of an agent that chose to stay, do not move. {sight}"
        ),
        reward=(
            "Each agent that helps to load a food gets (food level x its own level / summed level of all who load it), "
            f"divided by the summed level of all foods at the start. {team} over the agents; a whole episode gives at "
            f"most {total}. Nothing else is rewarded or punished."
        ),
        actions=ACTIONS,
        episode=f"Ends when all foods are collected (terminated) or after {config.episode_limit} steps (truncated).",
        n_agents=board.players,
    )
