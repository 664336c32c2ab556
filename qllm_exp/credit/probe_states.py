"""States on which a credit-assignment function is probed: ordinary states of the task, and extreme ones of its layout."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qllm_exp.envs.base import TeamEnv
from qllm_exp.envs.contract import check_moment
from qllm_exp.envs.layout import StateField, StateLayout

_MODERATE, _LARGE = 10.0, 1e3  # ends of an unbounded field: within what play reaches, and beyond it
_ORDINARY = 3.0  # an unbounded field is sampled from -_ORDINARY to _ORDINARY
_MOMENTS = 64  # time steps that a large sample is spread over
_BASES = 40  # states inside the ranges
_MAX_EXTREME = 200  # rows
_MAX_SHOWN = 8  # fields in the description of a state


def task_states(env: TeamEnv, count: int) -> Tensor:
    """Sample states of the task in which agents act, from several episodes of random play.

    Only few states are taken per time step, so that a large sample covers early and late steps. Starts episodes in
    `env`; equal seeds of `env` give the same states.

    Args:
        env: the environment to play in.
        count: number of states.

    Returns:
        The states [count, state_dim].
    """
    generator = torch.Generator(env.device).manual_seed(0)
    per_step = max(1, count // _MOMENTS)
    samples: list[Tensor] = []
    missing = count
    while missing > 0:
        start = env.reset()
        check_moment(env, start, "reset")
        state, available = start.state, start.available_actions
        playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        # An environment's states after its episode has ended must not be used, and waiting for the longest episode is
        # slow: so play on only while at least half of the environments are in their first episode.
        while missing > 0 and 2 * int(playing.sum()) >= env.num_envs:
            order = torch.rand(env.num_envs, generator=generator, device=env.device).masked_fill(~playing, -1.0)
            chosen = order.argsort(descending=True)[: min(per_step, int(playing.sum()), missing)]
            samples.append(state[chosen])
            missing -= len(chosen)
            scores = torch.rand(available.shape, generator=generator, device=env.device)
            step = env.step(torch.where(available, scores, -1.0).argmax(-1))
            check_moment(env, step, "step")
            state, available = step.state, step.available_actions
            playing &= ~(step.terminated | step.truncated)
    return torch.cat(samples)


def extreme_states(env: TeamEnv) -> Tensor:
    """Build extreme states from the layout of the global state. All of them are within the ranges of the layout.

    The states are the same every time, and the episodes of `env` are not touched. In order: states inside the ranges,
    half of them rounded to integers; the state nearest to zero; all fields at an end of their range; all fields at a special
    value; each field alone at each end and special value. Unbounded fields end at +-10 and at +-1000. Of a one-hot field,
    always one column is 1. If that makes too many states, an evenly spaced selection of the last kind is kept.

    Args:
        env: the environment that defines the layout and the device.

    Returns:
        The states [M, state_dim] with M up to about 200.
    """
    layout, generator = env.layout, torch.Generator().manual_seed(0)
    bases = torch.stack([_state_inside(layout, generator) for _ in range(_BASES)])
    bases[1::2] = bases[1::2].round()
    rows = [_with_values(bases[0], [(field, _nearest_to_zero(field)) for field in layout])]
    for k in range(max((len(_ends(field)) for field in layout), default=0)):
        rows.append(_with_values(bases[0], [(field, _ends(field)[k % len(_ends(field))]) for field in layout]))
    for k in range(max((len(_codes(field)) for field in layout), default=0)):
        codes = [(field, _codes(field)[k % len(_codes(field))]) for field in layout if _codes(field)]
        rows.append(_with_values(bases[1], codes))
    values_of_one_field = [(field, value) for field in layout for value in (*_ends(field), *_codes(field))]
    single_changes = list({(field.start, value): (field, value) for field, value in values_of_one_field}.values())
    room = min(len(single_changes), _MAX_EXTREME - _BASES - len(rows))
    for i in range(room):
        rows.append(_with_values(bases[i % _BASES], [single_changes[i * len(single_changes) // room]]))
    return torch.cat([bases, torch.stack(rows)]).to(env.device)


def random_states(layout: StateLayout, count: int) -> Tensor:
    """Sample states uniformly within the ranges of the layout, the same every time.

    Half of them are rounded to integers. Unbounded fields end at +-10, and at +-1 in half of the states. Special values are
    mixed in, and of a one-hot field one column is 1.

    Args:
        layout: the layout of the state.
        count: number of states.

    Returns:
        The states [count, state_dim].
    """
    generator = torch.Generator().manual_seed(1)
    states = torch.empty(count, layout.size)
    near = torch.rand(count, 1, generator=generator) < 0.5
    for field in layout:
        width, (low, high) = len(field.components), _limits(field, _MODERATE)
        if field.one_hot:
            states[:, field.columns] = torch.eye(width)[torch.randint(width, (count,), generator=generator)]
            continue
        values = low + (high - low) * torch.rand(count, width, generator=generator)
        if (low, high) != (field.low, field.high):
            values = torch.where(near, values / _MODERATE, values)
        values[::2] = values[::2].round()
        for value in field.special:
            values[torch.rand(count, generator=generator) < 0.15] = value
        states[:, field.columns] = values
    return states


def moderate_mask(layout: StateLayout, states: Tensor) -> Tensor:
    """Select the states whose unbounded fields all lie within +-10.

    Args:
        layout: the layout of the state.
        states: [B, state_dim].

    Returns:
        A boolean mask [B].
    """
    unbounded = [not math.isfinite(field.high - field.low) for field in layout for _ in field.components]
    return (states[:, torch.tensor(unbounded, dtype=torch.bool, device=states.device)].abs() <= _MODERATE).all(1)


def describe_state(layout: StateLayout, state: Tensor, first: Sequence[StateField] = ()) -> str:
    """Describe a state for a message, e.g. 'agent 0 position 3, 4; agent 0 level 1; ...'.

    Of many fields, those at an end of their range or at a special value are shown.

    Args:
        layout: the layout of the state.
        state: [state_dim].
        first: fields that are shown before those.

    Returns:
        The labels and values of up to 8 fields: those of `first`, then others, each in column order.
    """

    def is_ordinary(field: StateField) -> bool:
        extreme = {0.0, 1.0} if field.one_hot else {*_limits(field, _MODERATE), *_limits(field, _LARGE), *field.special}
        return not any(float(x) in extreme for x in state[field.columns])

    shown = sorted(layout, key=lambda field: (field not in first, is_ordinary(field)))[:_MAX_SHOWN]
    shown.sort(key=lambda field: (field not in first, field.start))
    texts = [f"{field.label} {', '.join(f'{float(x) + 0.0:.4g}' for x in state[field.columns])}" for field in shown]
    if len(shown) < len(layout.fields):
        texts.append("...")
    return "; ".join(texts)


def _state_inside(layout: StateLayout, generator: torch.Generator) -> Tensor:
    """Sample a state [state_dim] inside the ranges, with special values mixed in."""
    state = torch.empty(layout.size)
    for field in layout:
        low, high = _limits(field, _ORDINARY)
        state[field.columns] = low + (high - low) * torch.rand(len(field.components), generator=generator)
        for value in field.special:
            if torch.rand((), generator=generator) < 0.2:
                state[field.columns] = value
        if field.one_hot:
            chosen = int(torch.randint(len(field.components), (), generator=generator))
            state[field.columns] = torch.tensor(_unit_vectors(field)[chosen])
    return state


_Values = float | tuple[float, ...]  # of the columns of a field: one for all, or one each


def _with_values(state: Tensor, values: Iterable[tuple[StateField, _Values]]) -> Tensor:
    """Return a copy of `state` with new values for some fields."""
    state = state.clone()
    for field, value in values:
        state[field.columns] = torch.tensor(value)
    return state


def _nearest_to_zero(field: StateField) -> _Values:
    """Return the value within the range of a field that is nearest to 0."""
    return _unit_vectors(field)[0] if field.one_hot else min(max(0.0, field.low), field.high)


def _ends(field: StateField) -> Sequence[_Values]:
    """Return the low and the high end; for an unbounded field the moderate ends first, then the large ones."""
    if field.one_hot:
        return _unit_vectors(field)
    moderate_ends, large_ends = _limits(field, _MODERATE), _limits(field, _LARGE)
    return moderate_ends if moderate_ends == large_ends else (*moderate_ends, *large_ends)


def _codes(field: StateField) -> Sequence[_Values]:
    """Return the special values of a field that its columns may all have."""
    return () if field.one_hot else tuple(field.special)


def _unit_vectors(field: StateField) -> list[tuple[float, ...]]:
    """Return the values of a one-hot field."""
    width = len(field.components)
    return [tuple(float(column == chosen) for column in range(width)) for chosen in range(width)]


def _limits(field: StateField, unlimited: float) -> tuple[float, float]:
    """Return the low and the high end, with +-`unlimited` in place of +-infinity."""
    low = -unlimited if field.low == -math.inf else field.low
    return low, unlimited if field.high == math.inf else field.high
