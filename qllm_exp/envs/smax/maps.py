"""Unit types and maps of SMAX, with the numbers of jaxmarl 0.2.0."""

from typing import NamedTuple

MAP_SIZE = 32.0  # length of a side of the map
SUB_STEPS = 8  # sub-steps of one step
SUB_STEP_S = 1 / 16  # seconds of a sub-step
MAX_STEPS = 100  # steps of an episode
COOLDOWN_SPREAD = (-SUB_STEP_S, 2 * SUB_STEP_S)  # seconds; a draw from it is added to the cooldown of every shot
MOVES = ("north", "east", "south", "west")  # actions 0 to 3; north is y + 1
STOP = len(MOVES)
FIRST_ATTACK = STOP + 1  # action FIRST_ATTACK + k attacks the k-th unit of the other side
START_SPREAD = 2.0  # units start within this distance of their team's place, in x and in y


class UnitType(NamedTuple):
    """Numbers of one type of unit.

    Attributes:
        name: e.g. 'marine'.
        speed: per second.
        attack: health that a shot takes.
        reach: distance below which it can attack.
        sight: distance below which it sees another unit.
        radius: of its body; bodies do not overlap.
        health: at the start.
        cooldown: seconds between two shots.
    """

    name: str
    speed: float
    attack: float
    reach: float
    sight: float
    radius: float
    health: float
    cooldown: float


UNIT_TYPES = {
    "m": UnitType("marine", 3.15, 9.0, 5.0, 9.0, 0.375, 45.0, 0.61),
    "M": UnitType("marauder", 2.25, 10.0, 6.0, 10.0, 0.5625, 125.0, 1.07),
    "s": UnitType("stalker", 4.13, 13.0, 6.0, 10.0, 0.625, 160.0, 1.87),
    "Z": UnitType("zealot", 3.15, 8.0, 2.0, 9.0, 0.5, 150.0, 0.86),
    "z": UnitType("zergling", 4.13, 5.0, 2.0, 8.0, 0.375, 35.0, 0.5),
    "h": UnitType("hydralisk", 3.15, 12.0, 5.0, 9.0, 0.625, 80.0, 0.59),
}


class Map(NamedTuple):
    """Who fights whom.

    Attributes:
        allies: a letter of UNIT_TYPES per ally.
        enemies: a letter per enemy.
        drawn: the types of the allies, and the places of all units, are drawn for each episode, as in SMACv2. The enemies then
            have the types of the allies.
    """

    allies: str
    enemies: str
    drawn: bool = False

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.allies) + len(self.enemies)


# In the names of SMAC's maps z are zealots; here they are Z, as in jaxmarl's table of types.
MAPS = {
    "3m": Map("mmm", "mmm"),
    "2s3z": Map("ssZZZ", "ssZZZ"),
    "8m": Map("m" * 8, "m" * 8),
    "5m_vs_6m": Map("m" * 5, "m" * 6),
    "3s5z": Map("sssZZZZZ", "sssZZZZZ"),
    "3s_vs_5z": Map("sss", "ZZZZZ"),
    "6h_vs_8z": Map("h" * 6, "Z" * 8),
    "27m_vs_30m": Map("m" * 27, "m" * 30),
    "smacv2_5_units": Map("m" * 5, "m" * 5, drawn=True),
    "smacv2_10_units": Map("m" * 10, "m" * 10, drawn=True),
    "smacv2_20_units": Map("m" * 20, "m" * 20, drawn=True),
}
