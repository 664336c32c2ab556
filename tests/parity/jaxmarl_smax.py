"""The published SMAX of jaxmarl: runs in an environment of its own (tests/install_jaxmarl.sh) and writes to standard output.

    python tests/parity/jaxmarl_smax.py play 3m --episodes 100     # episodes, for tests/parity/smax_comparison.py
    python tests/parity/jaxmarl_smax.py speed 3m --seconds 10      # steps per second of processor time, as a line of JSON

`play` replaces the random draws of a step by numbers that the caller knows: a random key becomes the number itself, the same for
all draws of a copy in a step. Starts are drawn as published. It writes one block for the starts of a batch, and one for each step
until all copies have ended: the length of the block in 8 bytes, then arrays as numpy's savez writes them.
"""

import argparse
import io
import json
import os
import sys
import time

FLAGS = ["--xla_cpu_multi_thread_eigen=false", "intra_op_parallelism_threads=1"]
if sys.argv[1:2] == ["play"]:  # the compiler would take longer to optimise than a hundred episodes take
    FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true", *FLAGS]
os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": " ".join(FLAGS)}
BATCH = 50  # copies at once
DRAWS = 2**20  # a number in [0, 1) is a multiple of 1 / DRAWS, which float32 holds exactly
ATTACK_SHARE = 0.9  # of the steps in which a purposeful agent attacks if it can
UNAVAILABLE_SHARE = 0.05  # of actions that are drawn from all, available or not

# jaxmarl prints while it is imported, and puts sys.stdout back itself: only the descriptor can be redirected.
_STDOUT = os.dup(1)
os.dup2(2, 1)
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario  # noqa: E402

sys.stdout.flush()
os.dup2(_STDOUT, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["play", "speed"])
    parser.add_argument("task")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--copies", type=int, default=128)
    options = parser.parse_args()
    env = HeuristicEnemySMAX(scenario=map_name_to_scenario(options.task))
    if options.mode == "play":
        play(env, options.episodes)
    else:
        print(json.dumps(speed(env, options.copies, options.seconds)))


def play(env, episodes: int) -> None:
    """Write the blocks of all episodes.

    Args:
        env: the environment.
        episodes: their number; rounded up to whole batches.
    """
    batches = -(-episodes // BATCH)
    keys = jax.random.split(jax.random.PRNGKey(0), batches * BATCH)
    _, starts = jax.vmap(env.reset)(keys)
    fix_draws()
    units = env._env

    def show(state):
        obs = jnp.stack([env.get_obs(state)[agent] for agent in env.agents])
        available = jnp.stack([env.get_avail_actions(state)[agent] for agent in env.agents])
        return {"obs": obs, "state": env.get_world_state(state), "available": available}

    def push_apart(state):
        return state.replace(state=units._push_units_away(state.state))

    def advance(key, state, actions):
        by_agent = {agent: actions[i] for i, agent in enumerate(env.agents)}
        _, state, rewards, dones, _ = env.step_env(key, state, by_agent)
        result = {"reward": rewards[env.agents[0]], "done": dones["__all__"], "positions": state.state.unit_positions}
        return state, show(state) | result

    show_all, push_all_apart, advance_all = (jax.jit(jax.vmap(function)) for function in (show, push_apart, advance))
    rng = np.random.default_rng(0)
    for first in range(0, len(keys), BATCH):
        state = jax.tree.map(lambda leaf, first=first: leaf[first : first + BATCH], starts)
        # The other side pushes units apart at the start, so here it happens a second time.
        positions, state = state.state.unit_positions, push_all_apart(state)
        shown = {key: np.asarray(value) for key, value in show_all(state).items()}
        write({"types": np.asarray(state.state.unit_types), "positions": np.asarray(positions), **shown})
        purposeful = np.arange(BATCH) % 2 == 0
        done = np.zeros(BATCH, bool)
        while not done.all():
            actions = choose(rng, shown["available"], purposeful)
            draws = rng.integers(DRAWS, size=BATCH).astype(np.uint32)
            state, shown = advance_all(np.stack([draws, draws], 1), state, actions)
            shown = {key: np.asarray(value) for key, value in shown.items()}
            write({"actions": actions, "draws": (draws / DRAWS).astype(np.float32), **shown})
            done |= shown["done"]
    sys.stdout.buffer.flush()


def fix_draws() -> None:
    """Replace the random functions that a step uses; what was compiled before keeps the published ones."""

    def split(key, num=2):
        return jnp.broadcast_to(key, (num, *key.shape))

    def uniform(key, shape=(), dtype=jnp.float32, minval=0.0, maxval=1.0):
        return jnp.broadcast_to(number(key) * (maxval - minval) + minval, shape)

    def choice(key, a, shape=(), replace=True, p=None, axis=0):
        candidates = p > 0
        count = candidates.sum()
        rank = jnp.minimum((number(key) * count).astype(jnp.int32), count - 1)
        return a[jnp.argmax((jnp.cumsum(candidates) == rank + 1) & candidates)]

    def number(key):
        return key[0].astype(jnp.float32) / DRAWS

    jax.random.split, jax.random.uniform, jax.random.choice = split, uniform, choice


def choose(rng: np.random.Generator, available: np.ndarray, purposeful: np.ndarray) -> np.ndarray:
    """Random actions [copies, agents], a few of them unavailable. Agents of purposeful copies mostly attack, or go east."""
    scores = rng.random(available.shape) * available
    attacks = scores[..., 5:] > 0
    eager = (rng.random(available.shape[:2]) < ATTACK_SHARE) & purposeful[:, None]
    scores[..., 5:] += (attacks & eager[..., None]) * 2
    scores[..., 1] += eager * (available[..., 1] > 0)
    anything = rng.integers(available.shape[-1], size=available.shape[:2])
    heedless = rng.random(available.shape[:2]) < UNAVAILABLE_SHARE
    return np.where(heedless, anything, scores.argmax(-1)).astype(np.int32)


def write(arrays: dict[str, np.ndarray]) -> None:
    """Write a block."""
    block = io.BytesIO()
    np.savez(block, **arrays)
    sys.stdout.buffer.write(len(block.getvalue()).to_bytes(8, "little") + block.getvalue())


def speed(env, copies: int, seconds: float) -> dict:
    """Steps of one copy per second of processor time, with random available actions and resets, compilation left out."""

    def step(carry, _):
        key, state = carry
        key, action_key, step_key = jax.random.split(key, 3)
        available = jnp.stack([jax.vmap(env.get_avail_actions)(state)[agent] for agent in env.agents], 1)
        actions = (jax.random.uniform(action_key, available.shape) * available).argmax(-1)
        by_agent = {agent: actions[:, i] for i, agent in enumerate(env.agents)}
        obs, state, rewards, _, _ = jax.vmap(env.step)(jax.random.split(step_key, copies), state, by_agent)
        total = sum(value.sum() for value in obs.values()) + rewards[env.agents[0]].sum()  # nothing is left out
        return (key, state), total

    @jax.jit
    def chunk(key, state):
        return jax.lax.scan(step, (key, state), None, 20)

    key = jax.random.PRNGKey(0)
    _, state = jax.vmap(env.reset)(jax.random.split(key, copies))
    begin = time.perf_counter()
    for _ in range(2):  # the types of what `reset` returns differ from those of what `step` returns: it compiles twice
        (key, state), total = chunk(key, state)
    total.block_until_ready()
    compilation = time.perf_counter() - begin
    steps, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        (key, state), total = chunk(key, state)
        total.block_until_ready()
        steps += 20 * copies
    return {"env_steps_per_s": steps / (time.process_time() - start), "compilation_s": compilation}


if __name__ == "__main__":
    main()
