"""The layout of SMAX's global state, and a map in words."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from qllm_exp.envs.layout import StateField, StateLayout, TaskDescription
from qllm_exp.envs.smax.maps import FIRST_ATTACK, MAP_SIZE, MOVES, START_SPREAD, SUB_STEP_S, SUB_STEPS, UNIT_TYPES, Map

_DEAD = {0.0: "dead"}
_BEYOND = 4 / MAP_SIZE  # how far beyond the border a unit may start, or be pushed, before it dies in the next sub-step


def state_layout(battle_map: Map) -> StateLayout:
    """Layout of the global state: all columns of each unit, then the team of each, then the type of each."""
    return StateLayout.from_fields(_fields(battle_map))


def _fields(battle_map: Map) -> Iterator[StateField]:
    """Yield the fields of the global state in column order."""
    names = tuple(unit_type.name for unit_type in UNIT_TYPES.values())
    side = "share of the map's side"
    sides = (("agent", battle_map.allies), ("enemy", battle_map.enemies))
    units = [(kind, index) for kind, letters in sides for index in range(len(letters))]
    for kind, index in units:
        yield StateField(kind, index, "health", ("health",), 0.0, 1.0, "share of its full health", _DEAD)
        yield StateField(kind, index, "position", ("x", "y"), -_BEYOND, 1.0 + _BEYOND, side, _DEAD)
        yield StateField(kind, index, "cooldown", ("cooldown",), 0.0, 1.0, "share of its full cooldown; 0: can shoot")
        yield StateField(kind, index, "is_type", names, 0.0, 1.0)
    for kind, index in units:
        yield StateField(kind, index, "team", ("team",), 0.0, 1.0)
    for kind, index in units:
        yield StateField(kind, index, "type", ("type",), 0.0, len(names) - 1.0, "type index")


def observation_fields(battle_map: Map, agent: int) -> Iterator[StateField]:
    """Yield the fields of an agent's observation: all columns of each other unit, then those of its own.

    Args:
        battle_map: the map.
        agent: index of the agent.
    """
    names = tuple(unit_type.name for unit_type in UNIT_TYPES.values())
    unseen, share = {0.0: "dead, or not seen"}, "share of the agent's sight"
    allies, enemies = len(battle_map.allies), len(battle_map.enemies)
    cooldown = "share of its full cooldown; 0: can shoot"
    others = [f"agent_{ally}" for ally in range(allies) if ally != agent] + [
        f"enemy_{enemy}" for enemy in range(enemies)
    ]
    for other in others:
        targets = enemies if other.startswith("agent") else allies
        attack = f"(number of the attacked unit + {FIRST_ATTACK}) / {FIRST_ATTACK - 1 + targets}; 0: no attack"
        yield StateField(
            "agent", agent, f"health_of_{other}", ("health",), 0.0, 1.0, "share of its full health", unseen
        )
        yield StateField("agent", agent, f"offset_to_{other}", ("x", "y"), -1.0, 1.0, share, unseen)
        yield StateField("agent", agent, f"last_move_of_{other}", ("x", "y"), -1.0, 1.0, "direction of its last action")
        yield StateField("agent", agent, f"last_attack_of_{other}", ("attack",), 0.0, 1.0, attack)
        yield StateField("agent", agent, f"cooldown_of_{other}", ("cooldown",), 0.0, 1.0, cooldown)
        yield StateField("agent", agent, f"is_type_of_{other}", names, 0.0, 1.0)
    yield StateField("agent", agent, "health", ("health",), 0.0, 1.0, "share of its full health", _DEAD)
    yield StateField("agent", agent, "position", ("x", "y"), -_BEYOND, 1.0 + _BEYOND, "share of the map's side", _DEAD)
    yield StateField("agent", agent, "cooldown", ("cooldown",), 0.0, 1.0, cooldown)
    yield StateField("agent", agent, "is_type", names, 0.0, 1.0)


def describe(config: Any, battle_map: Map) -> TaskDescription:
    """Describe a map in words.

    Args:
        config: the options.
        battle_map: the map `config.task`.
    """
    allies, enemies = len(battle_map.allies), len(battle_map.enemies)
    letters = UNIT_TYPES if battle_map.drawn else dict.fromkeys(battle_map.allies + battle_map.enemies)
    seconds = SUB_STEPS * SUB_STEP_S
    rows = " ".join(
        f"{unit.name}: health {unit.health:g}, takes {unit.attack:g} health per shot, range {unit.reach:g}, cooldown "
        f"about {unit.cooldown:g} s, speed {unit.speed:g} per s, sight {unit.sight:g}, radius {unit.radius:g}."
        for unit in (UNIT_TYPES[letter] for letter in letters)
    )
    if battle_map.drawn:
        teams = (
            f"{allies} allied units fight {enemies} enemy units. The types of the allies are drawn for each episode, each "
            "equally likely, and enemy i has the type of agent i."
        )
        start = (
            "Half of the episodes start with the allies anywhere in the western half of the map and each enemy in the mirror "
            "image of an ally's place; half with one team in the centre of the map and the other in groups around it."
        )
    else:
        teams = f"{_count(battle_map.allies)} fight {_count(battle_map.enemies)} of the enemy."
        start = f"Allies start within {START_SPREAD:g} of the middle of the western half of the map, enemies of the eastern half."
    order = ", ".join(f"{number} {unit.name}" for number, unit in enumerate(UNIT_TYPES.values()))
    if config.state == "features":
        columns = (
            "; the global state shows all. Allies are agents; the columns team say 0 for allies and 1 for enemies; the columns "
            f"is_type and type say a unit's type ({order}). Of a dead unit, all columns are 0 except team and type, and it can "
            "only stop."
        )
    else:
        columns = (
            ". Allies are agents; the columns is_type say a unit's type. All columns of a unit that the agent does not see, and "
            "all that a dead agent observes of itself, are 0. A dead unit can only stop."
        )
    reward = "The team reward is"
    best = 2
    if config.reward == "sum":
        reward, best = (
            f"Each of the {allies} agents gets the same reward, and the team reward is their sum:",
            2 * allies,
        )
    factor = f"{allies} times " if config.reward == "sum" else ""
    return TaskDescription(
        env="smax",
        task=config.task,
        goal=(
            f"A battle of two teams: {teams} Each agent controls one allied unit; the agents win when all enemies are dead "
            f"and an ally lives. The map is a square with sides of {MAP_SIZE:g}; x grows to the east, y to the north; a unit "
            f"that touches the border dies. A step lasts {seconds:g} s. Units that overlap are pushed apart. A unit can shoot "
            f"a unit of the other team that is in its range, once its weapon has cooled down; a shot takes effect at once. "
            f"{rows} {start} The enemy is scripted: each enemy attacks the closest ally in its range and stays with it while "
            "it is in range; with nobody in range it follows a random ally that it sees, or else walks to the place opposite "
            f"its start. An agent sees only the units within its sight{columns}"
        ),
        reward=(
            f"{reward} {factor}(the health that enemies have lost in the step, each as a share of its own full health, summed "
            f"and divided by {enemies}), plus {factor}1 in the step in which the agents win. An episode gives at most {best}. "
            "Losing, and losing health, is not punished."
        ),
        actions=(
            *(f"move {direction}" for direction in MOVES),
            "stop",
            *(f"attack enemy {enemy}" for enemy in range(enemies)),
        ),
        episode=(
            f"Ends when all units of one team are dead (terminated) or after {config.episode_limit} steps (truncated)."
        ),
        n_agents=allies,
    )


def _count(letters: str) -> str:
    """The units in words, e.g. '2 stalkers (0 to 1) and 3 zealots (2 to 4)'."""
    parts, first = [], 0
    for letter, count in Counter(letters).items():
        plural = f"{UNIT_TYPES[letter].name}{'' if count == 1 else 's'}"
        numbers = f"number {first}" if count == 1 else f"numbers {first} to {first + count - 1}"
        parts.append(f"{count} {plural} ({numbers})")
        first += count
    return " and ".join(parts)
