"""States on which a credit-assignment function is tried out: ordinary ones of the task, and extreme ones of its layout."""

import math

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.layout import StateField, StateLayout

_MODERATE, _LARGE = 10.0, 1e3  # ends of a field without a limit: within reach in play, and beyond it
_ORDINARY = 3.0  # up to where a field without a limit is drawn from
_MOMENTS = 64  # time steps that a large sample is spread over
_BASES = 40  # states inside the ranges
_MAX_EXTREME = 200  # rows
_MAX_SHOWN = 8  # fields of a state described in words


def task_states(env: TeamEnv, count: int) -> Tensor:
    """[count, state_dim] states in which agents of the task act, met by acting at random over several episodes.

    Few states are taken of each time step, so that a large `count` covers early and late ones. Starts episodes in `env`;
    equal seeds of `env` give the same states.
    """
    generator = torch.Generator(env.device).manual_seed(0)
    share = max(1, count // _MOMENTS)
    found: list[Tensor] = []
    missing = count
    while missing > 0:
        start = env.reset()
        state, available = start.state, start.available_actions
        playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        # What a copy returns after its end is not to be used, and waiting for the longest episode is slow.
        while missing > 0 and 2 * int(playing.sum()) >= env.num_envs:
            order = torch.rand(env.num_envs, generator=generator, device=env.device).masked_fill(~playing, -1.0)
            chosen = order.argsort(descending=True)[: min(share, int(playing.sum()), missing)]
            found.append(state[chosen])
            missing -= len(chosen)
            draw = torch.rand(available.shape, generator=generator, device=env.device)
            step = env.step(torch.where(available, draw, -1.0).argmax(-1))
            state, available = step.state, step.available_actions
            playing &= ~(step.terminated | step.truncated)
    return torch.cat(found)


def extreme_states(env: TeamEnv) -> Tensor:
    """[M, state_dim], M up to about 200, the same ones every time, without touching the episodes of `env`.

    First states inside the ranges, half of them of whole numbers; then all zeros, all fields at an end of their range or
    all at a special value; last each field alone at each of these. Fields without a limit end at +-10 and at +-1000.
    Where that makes too many states, evenly spaced ones of the last kind are kept.
    """
    layout, generator = env.layout, torch.Generator().manual_seed(0)
    bases = torch.stack([_inside(layout, generator) for _ in range(_BASES)])
    bases[1::2] = bases[1::2].round()
    rows = [torch.zeros(layout.size)]
    for k in range(max((len(_ends(one)) for one in layout), default=0)):
        rows.append(_changed(bases[0], layout, {one.start: _ends(one)[k % len(_ends(one))] for one in layout}))
    for k in range(max((len(one.special) for one in layout), default=0)):
        codes = {one.start: list(one.special)[k % len(one.special)] for one in layout if one.special}
        rows.append(_changed(bases[1], layout, codes))
    alone = list(dict.fromkeys((one.start, value) for one in layout for value in (*_ends(one), *one.special)))
    room = min(len(alone), _MAX_EXTREME - _BASES - len(rows))
    for i in range(room):
        rows.append(_changed(bases[i % _BASES], layout, dict([alone[i * len(alone) // room]])))
    return torch.cat([bases, torch.stack(rows)]).to(env.device)


def moderate(layout: StateLayout, states: Tensor) -> Tensor:
    """[B] bool: the states whose fields without a limit keep to +-10."""
    free = [not math.isfinite(one.high - one.low) for one in layout for _ in one.components]
    return (states[:, torch.tensor(free, dtype=torch.bool, device=states.device)].abs() <= _MODERATE).all(1)


def describe(layout: StateLayout, state: Tensor) -> str:
    """A state [state_dim] in words; of many fields, those at an end of their range or at a special value come first."""

    def ordinary(one: StateField) -> bool:
        return not any(float(x) in {*_ends(one), *one.special} for x in state[one.columns])

    shown = sorted(sorted(layout, key=ordinary)[:_MAX_SHOWN], key=lambda one: one.start)
    texts = [f"{one.label} {', '.join(f'{float(x) + 0.0:.4g}' for x in state[one.columns])}" for one in shown]
    return "; ".join(texts) + ("; ..." if len(shown) < len(layout.fields) else "")


def _inside(layout: StateLayout, generator: torch.Generator) -> Tensor:
    """One state inside the ranges, with special values mixed in, [state_dim]."""
    state = torch.empty(layout.size)
    for one in layout:
        low, high = _limits(one, _ORDINARY)
        state[one.columns] = low + (high - low) * torch.rand(len(one.components), generator=generator)
        for value in one.special:
            if torch.rand((), generator=generator) < 0.2:
                state[one.columns] = value
    return state


def _changed(state: Tensor, layout: StateLayout, values: dict[int, float]) -> Tensor:
    """A copy of `state` in which the fields that start at these columns have these values."""
    state = state.clone()
    for one in layout:
        if one.start in values:
            state[one.columns] = values[one.start]
    return state


def _ends(one: StateField) -> list[float]:
    """Low and high end; for a field without a limit first the moderate ones, then the large ones."""
    moderate_ends, large_ends = _limits(one, _MODERATE), _limits(one, _LARGE)
    return list(moderate_ends) if moderate_ends == large_ends else [*moderate_ends, *large_ends]


def _limits(one: StateField, unlimited: float) -> tuple[float, float]:
    low = -unlimited if one.low == -math.inf else one.low
    return low, unlimited if one.high == math.inf else one.high
