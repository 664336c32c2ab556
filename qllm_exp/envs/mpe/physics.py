"""VMAS's physics for worlds of circles that forces alone move, all entities in one tensor instead of one by one.

VMAS computes each entity and, ten times a step in simple_tag, each pair of entities with operations of their own, so
that a step costs the time of hundreds of small tensor operations. Here the same arithmetic is done in the same order
on stacked tensors, and a step is several times faster. On a CPU the numbers are equal bit for bit when the number of
copies is a multiple of 32 (tests/unit/test_mpe.py); otherwise the last bit of a collision's force may differ, because
torch rounds log and exp differently in the remainder of a tensor that does not fill its vector registers.
"""

from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import Agent, Sphere
from vmas.simulator.dynamics.holonomic import Holonomic

# VMAS's `World._get_constraint_forces`: no force between centres nearer than this, and what replaces a distance of 0.
_MIN_DISTANCE = 1e-6
_NO_DISTANCE = 1e-8


def is_plain(world: Any) -> bool:
    """True if nothing but pushes, drag and collisions of circles acts in this world, alike on all that moves."""
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
        and all(
            limit is None
            for entity in moving
            for limit in (
                entity.linear_friction,
                entity.angular_friction,
                entity.gravity,
                entity.v_range,
                entity.max_f,
                entity.f_range,
                entity.max_t,
                entity.t_range,
            )
        )
    )


class CirclePhysics:
    """Advances a world for which `is_plain` holds, as `World.step` does.

    Tensors are [entity, N, 2], so that the slice of an entity is contiguous, as VMAS's own are.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        entities = world.entities
        self._moving = [entity for entity in entities if entity.movable]
        self._fixed = [entity for entity in entities if not entity.movable]
        first = self._moving[0]
        self._kept = 1 - (world._drag if first.drag is None else first.drag)  # share of the velocity that drag leaves
        self._mass = first.mass

        device = world.device
        speeds = [entity.max_speed for entity in self._moving]
        self._limited = any(speed is not None for speed in speeds)
        unlimited = [float("inf") if speed is None else speed for speed in speeds]
        self._max_speed = torch.tensor(unlimited, device=device)[:, None]  # [m, 1]

        row = {entity: index for index, entity in enumerate(self._moving + self._fixed)}
        pairs = [
            (a, b)
            for index, a in enumerate(entities)
            for b in entities[index + 1 :]
            if a.collides(b) and b.collides(a) and (a.movable or b.movable)
        ]
        self._collide = bool(pairs)
        if not pairs:
            return
        self._first = torch.tensor([row[a] for a, _ in pairs], device=device)
        self._second = torch.tensor([row[b] for _, b in pairs], device=device)
        radius = torch.tensor([entity.shape.radius for entity in self._moving + self._fixed], device=device)
        self._reach = (radius[self._first] + radius[self._second])[:, None]  # [pairs, 1]
        # Which forces act on each moving entity, in VMAS's order of adding them up: row p of the table of forces is
        # pair p's force on its first entity, row len(pairs) + p that on its second, and the last row is no force.
        acting = [
            [p if a is entity else len(pairs) + p for p, (a, b) in enumerate(pairs) if entity in (a, b)]
            for entity in self._moving
        ]
        most = max(map(len, acting))
        self._acting = [
            torch.tensor([rows[k] if k < len(rows) else 2 * len(pairs) for rows in acting], device=device)
            for k in range(most)
        ]
        self._zero = torch.tensor(0.0, device=device)

    def step(self) -> None:
        """One step of the world: reads the entities' states and pushes, and writes the new positions and velocities."""
        world = self._world
        pos = torch.stack([entity.state.pos for entity in self._moving])
        vel = torch.stack([entity.state.vel for entity in self._moving])
        push = torch.stack([entity.state.force for entity in self._moving])
        fixed = torch.stack([entity.state.pos for entity in self._fixed]) if self._fixed else pos[:0]
        for substep in range(world._substeps):
            force = self._add_collisions(push, pos, fixed) if self._collide else push
            if substep == 0:
                vel = vel * self._kept
            vel = vel + force / self._mass * world._sub_dt
            if self._limited:
                speed = torch.linalg.vector_norm(vel, dim=-1)
                slowed = vel / speed.unsqueeze(-1) * self._max_speed.unsqueeze(-1)
                vel = torch.where((speed > self._max_speed).unsqueeze(-1), slowed, vel)
            pos = self._inside(pos + vel * world._sub_dt)
        for index, entity in enumerate(self._moving):
            entity.state.pos = pos[index]
            entity.state.vel = vel[index]
        if world.dim_c > 0:
            for agent in world.agents:
                world._update_comm_state(agent)

    def _add_collisions(self, push: Tensor, pos: Tensor, fixed: Tensor) -> Tensor:
        world = self._world
        places = torch.cat([pos, fixed])
        apart = places[self._first] - places[self._second]  # [pairs, N, 2]
        distance = torch.linalg.vector_norm(apart, dim=-1)
        margin = world._contact_margin
        overlap = torch.logaddexp(self._zero, (self._reach - distance) / margin) * margin
        size = torch.where(distance > 0, distance, _NO_DISTANCE).unsqueeze(-1)
        force = world._collision_force * apart / size * overlap.unsqueeze(-1)
        without = ((distance < _MIN_DISTANCE) | (distance > self._reach)).unsqueeze(-1)
        force = torch.where(without, 0.0, force)
        table = torch.cat([force, -force, torch.zeros_like(push[:1])])
        for rows in self._acting:
            push = push + table[rows]
        return push

    def _inside(self, pos: Tensor) -> Tensor:
        x, y = self._world.x_semidim, self._world.y_semidim
        if x is None and y is None:
            return pos
        if x == y:
            return pos.clamp(-x, x)
        columns = pos.unbind(-1)
        limited = [
            column if semidim is None else column.clamp(-semidim, semidim)
            for column, semidim in zip(columns, (x, y), strict=True)
        ]
        return torch.stack(limited, dim=-1)
