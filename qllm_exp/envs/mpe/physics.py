"""VMAS's physics for worlds of circles that only forces move, with all entities in one tensor.

VMAS computes each entity and each pair of entities with separate operations (in simple_tag ten times per step), so a
step costs hundreds of small tensor operations. This module does the same arithmetic in the same order on stacked
tensors; a step is several times faster.

On a CPU the numbers equal VMAS's bit for bit when the number of copies is a multiple of 32 (tests/unit/envs/test_mpe.py).
Otherwise the last bit of a collision force may differ, because torch rounds log and exp differently in the remainder of
a tensor that does not fill its vector registers.
"""

from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, Sphere
from vmas.simulator.dynamics.holonomic import Holonomic

# Constants of VMAS's `World._get_constraint_forces`.
_MIN_DISTANCE = 1e-6  # no force acts between centres that are nearer than this
_ZERO_DISTANCE = 1e-8  # replaces a distance of 0


def is_circle_world(world: Any) -> bool:
    """Whether `CirclePhysics` can advance the world.

    True if only pushes, drag and collisions of circles act in it, with the same mass and drag for all moving entities.
    """
    moving = [entity for entity in world.entities if entity.movable]
    return (
        bool(moving)
        and not world._joints
        and not world._linear_friction
        and not world._angular_friction
        and not world._gravity.any()
        and all(isinstance(entity.shape, Sphere) for entity in world.entities)
        and all(isinstance(entity, Agent) and type(entity.dynamics) is Holonomic for entity in moving)
        and len({(entity.mass, entity.drag) for entity in moving}) == 1
        and not any(_has_other_forces(entity) for entity in moving)
    )


def _has_other_forces(entity: Any) -> bool:
    """Whether friction, gravity or a limit of velocity, force or torque is set for the entity."""
    settings = (
        entity.linear_friction,
        entity.angular_friction,
        entity.gravity,
        entity.v_range,
        entity.max_f,
        entity.f_range,
        entity.max_t,
        entity.t_range,
    )
    return any(setting is not None for setting in settings)


class CirclePhysics:
    """Advances a world as VMAS's `World.step` does.

    Tensors are [entity, N, 2]: the slice of an entity is contiguous, like VMAS's own tensors.

    Args:
        world: a VMAS world for which `is_circle_world` holds.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        entities = world.entities
        self._moving = [entity for entity in entities if entity.movable]
        self._fixed = [entity for entity in entities if not entity.movable]
        first = self._moving[0]
        self._velocity_kept = 1 - (world._drag if first.drag is None else first.drag)  # fraction left by drag
        self._mass = first.mass

        device = world.device
        max_speeds = [entity.max_speed for entity in self._moving]
        self._has_speed_limit = any(speed is not None for speed in max_speeds)
        speed_limits = [float("inf") if speed is None else speed for speed in max_speeds]
        self._max_speed = torch.tensor(speed_limits, device=device)[:, None]  # [m, 1]

        row = {entity: index for index, entity in enumerate(self._moving + self._fixed)}
        pairs = [
            (a, b)
            for index, a in enumerate(entities)
            for b in entities[index + 1 :]
            if a.collides(b) and b.collides(a) and (a.movable or b.movable)
        ]
        self._has_collisions = bool(pairs)
        if not pairs:
            return
        self._first = torch.tensor([row[a] for a, _ in pairs], device=device)
        self._second = torch.tensor([row[b] for _, b in pairs], device=device)
        radius = torch.tensor([entity.shape.radius for entity in self._moving + self._fixed], device=device)
        self._reach = (radius[self._first] + radius[self._second])[:, None]  # [pairs, 1]
        # The forces on each moving entity, in the order in which VMAS adds them up. Row p of the table of forces is the
        # force of pair p on its first entity, row len(pairs) + p is that on its second, and the last row is zero.
        no_force = 2 * len(pairs)
        force_rows = [
            [p if a is entity else len(pairs) + p for p, (a, b) in enumerate(pairs) if entity in (a, b)]
            for entity in self._moving
        ]
        # The k-th tensor holds the row of the k-th force on each moving entity, [m].
        self._force_rows = [
            torch.tensor([rows[k] if k < len(rows) else no_force for rows in force_rows], device=device)
            for k in range(max(map(len, force_rows)))
        ]
        self._zero = torch.tensor(0.0, device=device)

    def step(self) -> None:
        """Advance the world by one step: read the entities' states and forces, write their positions and velocities."""
        world = self._world
        pos = torch.stack([entity.state.pos for entity in self._moving])
        vel = torch.stack([entity.state.vel for entity in self._moving])
        push = torch.stack([entity.state.force for entity in self._moving])
        fixed = torch.stack([entity.state.pos for entity in self._fixed]) if self._fixed else pos[:0]
        for substep in range(world._substeps):
            force = self._add_collisions(push, pos, fixed) if self._has_collisions else push
            if substep == 0:
                vel = vel * self._velocity_kept
            vel = vel + force / self._mass * world._sub_dt
            if self._has_speed_limit:
                speed = torch.linalg.vector_norm(vel, dim=-1)
                slowed = vel / speed.unsqueeze(-1) * self._max_speed.unsqueeze(-1)
                vel = torch.where((speed > self._max_speed).unsqueeze(-1), slowed, vel)
            pos = self._clamp_to_bounds(pos + vel * world._sub_dt)
        for index, entity in enumerate(self._moving):
            entity.state.pos = pos[index]
            entity.state.vel = vel[index]
        if world.dim_c > 0:
            for agent in world.agents:
                world._update_comm_state(agent)

    def _add_collisions(self, push: Tensor, pos: Tensor, fixed: Tensor) -> Tensor:
        """Add the collision forces to the pushes.

        Args:
            push: [m, N, 2] forces of the moving entities' own actions.
            pos: [m, N, 2] positions of the moving entities.
            fixed: [f, N, 2] positions of the entities that cannot move.

        Returns:
            Total forces on the moving entities, [m, N, 2].
        """
        world = self._world
        positions = torch.cat([pos, fixed])
        difference = positions[self._first] - positions[self._second]  # [pairs, N, 2]
        distance = torch.linalg.vector_norm(difference, dim=-1)
        margin = world._contact_margin
        overlap = torch.logaddexp(self._zero, (self._reach - distance) / margin) * margin
        divisor = torch.where(distance > 0, distance, _ZERO_DISTANCE).unsqueeze(-1)
        force = world._collision_force * difference / divisor * overlap.unsqueeze(-1)
        no_contact = ((distance < _MIN_DISTANCE) | (distance > self._reach)).unsqueeze(-1)
        force = torch.where(no_contact, 0.0, force)
        table = torch.cat([force, -force, torch.zeros_like(push[:1])])
        for rows in self._force_rows:
            push = push + table[rows]
        return push

    def _clamp_to_bounds(self, pos: Tensor) -> Tensor:
        """Keep positions [m, N, 2] inside the world."""
        x, y = self._world.x_semidim, self._world.y_semidim
        if x is None and y is None:
            return pos
        if x == y:
            return pos.clamp(-x, x)
        columns = pos.unbind(-1)
        clamped = [
            column if semidim is None else column.clamp(-semidim, semidim)
            for column, semidim in zip(columns, (x, y), strict=True)
        ]
        return torch.stack(clamped, dim=-1)
