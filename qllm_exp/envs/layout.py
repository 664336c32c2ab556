"""Names for every column of the global state, and the task in words.

The prompt for a language model, the probe states of the verifier and the credit plots are all made from these
two objects, so no second description of an environment can drift from what the environment returns.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class StateField:
    """One named slice of the global state, e.g. the position of agent 1.

    Attributes:
        entity: kind of entity that the field belongs to, singular: 'agent', 'food', 'ball', 'landmark', 'match'.
        index: index of the entity among its kind, from 0; None where there is only one.
        name: the quantity: 'position', 'velocity', 'level', 'last_action'.
        components: a name per column, e.g. ('x', 'y').
        low: lower bound of the values; -inf where the simulator sets none.
        high: upper bound of the values; inf where the simulator sets none.
        unit: 'cells', 'metres', 'action index', ...; '' for a pure number.
        special: values with a meaning of their own, e.g. {-1.0: 'no action yet'}.
        one_hot: whether exactly one of the components is 1 and the others are 0.
        start: first column; set by StateLayout.from_fields.
    """

    entity: str
    index: int | None
    name: str
    components: tuple[str, ...]
    low: float
    high: float
    unit: str = ""
    special: Mapping[float, str] = field(default_factory=dict)
    one_hot: bool = False
    start: int = -1

    @property
    def stop(self) -> int:
        """The column after the last one."""
        return self.start + len(self.components)

    @property
    def columns(self) -> slice:
        """The columns as a slice."""
        return slice(self.start, self.stop)

    @property
    def label(self) -> str:
        """Entity, index and name, e.g. 'agent 1 position'."""
        return f"{self.entity} {self.name}" if self.index is None else f"{self.entity} {self.index} {self.name}"


def numbered_field(
    entity: str, index: int | None, name: str, width: int, low: float = -math.inf, high: float = math.inf
) -> StateField:
    """Return a field whose components are only numbered.

    Args:
        entity: kind of entity.
        index: index among its kind; None where there is only one.
        name: the quantity.
        width: number of columns.
        low: lower bound of the values.
        high: upper bound of the values.
    """
    return StateField(entity, index, name, tuple(f"component_{column}" for column in range(width)), low, high)


def padded_fields(agent: int, fields: Sequence[StateField], width: int) -> list[StateField]:
    """Return the fields of an agent's observation, with one for the zeros that pad it.

    Args:
        agent: index of the agent.
        fields: those of the observation itself.
        width: columns of the padded observation.
    """
    missing = width - sum(len(state_field.components) for state_field in fields)
    padding = [numbered_field("agent", agent, "padding", missing, 0.0, 0.0)] if missing else []
    return [*fields, *padding]


@dataclass(frozen=True)
class StateLayout:
    """All fields of a global state, in column order and without gaps.

    Attributes:
        fields: the fields, each with its first column.
    """

    fields: tuple[StateField, ...]

    @classmethod
    def from_fields(cls, fields: Iterable[StateField]) -> "StateLayout":
        """Place the fields one after the other, from column 0.

        Args:
            fields: in column order; their `start` is ignored.

        Raises:
            ValueError: two fields have the same label.
        """
        placed, start = [], 0
        for state_field in fields:
            placed.append(replace(state_field, start=start))
            start = placed[-1].stop
        labels = [state_field.label for state_field in placed]
        if len(set(labels)) != len(labels):
            repeated = sorted({label for label in labels if labels.count(label) > 1})
            raise ValueError(f"state fields must have distinct labels; repeated: {', '.join(repeated)}")
        return cls(tuple(placed))

    @property
    def size(self) -> int:
        """Number of columns of the state."""
        return self.fields[-1].stop if self.fields else 0

    def __iter__(self) -> Iterator[StateField]:
        """Iterate over the fields in column order."""
        return iter(self.fields)

    def find(self, entity: str, name: str, index: int | None = None) -> StateField:
        """Return the field of an entity.

        Args:
            entity: kind of entity, e.g. 'agent'.
            name: the quantity, e.g. 'position'.
            index: index of the entity; None where there is only one.

        Raises:
            KeyError: the layout has no such field.
        """
        for state_field in self.fields:
            if (state_field.entity, state_field.name, state_field.index) == (entity, name, index):
                return state_field
        labels = ", ".join(state_field.label for state_field in self.fields)
        raise KeyError(f"no state field with entity {entity!r}, index {index} and name {name!r}. Fields: {labels}")


@dataclass(frozen=True)
class TaskDescription:
    """A cooperative task in words.

    Attributes:
        env: environment family, e.g. 'lbf'.
        task: the task within the family, e.g. '8x8-2p-2f-coop-2s'.
        goal: what the team is to achieve, and the rules that matter for it.
        reward: how the team reward of a step is computed, with its scale.
        actions: the meaning of each action index of an agent.
        episode: when an episode ends.
        n_agents: number of agents.
        monotonic: True if a team value that is non-decreasing in each agent's own value can represent the task
            (`mixer.igm=auto` then turns the IGM gate on); False for the non-monotonic matrix games.
    """

    env: str
    task: str
    goal: str
    reward: str
    actions: tuple[str, ...]
    episode: str
    n_agents: int
    monotonic: bool = True
