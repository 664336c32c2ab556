"""What env=pettingzoo does not support: opponents among the agents, and spaces other than Discrete actions and Box observations."""

import re
from collections.abc import Sequence
from typing import Any

from qllm_exp.errors import UserError

_OPPONENT = re.compile(r"adversary|opponent|enemy|^eve_")  # in names of agents that play against the others
_COLOURS = {"red", "blue", "green", "black", "white"}  # names of armies
_SCRIPTED = ("simple_adversary", "simple_tag", "simple_push", "simple_crypto", "simple_world_comm")  # in VMAS
_SAME_RULES = ("simple_adversary", "simple_tag")  # tasks of env=mpe with env.rules=pettingzoo


def check_names(task: str, agents: Sequence[str]) -> None:
    """Raise UserError if the names of the agents say that they are on two sides."""
    opponents = [name for name in agents if _OPPONENT.search(name)]
    armies = {name.split("_")[0] for name in agents} & _COLOURS
    if 0 < len(opponents) < len(agents):
        other = next(name for name in agents if name not in opponents)
        raise opponents_error(task, f"{opponents[0]} and {other} are on two sides")
    if len(armies) > 1:
        raise opponents_error(task, f"{' and '.join(sorted(armies))} are on two sides")


def opponents_error(task: str, reason: str) -> UserError:
    """The error of an environment whose agents are not one team."""
    name = task.rpartition(".")[2].rpartition("_v")[0]
    use = "Use"
    if name in _SCRIPTED:
        rules = " (with env.rules=pettingzoo: by the same rules)" if name in _SAME_RULES else ""
        use = f"Use env=mpe env.task={name}, where the opposing side is scripted{rules}, or"
    return UserError(
        f"env.task={task!r} has opponents ({reason}), but env=pettingzoo trains all agents as one team. {use} an environment of "
        "your own whose possible_agents are one side and whose step() plays the other."
    )


def check_discrete(task: str, agent: str, space: Any) -> None:
    """Raise UserError if an agent's action space is not Discrete."""
    # Compare by name: listing the tasks must not import gymnasium.
    if type(space).__name__ != "Discrete":
        raise UserError(
            f"env.task={task!r}: {agent} has the action space {space}. Only Discrete action spaces are supported. Many "
            "environments have an option for them, e.g. env.options.continuous_actions=false."
        )


def observation_box(task: str, agent: str, space: Any) -> Any:
    """The Box of an agent's observations, also from a Dict space with an action mask. UserError if there is none."""
    if type(space).__name__ == "Dict" and "observation" in space.spaces:
        space = space["observation"]
    if type(space).__name__ != "Box":
        raise UserError(
            f"env.task={task!r}: {agent} has the observation space {space}. Only Box observation spaces are supported."
        )
    return space
