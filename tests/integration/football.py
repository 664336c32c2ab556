"""gfootball's own environment as a reference, and joint actions to play it with."""

import importlib
import sys
import types
from typing import Any

import gfootball.env
import numpy as np

RIGHT, LONG_PASS, SHOT, SPRINT = 5, 9, 12, 13


def reference_env(task: str, agents: int, seed: int, rewards: str = "scoring,checkpoints") -> Any:
    """gfootball's own environment, with a seeded engine."""
    return gfootball.env.create_environment(
        env_name=task,
        representation="simple115v2",
        rewards=rewards,
        stacked=False,
        number_of_left_players_agent_controls=agents,
        other_config_options={"game_engine_random_seed": seed, "reverse_team_processing": bool(seed % 2)},
    )


def register_restricted(task: str, players: set[int]) -> str:
    """Register the scenario `task` with only these of our players controllable, and return its name."""
    original = importlib.import_module(f"gfootball.scenarios.{task}")

    def build_scenario(builder: Any) -> None:
        original.build_scenario(builder)
        for i, player in enumerate(builder.config().left_team):
            player.controllable = i in players

    name = f"{task}_with_{len(players)}_agents"
    module = types.ModuleType(f"gfootball.scenarios.{name}")
    vars(module)["build_scenario"] = build_scenario
    sys.modules[module.__name__] = module
    return name


def joint_action(rng: np.random.Generator, agents: int, purposeful: bool) -> list[int]:
    """Random actions; if `purposeful`, mostly a run at the goal with shots, so that goals are scored."""
    if purposeful and rng.random() < 0.9:
        return [int(rng.choice([RIGHT, RIGHT, RIGHT, SHOT, SPRINT, LONG_PASS]))] * agents
    return [int(action) for action in rng.integers(0, 19, agents)]
