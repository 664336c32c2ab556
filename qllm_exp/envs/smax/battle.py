"""The rules of SMAX in torch: what a step does to the units, what the scripted enemy chooses, what is observed.

Arithmetic and its order are those of jaxmarl 0.2.0, in float32, with one exception that kernel.cpp shares: displacements and
rewards are summed in float64, so that their rounding does not depend on an order of summation.

Shapes: N copies, n allies, E enemies, U = n + E units, allies first; A = 5 + E actions of an ally.
"""

import torch
from torch import Tensor

from qllm_exp.envs.base import Observation
from qllm_exp.envs.smax.maps import (
    COOLDOWN_SPREAD,
    FIRST_ATTACK,
    MAP_SIZE,
    STOP,
    SUB_STEP_S,
    SUB_STEPS,
    UNIT_TYPES,
    Map,
)

ATTRIBUTES = ("speed", "attack", "reach", "sight", "radius", "health", "cooldown")  # columns of `unit_attributes`
OWN_FEATURES = 4 + len(UNIT_TYPES)  # health, x, y, cooldown, type bits
UNIT_FEATURES = 7 + len(UNIT_TYPES)  # health, x, y, last move (x, y), last target, cooldown, type bits
STATE_FEATURES = OWN_FEATURES + 2  # and team and type
NO_TARGET = -1

# What a move adds to a position per unit of speed and second, per action. jaxmarl rotates (+-1, +-1) / sqrt(2) by 45 degrees in
# float32, which makes the length a little less than 1.
MOVE_LENGTH = 0.99999994
MOVE_VECTORS = ((0.0, MOVE_LENGTH), (MOVE_LENGTH, 0.0), (0.0, -MOVE_LENGTH), (-MOVE_LENGTH, 0.0), (0.0, 0.0))


def unit_attributes() -> Tensor:
    """Attributes of all unit types, float32 [types, len(ATTRIBUTES)]."""
    return torch.tensor([[getattr(unit_type, name) for name in ATTRIBUTES] for unit_type in UNIT_TYPES.values()])


class Battle:
    """N copies of a battle on one map, in torch on any device.

    Args:
        battle_map: the map.
        num_envs: number of copies, N.
        device: device of all tensors.

    Attributes:
        positions: [N, U, 2] float32 (x, y).
        health: [N, U] float32; a unit with 0 is dead.
        playing: [N] bool, copies whose episode has not ended. Nothing changes in the others.
    """

    _types: Tensor  # [N, U] int64
    _cooldowns: Tensor  # [N, U] float32, seconds until the unit can shoot; falls without end
    _actions: Tensor  # [N, U] int64, the last action; an enemy numbers the allies from the last to the first
    _targets: Tensor  # [N, E] int64, current target of an enemy, numbered as in its actions; or NO_TARGET
    _homes: Tensor  # [N, E, 2] float32, the place opposite an enemy's start, where it goes if it sees nobody

    def __init__(self, battle_map: Map, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self.n_allies, self.n_enemies = len(battle_map.allies), len(battle_map.enemies)
        self.n_units = battle_map.size
        self._attributes = unit_attributes().to(device)
        self._move_vectors = torch.tensor(MOVE_VECTORS, device=device)
        self._teams = (torch.arange(self.n_units, device=device) >= self.n_allies).float()
        self._identity = torch.eye(self.n_units, device=device)
        others = [[j for j in range(self.n_units) if j != i] for i in range(self.n_allies)]
        self._others = torch.tensor(others, device=device)  # [n, U - 1]
        self._last_action = FIRST_ATTACK - 1 + torch.where(self._teams == 0, self.n_enemies, self.n_allies)  # [U]

    def start(self, types: Tensor, positions: Tensor) -> Observation:
        """Start an episode in every copy.

        Args:
            types: [N, U] int64, positions in UNIT_TYPES.
            positions: [N, U, 2] (x, y); overlapping units are pushed apart.
        """
        units, enemies = (self.num_envs, self.n_units), (self.num_envs, self.n_enemies)
        self._types = types.contiguous()
        numbers = self._attributes[types]
        self._speed, self._attack, self._reach, self._sight, self._radius, self._full_health, self._full_cooldown = (
            numbers.unbind(2)
        )
        self.health = self._full_health.clone()
        self.positions = self._push_apart(positions).contiguous()
        self._cooldowns = torch.zeros(units, device=self.device)
        self._actions = torch.full(units, STOP, device=self.device)
        self._targets = torch.full(enemies, NO_TARGET, device=self.device)
        centre = MAP_SIZE / 2
        self._homes = (centre - (self.positions[:, self.n_allies :] - centre)).contiguous()
        self.playing = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        return self._observe(self.playing)

    def step(self, actions: Tensor, follow: Tensor, cooldown_draws: Tensor) -> tuple[Observation, Tensor]:
        """Advance every copy that is still playing by one step.

        A unit shoots at most once in a step, so that one draw per unit is enough.

        Args:
            actions: [N, n] int64 of the allies.
            follow: [N, E] uniform in [0, 1), which of the allies that it sees an enemy follows.
            cooldown_draws: [N, U] uniform in [0, 1), where in COOLDOWN_SPREAD a shot's addition to the cooldown lies.

        Returns:
            Observation, with zeros in copies that were not playing; and the team reward [N].
        """
        playing = self.playing
        enemy_actions, targets = self._enemy_actions(follow)
        actions = torch.cat((actions, enemy_actions), 1)
        positions, health, cooldowns = self._advance(actions, cooldown_draws)
        enemies = slice(self.n_allies, None)
        lost = ((health - self.health) / self._full_health)[:, enemies].sum(1, dtype=torch.float64).float().abs()
        rows = playing.unsqueeze(1)
        self.positions = positions.where(rows.unsqueeze(2), self.positions)
        self.health, self._cooldowns = health.where(rows, self.health), cooldowns.where(rows, self._cooldowns)
        self._actions, self._targets = actions.where(rows, self._actions), targets.where(rows, self._targets)
        reward = (lost / self.n_enemies + self.won().float()) * playing
        allies_live, enemies_live = self._sides_alive()
        self.playing = playing & allies_live & enemies_live
        return self._observe(playing), reward

    def won(self) -> Tensor:
        """[N] bool, copies in which an ally lives and no enemy does."""
        allies_live, enemies_live = self._sides_alive()
        return allies_live & ~enemies_live

    def _sides_alive(self) -> tuple[Tensor, Tensor]:
        """[N] bool for each side, whether one of its units lives."""
        alive = self.health > 0
        return alive[:, : self.n_allies].any(1), alive[:, self.n_allies :].any(1)

    def _enemy_actions(self, follow: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the actions [N, E] of the scripted enemy, and its targets [N, E].

        An enemy attacks the closest ally in range and stays with it while it is in range. With nobody in range it follows a
        random ally that it sees, and goes to the place opposite its start if it sees nobody. Allies are numbered from the last
        to the first, which is the order in which an enemy of jaxmarl observes them.
        """
        n = self.n_allies
        own, sight = self.positions[:, n:].unsqueeze(2), self._sight[:, n:].unsqueeze(2)
        alive = self.health > 0
        delta = self.positions[:, :n].flip(1).unsqueeze(1) - own  # [N, E, n, 2]
        visible = (_length(delta) < sight) & alive[:, :n].flip(1).unsqueeze(1) & alive[:, n:].unsqueeze(2)
        delta = delta / sight.unsqueeze(3) * sight.unsqueeze(3)  # jaxmarl's enemy computes from its observation
        distance = _length(delta)
        in_range = (distance < self._reach[:, n:].unsqueeze(2)) & visible
        closest = distance.masked_fill(~in_range, torch.inf).argmin(2)
        stays = in_range.gather(2, self._targets.clamp(min=0).unsqueeze(2)).squeeze(2) & (self._targets != NO_TARGET)
        target, can_attack = self._targets.where(stays, closest), in_range.any(2)

        count = visible.sum(2)
        chosen = (follow * count).long().minimum(count - 1)
        followed = ((visible.cumsum(2) == (chosen + 1).unsqueeze(2)) & visible).byte().argmax(2)
        place = own.squeeze(2) + delta.gather(2, followed.view(*followed.shape, 1, 1).expand(-1, -1, 1, 2)).squeeze(2)
        x, y = (place.where((count > 0).unsqueeze(2), self._homes) - own.squeeze(2)).unbind(2)
        move = torch.stack((y, x, -y, -x), 2).argmax(2)
        return (FIRST_ATTACK + target).where(can_attack, move), target.where(can_attack, NO_TARGET)

    def _advance(self, actions: Tensor, cooldown_draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, health and cooldowns after the actions [N, U] of all units."""
        positions, health, cooldowns = self.positions, self.health, self._cooldowns
        units = torch.arange(self.n_units, device=self.device)
        attacked = actions - FIRST_ATTACK
        attacked = torch.where(self._teams == 0, attacked + self.n_allies, self.n_allies - 1 - attacked)
        attacks = actions >= FIRST_ATTACK
        attacked = attacked.where(attacks, units)  # [N, U]
        low, high = COOLDOWN_SPREAD
        reloaded = self._full_cooldown + (cooldown_draws * (high - low) + low)
        shift = self._move_vectors[actions.clamp(max=STOP)] * self._speed.unsqueeze(2) * SUB_STEP_S
        for _ in range(SUB_STEPS):
            alive = health > 0
            distance = _length(positions - positions.gather(1, attacked.unsqueeze(2).expand_as(positions)))
            shoots = attacks & (distance < self._reach) & alive & alive.gather(1, attacked) & (cooldowns <= 0)
            health = health.scatter_add(1, attacked, -self._attack * shoots).clamp(min=0)
            cooldowns = cooldowns + (reloaded - cooldowns).where(shoots, -SUB_STEP_S)
            positions = (positions + shift).clamp(0, MAP_SIZE).where(alive.unsqueeze(2), positions)
            on_border = ((positions <= 0) | (positions >= MAP_SIZE)).any(2)
            health = health.masked_fill(on_border, 0)
            positions = self._push_apart(positions, health > 0)
        return positions, health, cooldowns

    def _push_apart(self, positions: Tensor, alive: Tensor | None = None) -> Tensor:
        """Positions [N, U, 2] after each two living units that overlap were moved apart by half of the overlap each.

        Args:
            positions: [N, U, 2].
            alive: [N, U] bool; None: all units live.
        """
        delta = positions.unsqueeze(2) - positions.unsqueeze(1)  # [N, U, U, 2]
        distance = _length(delta) + self._identity + 1e-6
        overlap = ((self._radius.unsqueeze(2) + self._radius.unsqueeze(1)) / distance - 1).clamp(min=0)
        if alive is not None:
            overlap = overlap * (alive.unsqueeze(2) & alive.unsqueeze(1))
        return positions + (delta * overlap.unsqueeze(3)).sum(2, dtype=torch.float64).float() / 2

    def _observe(self, shown: Tensor) -> Observation:
        """Observe the current units. Copies out of `shown` [N] bool have zeros, and STOP alone is available there."""
        n = self.n_allies
        alive = (self.health > 0) & shown.unsqueeze(1)
        health = (self.health / self._full_health).unsqueeze(2)
        cooldown = (self._cooldowns / self._full_cooldown).clamp(0, 1).unsqueeze(2)
        bits = torch.nn.functional.one_hot(self._types, len(UNIT_TYPES)).float()
        own = torch.cat((health, self.positions / MAP_SIZE, cooldown, bits), 2) * alive.unsqueeze(2)
        attack = (self._actions >= FIRST_ATTACK) * self._actions / self._last_action
        move = self._move_vectors[self._actions.clamp(max=STOP)]
        common = torch.cat((move, attack.unsqueeze(2), cooldown, bits), 2)  # the same for every observer

        delta = self.positions[:, self._others] - self.positions[:, :n].unsqueeze(2)  # [N, n, U - 1, 2]
        sight = self._sight[:, :n].unsqueeze(2)
        visible = (_length(delta) < sight) & alive[:, :n].unsqueeze(2) & alive[:, self._others]
        others = torch.cat((health[:, self._others], delta / sight.unsqueeze(3), common[:, self._others]), 3)
        others = others.masked_fill(~visible.unsqueeze(3), 0)
        obs = torch.cat((others.flatten(2), own[:, :n]), 2)

        teams = self._teams * shown.unsqueeze(1)
        state = torch.cat((own.flatten(1), teams, self._types * shown.unsqueeze(1)), 1)

        moves = alive[:, :n].unsqueeze(2).expand(-1, -1, STOP)
        stop = torch.ones_like(moves[..., :1])
        delta = self.positions[:, n:].unsqueeze(1) - self.positions[:, :n].unsqueeze(2)  # [N, n, E, 2]
        in_range = _length(delta) < self._reach[:, :n].unsqueeze(2)
        attackable = in_range & alive[:, :n].unsqueeze(2) & alive[:, n:].unsqueeze(1)
        return Observation(obs, state, torch.cat((moves, stop, attackable), 2))


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length, [..., 2] -> [...], correctly rounded as in kernel.cpp, which torch's root in float32 is not."""
    x, y = vectors.unbind(-1)
    return (x * x + y * y).double().sqrt().float()
