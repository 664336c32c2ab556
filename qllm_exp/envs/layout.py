"""Names for every column of the global state, and the task in words.

The prompt for a language model, the probe states of a verifier and the credit plots are all made from these
two objects, so an environment has no second description that could drift from what it returns.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class StateField:
    """One named slice of the global state, e.g. the position of agent 1.

    Attributes:
        entity: what it belongs to, singular: 'agent', 'food', 'ball', 'landmark', 'match'.
        index: which one of them, from 0; None where there is only one.
        name: what it says: 'position', 'velocity', 'level', 'last_action'.
        components: a name per column, e.g. ('x', 'y').
        low, high: the range the values keep to; +-inf where the simulator sets none.
        unit: 'cells', 'metres', 'action index', ...; '' for a pure number.
        special: values with a meaning of their own, e.g. {-1.0: 'no action yet'}.
        start: first column; filled in by StateLayout.of.
    """

    entity: str
    index: int | None
    name: str
    components: tuple[str, ...]
    low: float
    high: float
    unit: str = ""
    special: Mapping[float, str] = field(default_factory=dict)
    start: int = -1

    @property
    def stop(self) -> int:
        return self.start + len(self.components)

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def label(self) -> str:
        """'agent 1 position'."""
        return f"{self.entity} {self.name}" if self.index is None else f"{self.entity} {self.index} {self.name}"


@dataclass(frozen=True)
class StateLayout:
    """All fields of a global state, in column order and without a gap."""

    fields: tuple[StateField, ...]

    @classmethod
    def of(cls, fields: Iterable[StateField]) -> "StateLayout":
        """Place the fields one after the other from column 0."""
        placed, start = [], 0
        for one in fields:
            placed.append(replace(one, start=start))
            start = placed[-1].stop
        labels = [one.label for one in placed]
        if len(set(labels)) != len(labels):
            raise ValueError(f"two state fields share a name: {sorted(labels)}")
        return cls(tuple(placed))

    @property
    def size(self) -> int:
        """Number of columns of the state."""
        return self.fields[-1].stop if self.fields else 0

    def __iter__(self) -> Iterator[StateField]:
        return iter(self.fields)

    def find(self, entity: str, name: str, index: int | None = None) -> StateField:
        """The field of that entity, name and index; KeyError when there is none."""
        for one in self.fields:
            if (one.entity, one.name, one.index) == (entity, name, index):
                return one
        raise KeyError(f"no state field {entity!r} {index} {name!r}")


@dataclass(frozen=True)
class TaskDescription:
    """A cooperative task in words.

    Attributes:
        env: family, e.g. 'lbf'. task: the task in it, e.g. '8x8-2p-2f-coop-2s'.
        goal: what the team is to achieve, and the rules that matter for it.
        reward: how the team reward of a step comes about, with its scale.
        actions: the meaning of each action index of an agent.
        episode: when an episode ends.
        n_agents: number of agents.
        monotonic: True when a team value that never falls in any agent's own value can represent the task
            (the IGM gate is then on under `mixer.igm=auto`); False for the non-monotonic matrix games.
    """

    env: str
    task: str
    goal: str
    reward: str
    actions: tuple[str, ...]
    episode: str
    n_agents: int
    monotonic: bool = True
