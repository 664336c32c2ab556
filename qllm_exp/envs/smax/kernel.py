"""The rules of SMAX compiled for the CPU, from kernel.cpp; utils/compiled.py builds it at first use.

Results are those of battle.py bit for bit.

Shapes: N copies, n allies, E enemies, U = n + E units.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from qllm_exp.envs.base import Observation
from qllm_exp.envs.smax import battle, maps
from qllm_exp.utils.compiled import CompiledSource

_LOW, _HIGH = maps.COOLDOWN_SPREAD
_NUMBERS = {
    "MAP_SIZE": maps.MAP_SIZE,
    "SUB_STEPS": maps.SUB_STEPS,
    "SUB_STEP_S": maps.SUB_STEP_S,
    "COOLDOWN_LOW": _LOW,
    "COOLDOWN_WIDTH": _HIGH - _LOW,
    "MOVE_LENGTH": battle.MOVE_LENGTH,
    "STOP": maps.STOP,
    "TYPES": len(maps.UNIT_TYPES),
}
SOURCE = CompiledSource(
    Path(__file__).with_suffix(".cpp"),
    ["-ffp-contract=off", *(f"-D{name}={number}" for name, number in _NUMBERS.items())],
    "battle",
)


class CompiledBattle(battle.Battle):
    """N copies of a battle on the CPU; the same as Battle, faster."""

    def step(self, actions: Tensor, follow: Tensor, cooldown_draws: Tensor) -> tuple[Observation, Tensor]:
        """As Battle.step.

        Raises:
            ValueError: the actions are not an int64 tensor [N, n] of actions that exist.
        """
        if actions.shape != (self.num_envs, self.n_allies) or actions.dtype != torch.int64:
            raise ValueError(
                f"actions are {actions.dtype} {tuple(actions.shape)}; expected int64 {(self.num_envs, self.n_allies)}"
            )
        reward = torch.empty(self.num_envs)
        observation = self._empty_observation()
        inputs = [actions.contiguous(), follow.contiguous(), cooldown_draws.contiguous()]
        self._call("smax_step", [*observation, *inputs, reward])
        return observation, reward

    def _observe(self, shown: Tensor) -> Observation:
        """As Battle._observe, at the start of an episode, when all copies are shown."""
        observation = self._empty_observation()
        self._call("smax_observe", list(observation))
        return observation

    def _empty_observation(self) -> Observation:
        """Tensors that the kernel fills."""
        n, units = self.n_allies, self.n_units
        obs_dim = (units - 1) * battle.UNIT_FEATURES + battle.OWN_FEATURES
        return Observation(
            torch.empty(self.num_envs, n, obs_dim),
            torch.empty(self.num_envs, units * battle.STATE_FEATURES),
            torch.empty(self.num_envs, n, maps.FIRST_ATTACK + self.n_enemies, dtype=torch.bool),
        )

    def _call(self, name: str, arguments: list[Tensor]) -> None:
        """Call a function of the kernel with the battle's tensors.

        Args:
            name: of the function.
            arguments: further tensors, in the order of `Arrays` in kernel.cpp.

        Raises:
            ValueError: an action is out of range.
        """
        units = [self._types, self.positions, self.health, self._cooldowns, self._actions, self._targets, self._homes]
        tensors = [*units, self.playing, *arguments]
        sizes = (ctypes.c_int64 * 3)(self.num_envs, self.n_allies, self.n_enemies)
        pointers = (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])
        if SOURCE.function(name)(sizes, ctypes.c_void_p(self._attributes.data_ptr()), pointers) != 0:
            raise ValueError(f"an action is out of range; allowed: 0 to {maps.FIRST_ATTACK + self.n_enemies - 1}")
