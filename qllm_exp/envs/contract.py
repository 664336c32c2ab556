"""Checks of the contract of envs/base.py, for any environment. `qllm-exp check env=NAME` and the tests of the package run them.

Each check raises ContractError with one line: what is wrong, what the contract says, and usually what to change.
Shapes: N parallel copies (num_envs), n agents (n_agents), A actions (n_actions).
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from qllm_exp.envs.base import Observation, Step, TeamEnv
from qllm_exp.envs.layout import StateLayout, TaskDescription
from qllm_exp.errors import ContractError

CONTRACT = "the contract of TeamEnv in qllm_exp/envs/base.py"
COPIES = 3  # copies in most checks; unequal to usual numbers of agents, so that swapped axes are noticed
MAX_STEPS = 200  # longest episode in most checks
_SIZES = ("num_envs", "n_agents", "n_actions", "obs_dim", "episode_limit")
_TOLERANCE = 1e-5  # of values at the ends of their declared range
_Episode = tuple[Observation, list[Step]]


class EnvMaker:
    """Builds environments of one configuration, and closes them.

    Args:
        config: the `Config` of an environment.
        build: (config, num_envs, seed) -> environment.
    """

    def __init__(self, config: Any, build: Callable[[Any, int, int], TeamEnv]) -> None:
        self.config, self._build = config, build

    @contextmanager
    def open(self, count: int = 1, seed: int = 0, num_envs: int = COPIES, limit: int | None = None) -> Iterator[Any]:
        """Open environments, and close them at the end.

        Args:
            count: number of environments.
            seed: seed of the first; that of each further is one higher.
            num_envs: copies N in each.
            limit: `episode_limit`; None: that of the configuration, at most MAX_STEPS.

        Yields:
            The environment, or a list of them if `count` is not 1.
        """
        limit = limit or min(self.config.episode_limit, MAX_STEPS)
        config = replace(self.config, num_envs=num_envs, episode_limit=limit)
        envs: list[TeamEnv] = []
        try:
            for number in range(count):
                envs.append(self._build(config, num_envs, seed + number))
            yield envs[0] if count == 1 else envs
        finally:
            for env in envs:
                env.close()


# What every run checks


def check_sizes(env: Any, name: str, num_envs: int) -> None:
    """Check that an environment has the attributes of a TeamEnv, and a layout and a task that agree with them.

    Args:
        env: what `make` returned.
        name: name of the environment, for the message.
        num_envs: number of copies that were requested.

    Raises:
        ContractError: it breaks the contract.
    """
    if not isinstance(env, TeamEnv):
        raise ContractError(f"env={name}: make() returned {_kind(env)}, expected a TeamEnv ({CONTRACT}).")
    names = (*_SIZES, "device", "layout", "task")
    missing = [attribute for attribute in names if not hasattr(env, attribute)]
    if missing:
        raise ContractError(f"env={name}: the environment has no attribute {', '.join(missing)} ({CONTRACT}).")
    for attribute, kind in (("layout", StateLayout), ("task", TaskDescription), ("device", torch.device)):
        value = getattr(env, attribute)
        if not isinstance(value, kind):
            raise ContractError(f"env={name}: {attribute} is {_kind(value)}, expected {_name(kind)} ({CONTRACT}).")
    for attribute in _SIZES:
        size = getattr(env, attribute)
        if not isinstance(size, Integral) or size < 1:  # numpy's integers too
            raise ContractError(f"env={name}: {attribute}={size!r}, expected a whole number from 1 ({CONTRACT}).")
    if env.num_envs != num_envs:
        raise ContractError(f"env={name}: num_envs={env.num_envs}, but make() was called for {num_envs} copies.")
    columns = [column for field in env.layout for column in range(field.start, field.stop)]
    if columns != list(range(env.layout.size)):
        raise ContractError(
            f"env={name}: the fields of the state layout do not cover columns 0 to {env.layout.size - 1} in order, once "
            "each. Build the layout with StateLayout.from_fields."
        )
    if env.task.n_agents != env.n_agents:
        raise ContractError(f"env={name}: task.n_agents={env.task.n_agents}, but n_agents={env.n_agents}.")
    if len(env.task.actions) != env.n_actions:
        raise ContractError(
            f"env={name}: task.actions describes {len(env.task.actions)} actions, but n_actions={env.n_actions}."
        )


def check_moment(env: TeamEnv, moment: Any, method: str) -> None:
    """Check shape, dtype and device of what `reset` or `step` returned. Values are not read, so that no GPU is waited for.

    Args:
        env: the environment.
        moment: what it returned.
        method: 'reset' or 'step'.

    Raises:
        ContractError: it breaks the contract.
    """
    kind = Observation if method == "reset" else Step
    if not isinstance(moment, kind):
        raise _broken(env, method, f"returned {_kind(moment)}, expected {_name(kind)}({', '.join(kind._fields)})")
    n_envs, n_agents = env.num_envs, env.n_agents
    per_copy = ((n_envs,), "[N]")
    expected = {
        "obs": ((n_envs, n_agents, env.obs_dim), "[N, n_agents, obs_dim]", torch.float32),
        "state": ((n_envs, env.layout.size), "[N, columns of the layout]", torch.float32),
        "available_actions": ((n_envs, n_agents, env.n_actions), "[N, n_agents, n_actions]", torch.bool),
        "reward": (*per_copy, torch.float32),
        "terminated": (*per_copy, torch.bool),
        "truncated": (*per_copy, torch.bool),
    }
    for field in kind._fields:
        value, (shape, names, dtype) = getattr(moment, field), expected[field]
        if not isinstance(value, Tensor):
            raise _broken(env, method, f"returned {field} as {_kind(value)}, expected a torch.Tensor")
        if tuple(value.shape) != shape:
            problem = f"returned {field} of shape {list(value.shape)}, expected {list(shape)}, i.e. {names}"
            raise _broken(env, method, problem)
        if value.dtype != dtype:
            raise _broken(env, method, f"returned {field} of dtype {_name(value.dtype)}, expected {_name(dtype)}")
        if not _is_on(value.device, env.device):
            raise _broken(env, method, f"returned {field} on device {value.device}, expected {env.device}")


# What `qllm-exp check` checks besides


def check_description(maker: EnvMaker) -> list[str]:
    """Sizes, state layout and task description"""
    limit = min(maker.config.episode_limit, MAX_STEPS)
    with maker.open(limit=limit) as env:
        check_sizes(env, maker.config.name, COPIES)
        if env.episode_limit != limit:
            raise _broken(
                env, "make", f"built episode_limit={env.episode_limit}, but env.episode_limit={limit} was set"
            )
        for text in ("env", "task", "goal", "reward", "episode"):
            if not getattr(env.task, text):
                raise ContractError(
                    f"env={maker.config.name}: task.{text} is empty. Prompts and tables are made from it."
                )
        env.close()  # a second time at the end: closing twice is safe
    return []


def check_episode(maker: EnvMaker) -> list[str]:
    """Shapes, dtypes and values of an episode"""
    with maker.open() as env:
        _play(env)
        for name, values in env.episode_metrics().items():
            if not isinstance(values, Tensor) or tuple(values.shape) != (env.num_envs,):
                shape = list(values.shape) if isinstance(values, Tensor) else _kind(values)
                raise _broken(env, "episode_metrics", f"returned {name!r} as {shape}, expected a tensor of shape [N]")
    return []


def check_ranges(maker: EnvMaker) -> list[str]:
    """State values within the ranges of the layout"""
    with maker.open(num_envs=16) as env:
        start, steps = _play(env)
        for number, state in enumerate([start.state, *(step.state for step in steps)]):
            for field in env.layout:
                values = state[:, field.columns]
                inside = (values >= field.low - _TOLERANCE) & (values <= field.high + _TOLERANCE)
                for special in field.special:
                    inside |= values == special
                if not inside.all():
                    allowed = f"{field.low:g} to {field.high:g}"
                    problem = f"state field {field.label!r} is {values[~inside][0]:g}, its layout says {allowed}"
                    raise _broken(env, "step" if number else "reset", problem, number)
    return []


def check_end(maker: EnvMaker) -> list[str]:
    """End of episodes: termination, time limit, no reward afterwards"""
    limits = {min(maker.config.episode_limit, MAX_STEPS), min(maker.config.episode_limit, 7)}
    for limit in sorted(limits):
        with maker.open(limit=limit) as env:
            _, steps = _play(env, limit + 3)
            playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
            for number, step in enumerate(steps, 1):
                terminated, truncated = step.terminated & playing, step.truncated & playing
                if (terminated & truncated).any():
                    raise _broken(
                        env, "step", "returned a copy both terminated and truncated, expected one of them", number
                    )
                if truncated.any() and number != limit:
                    raise _broken(
                        env, "step", f"truncated an episode, expected that at episode_limit={limit} only", number
                    )
                if (step.reward[~playing] != 0).any():
                    reward = step.reward[~playing][step.reward[~playing] != 0][0]
                    problem = f"returned reward {reward:g} for a copy whose episode has ended, expected 0 until the next reset"
                    raise _broken(env, "step", problem, number)
                playing &= ~(terminated | truncated)
                if number == limit and playing.any():
                    problem = f"did not end the episode at episode_limit={limit}; set truncated where terminated is not"
                    raise _broken(env, "step", problem, number)
    return []


def check_seeds(maker: EnvMaker) -> list[str]:
    """Equal seeds give equal episodes, whatever was played before"""
    with maker.open(seed=5) as env, maker.open(seed=5) as twin, maker.open(seed=6) as other:
        episodes = [_play(env), _play(env)]
        difference = _difference(episodes, [_play(twin), _play(twin)])
        if difference:
            raise _broken(
                env,
                "reset and step",
                f"are not determined by the seed: with seed 5 and the same actions, two environments differ in {difference}. "
                "Draw every random number from a generator that seed() sets",
            )
        other_episodes = [_play(other), _play(other)]
        other.seed(5)
        difference = _difference(episodes, [_play(other), _play(other)])
        if difference:
            raise _broken(
                env,
                "reset",
                f"keeps something of earlier episodes: after seed(5), an environment that has played differs from a new one "
                f"in {difference}. Set everything anew in seed() and reset()",
            )
        notes = []
        if not _difference(episodes, other_episodes):
            notes.append("seeds 5 and 6 give the same episodes: nothing is random")
        elif not _difference(episodes[:1], episodes[1:]):
            notes.append("the first two episodes after a seed are equal: does reset() draw new random numbers?")
        second_starts: list[_Episode] = []
        for steps in (1, 5):
            env.seed(5)
            _play(env, steps)
            second_starts.append((env.reset(), []))
        if _difference(second_starts[:1], second_starts[1:]):
            notes.append(
                "a start depends on the number of steps before it, so that methods are evaluated on different episodes: draw "
                "starts apart from the random numbers in steps, for example with envs.episode_generator.EpisodeGenerator"
            )
        return notes


def check_resume(maker: EnvMaker) -> list[str]:
    """A restored state_dict continues bit for bit"""
    with maker.open(seed=1) as env, maker.open(seed=99) as other:
        _play(env)
        saved = env.state_dict()
        try:
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            stored = torch.load(file, weights_only=True)
        except Exception as error:  # torch raises several kinds
            reason = str(error).strip().partition("\n")[0]
            raise _broken(
                env,
                "state_dict",
                f"returned something that a checkpoint cannot hold ({reason}), expected tensors, numbers, strings, and lists "
                "and dicts of them",
            ) from None
        expected = [_play(env, action_seed=1), _play(env, action_seed=2)]
        for restored, state, cause in (
            (
                other,
                stored,
                "state_dict() misses something that determines them, or load_state_dict() does not restore it",
            ),
            (env, saved, "state_dict() has returned tensors that the environment changes later. Return copies"),
        ):
            restored.load_state_dict(state)
            difference = _difference(expected, [_play(restored, action_seed=1), _play(restored, action_seed=2)])
            if difference:
                problem = f"does not continue as before: the next episodes differ in {difference}. {cause}"
                raise _broken(env, "load_state_dict", problem)
    return []


def check_returned_tensors(maker: EnvMaker) -> list[str]:
    """Returned tensors belong to the caller"""
    with maker.open(count=3) as (env, twin, other):
        twin.seed(0)
        start, steps = _play(env, 4)
        copies = (
            Observation(*(tensor.clone() for tensor in start)),
            [Step(*(tensor.clone() for tensor in step)) for step in steps],
        )
        _play(env, action_seed=3)
        difference = _difference([copies], [(start, steps)])
        if difference:
            raise _broken(
                env, "step", f"writes into tensors that were returned before: {difference} changed. Return copies"
            )
        other.seed(0)
        expected, changed = _play(twin, 4), _play(other, 4, overwrite=True)
        difference = _difference([expected], [changed])
        if difference:
            raise _broken(
                env,
                "step",
                f"depends on tensors that it returned before: after writing into them, {difference} differs. Return copies",
            )
    return []


CHECKS: tuple[Callable[[EnvMaker], list[str]], ...] = (
    check_description,
    check_episode,
    check_ranges,
    check_end,
    check_seeds,
    check_resume,
    check_returned_tensors,
)


def _play(env: TeamEnv, steps: int | None = None, action_seed: int = 0, overwrite: bool = False) -> _Episode:
    """Play an episode with random available actions, and check every moment.

    Args:
        env: the environment.
        steps: number of steps; None: to the episode limit.
        action_seed: determines the actions.
        overwrite: write into the returned tensors of each moment before the next step; copies are returned.
    """
    generator = torch.Generator().manual_seed(action_seed)
    start = env.reset()
    _check_values(env, start, "reset", 0)
    available, played = start.available_actions.cpu().clone(), []
    if overwrite:
        start = _overwritten(start)
    for number in range(1, (steps or env.episode_limit) + 1):
        actions = torch.multinomial(available.flatten(0, 1).float(), 1, generator=generator).view(available.shape[:2])
        step = env.step(actions.to(env.device))
        _check_values(env, step, "step", number)
        available = step.available_actions.cpu().clone()
        played.append(_overwritten(step) if overwrite else step)
    return start, played


def _overwritten(moment: Any) -> Any:
    """Return a copy of a moment, and fill the tensors of the moment itself."""
    copy = type(moment)(*(tensor.clone() for tensor in moment))
    for tensor in moment:
        tensor.fill_(0 if tensor.dtype == torch.bool else 7)
    return copy


def _check_values(env: TeamEnv, moment: Any, method: str, number: int) -> None:
    """Check a moment: tensors as of `check_moment`, finite values, an available action for each agent."""
    check_moment(env, moment, method)
    for field in ("obs", "state", "reward"):
        values = getattr(moment, field, None)
        if values is not None and not torch.isfinite(values).all():
            wrong = values[~torch.isfinite(values)][0].item()
            raise _broken(
                env,
                method,
                f"returned {field} {wrong if math.isnan(wrong) else f'{wrong:+}'}, expected finite values",
                number,
            )
    without = (~moment.available_actions.any(-1)).nonzero()
    if len(without):
        copy, agent = without[0].tolist()
        problem = f"returned no available action for agent {agent} in copy {copy}, expected at least one per agent"
        raise _broken(env, method, problem, number)


def _difference(first: list[_Episode], second: list[_Episode]) -> str:
    """Return the first tensor that two lists of episodes do not have in common, e.g. 'state after step 3'; '' if there is none."""
    for number, ((start, steps), (other_start, other_steps)) in enumerate(zip(first, second, strict=True), 1):
        moments: list[tuple[Any, Any]] = [(start, other_start), *zip(steps, other_steps, strict=True)]
        for count, (moment, other) in enumerate(moments):
            for field in moment._fields:
                if not torch.equal(getattr(moment, field), getattr(other, field)):
                    place = f"after step {count}" if count else "after reset"
                    return f"{field} {place}" if len(first) == 1 else f"{field} {place} of episode {number}"
    return ""


def _broken(env: TeamEnv, method: str, problem: str, step: int = 0) -> ContractError:
    """Return the error of an environment that breaks the contract.

    Args:
        env: the environment.
        method: the method at fault.
        problem: what is wrong, with the value and what the contract says.
        step: number of the step, from 1; 0: not at a step.
    """
    place = f" at step {step}" if step else ""
    source = f"{type(env).__module__}.{type(env).__qualname__}"
    return ContractError(f"env={env.task.env} ({source}): {method}(){place} {problem} ({CONTRACT}).")


def _is_on(actual: torch.device, expected: torch.device) -> bool:
    """Whether a device is the expected one, where 'cuda' stands for any GPU."""
    return actual.type == expected.type and (expected.index is None or actual.index == expected.index)


def _kind(value: Any) -> str:
    """Return the type of a value with an article, e.g. 'a tuple'."""
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind)).removeprefix("torch.")
