"""Initial types and places of all units, from the distribution of jaxmarl 0.2.0.

Shapes: N copies, n allies, E enemies, U = n + E units, allies first.
"""

import torch
from torch import Tensor

from qllm_exp.envs.smax.maps import MAP_SIZE, START_SPREAD, UNIT_TYPES, Map

_CENTRE = MAP_SIZE / 2
_CORNERS = ((0.0, 0.0), (0.0, MAP_SIZE), (MAP_SIZE, 0.0), (MAP_SIZE, MAP_SIZE))


def sample_start(battle_map: Map, num_envs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample the start of an episode in every copy.

    Without `drawn`, the allies stand around the middle of the western half of the map, the enemies around that of the eastern
    half. With it, half of the episodes begin with the enemies in the mirror image of the allies' places, half with one team in
    the centre and the other in up to four groups around it. A unit may then start beyond the border, which kills it.

    Args:
        battle_map: the map.
        num_envs: number of copies, N.
        generator: source of the random numbers; the results are on its device.

    Returns:
        Types int64 [N, U], positions in the order of UNIT_TYPES; and positions [N, U, 2] (x, y), before overlapping units are
        pushed apart.
    """
    allies, enemies, device = len(battle_map.allies), len(battle_map.enemies), generator.device
    letters = list(UNIT_TYPES)
    if battle_map.drawn:
        drawn = torch.randint(len(letters), (num_envs, allies), generator=generator, device=device)
        reflected = torch.rand(num_envs, 1, 1, generator=generator, device=device) >= 0.5
        reflection = _sample_reflection(num_envs, allies, generator)
        return torch.cat((drawn, drawn), 1), reflection.where(
            reflected, _sample_surrounding(num_envs, allies, enemies, generator)
        )
    types = torch.tensor([letters.index(letter) for letter in battle_map.allies + battle_map.enemies])
    place = torch.tensor([[MAP_SIZE / 4, _CENTRE]] * allies + [[MAP_SIZE * 3 / 4, _CENTRE]] * enemies)
    # A blocking copy would wait for the GPU to finish the episodes before.
    types, place = (values.to(device, non_blocking=True) for values in (types, place))
    return types.repeat(num_envs, 1), place + _spread(num_envs, battle_map.size, generator)


def _sample_reflection(num_envs: int, allies: int, generator: torch.Generator) -> Tensor:
    """Allies anywhere in the western half, enemies mirrored at the vertical line through the centre, [N, 2n, 2]."""
    positions = torch.rand(num_envs, allies, 2, generator=generator, device=generator.device) * MAP_SIZE
    positions[..., 0] /= 2
    mirrored = positions.clone()
    mirrored[..., 0] = MAP_SIZE - positions[..., 0]
    return torch.cat((positions, mirrored), 1)


def _sample_surrounding(num_envs: int, allies: int, enemies: int, generator: torch.Generator) -> Tensor:
    """One team in the centre, each unit of the other in one of four groups on the lines to the corners, [N, U, 2]."""
    device, units = generator.device, allies + enemies
    allies_inside = torch.rand(num_envs, 1, generator=generator, device=device) < 0.5
    is_ally = torch.arange(units, device=device) < allies
    inside = (is_ally == allies_inside).unsqueeze(2)
    share = torch.rand(num_envs, len(_CORNERS), 1, generator=generator, device=device)
    corners = torch.tensor(_CORNERS).to(device, non_blocking=True)
    groups = share * _CENTRE + (1 - share) * corners
    group = torch.randint(len(_CORNERS), (num_envs, units, 1), generator=generator, device=device)
    outside = groups.gather(1, group.expand(-1, -1, 2))
    centre = torch.full_like(outside, _CENTRE)
    return centre.where(inside, outside) + _spread(num_envs, units, generator)


def _spread(num_envs: int, units: int, generator: torch.Generator) -> Tensor:
    """Uniform displacements [N, U, 2] of up to START_SPREAD."""
    uniform = torch.rand(num_envs, units, 2, generator=generator, device=generator.device)
    return (2 * uniform - 1) * START_SPREAD
