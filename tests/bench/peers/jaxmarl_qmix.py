"""Training speed of QMIX on JaxMARL's simple_spread, on one CPU core, or with JAX_PLATFORMS=cuda on a GPU, as one JSON line.

The published `jaxmarl` wheel holds environments and wrappers but none of the project's baseline scripts.
From published packages come: the environment `MPE_simple_spread_v3` with `MPELogWrapper` and `CTRolloutManager`
(jaxmarl), the GRU cell and the scan over it (flax), the episode buffer (flashbax), RAdam and clipping (optax).
From this file come: the networks, the loss and the loop. They follow the QMIX baseline of the JaxMARL repository
(`baselines/QLearning/qmix_rnn.py` with `config/alg/ql_rnn_mpe.yaml`) in structure and in every setting that costs
time: parameters shared, agents on a vmapped axis, episodes stored as dictionaries of agents, double-Q 1-step
targets, one compiled scan over "roll out all copies, store, one update".

Three differences touch the time, all in favour of the peer: no evaluation between updates, no vmap over seeds (which
would turn every conditional into the cost of both its branches), and learning starts once the buffer holds one batch.
The learning rate is a tenth of the baseline's 0.005, with which this loop does not improve in its first million
steps. An episode has 26 steps, because the environment counts its limit of 25 from zero.
"""
# ruff: noqa: E402 - XLA and the thread pools read their settings once, when jax is imported

import time

STARTED = time.perf_counter() - time.process_time()  # the interpreter's own start is all CPU time

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

import argparse
import json
import resource
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import flashbax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

# jaxmarl prints while it is imported, and puts sys.stdout back itself: only the descriptor can be redirected.
stdout = os.dup(1)
os.dup2(2, 1)
import jaxmarl
from jaxmarl.wrappers.baselines import CTRolloutManager, MPELogWrapper

sys.stdout.flush()
os.dup2(stdout, 1)

EPISODE_STEPS = 26
MIXER_EMBED, HYPERNET_HIDDEN, MIXER_INIT_SCALE = 32, 128, 0.001
BUFFER_EPISODES = 5000
TOTAL_STEPS = 10_000_000  # only scales the decay of the learning rate and of epsilon
LEARNING_RATE, MAX_GRAD_NORM, DISCOUNT = 0.0005, 25.0, 0.9
EPSILON_START, EPSILON_END, EPSILON_FRACTION = 1.0, 0.05, 0.1
TARGET_INTERVAL = 200  # updates between two copies of the parameters to the target network
CHUNK = 20  # iterations in one call of a compiled loop, so that the clock is looked at a few times a second

ByAgent = dict[str, Array]
dense = partial(nn.Dense, kernel_init=nn.initializers.orthogonal(1.0))
mixer_dense = partial(nn.Dense, kernel_init=nn.initializers.orthogonal(MIXER_INIT_SCALE))


class Episode(NamedTuple):
    """One step of an episode, or many with leading axes: what the buffer keeps, by agent and for '__all__'."""

    obs: ByAgent  # [..., obs_dim]; '__all__' is the global state [..., state_dim]
    actions: ByAgent  # [...] int
    rewards: ByAgent  # [...]
    dones: ByAgent  # [...] bool, whether the step *before* ended an episode, which resets the GRU
    available: ByAgent  # [..., n_actions]


class Learner(NamedTuple):
    """What an update changes."""

    params: Any
    target_params: Any
    optimiser: Any
    updates: Array  # scalar int


class ResettingGRU(nn.Module):  # type: ignore[misc, unused-ignore]
    """One GRU step that forgets at the start of an episode; scanned over the leading axis of its inputs."""

    @partial(nn.scan, variable_broadcast="params", split_rngs={"params": False}, in_axes=0, out_axes=0)
    @nn.compact  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, hidden: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        x, resets = inputs
        hidden, out = nn.GRUCell(x.shape[-1])(jnp.where(resets[:, None], 0.0, hidden), x)
        return hidden, out


class AgentNetwork(nn.Module):  # type: ignore[misc, unused-ignore]
    """Individual Q of one agent: hidden[B, H], obs[T, B, obs_dim], resets[T, B] -> hidden[B, H], q[T, B, n_actions]."""

    n_actions: int
    hidden_size: int

    @nn.compact  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, hidden: Array, obs: Array, resets: Array) -> tuple[Array, Array]:
        hidden, out = ResettingGRU()(hidden, (nn.relu(dense(self.hidden_size)(obs)), resets))
        return hidden, dense(self.n_actions)(out)


class Mixer(nn.Module):  # type: ignore[misc, unused-ignore]
    """Monotone mixing network of QMIX: agent_qs[n, T, B], state[T, B, state_dim] -> q_tot[T, B]."""

    @nn.compact  # type: ignore[untyped-decorator, unused-ignore]
    def __call__(self, agent_qs: Array, state: Array) -> Array:
        def hypernet(hidden: int, size: int) -> Array:
            return mixer_dense(size)(nn.relu(mixer_dense(hidden)(state)))

        n_agents = agent_qs.shape[0]
        w_1 = jnp.abs(hypernet(HYPERNET_HIDDEN, n_agents * MIXER_EMBED))
        w_1 = w_1.reshape(*state.shape[:-1], n_agents, MIXER_EMBED)
        b_1 = mixer_dense(MIXER_EMBED)(state)
        w_2 = jnp.abs(hypernet(HYPERNET_HIDDEN, MIXER_EMBED))
        b_2 = hypernet(MIXER_EMBED, 1)
        rows = jnp.moveaxis(agent_qs, 0, -1)[..., None, :]
        hidden = nn.elu(rows @ w_1 + b_1[..., None, :])
        return (hidden @ w_2[..., None] + b_2[..., None])[..., 0, 0]


class Trainer:
    """QMIX on `num_envs` copies of simple_spread; its loops run compiled and carry (learner, buffer, key)."""

    def __init__(self, num_envs: int, batch: int, hidden: int) -> None:
        self.num_envs, self.batch, self.hidden = num_envs, batch, hidden
        self.env = CTRolloutManager(MPELogWrapper(jaxmarl.make("MPE_simple_spread_v3")), batch_size=num_envs)
        self.agents: list[str] = self.env.agents
        self.network = AgentNetwork(self.env.max_action_space, hidden)
        self.mixer = Mixer()
        self.buffer = flashbax.make_trajectory_buffer(
            add_batch_size=num_envs,
            max_length_time_axis=BUFFER_EPISODES // num_envs,
            min_length_time_axis=-(-batch // num_envs),
            sample_batch_size=batch,
            sample_sequence_length=1,  # an entry of the buffer is a whole episode
            period=1,
        )
        updates = TOTAL_STEPS // (EPISODE_STEPS * num_envs)
        self.epsilon = optax.linear_schedule(EPSILON_START, EPSILON_END, int(EPSILON_FRACTION * updates))
        self.optimiser = optax.chain(
            optax.clip_by_global_norm(MAX_GRAD_NORM),
            optax.radam(optax.linear_schedule(LEARNING_RATE, 1e-10, updates)),
        )

    def stack(self, by_agent: ByAgent) -> Array:
        return jnp.stack([by_agent[agent] for agent in self.agents])

    def values(self, params: Any, hidden: Array, obs: Array, resets: Array) -> tuple[Array, Array]:
        """Q of all agents with shared parameters: obs[n, T, B, obs_dim] -> hidden[n, B, H], q[n, T, B, n_actions]."""
        apply: Callable[..., tuple[Array, Array]] = jax.vmap(self.network.apply, (None, 0, 0, 0))
        return apply(params, hidden, obs, resets)

    @partial(jax.jit, static_argnums=0)
    def start(self, key: Array) -> tuple[Learner, Any, Array]:
        """Fresh parameters and an empty buffer."""
        key, key_agent, key_mixer, key_episode = jax.random.split(key, 4)
        one_step = jnp.zeros((1, 1, self.env.obs_size)), jnp.zeros((1, 1), bool)
        state = jnp.zeros((1, 1, len(self.agents) * self.env.max_obs_length))
        params = {
            "agent": self.network.init(key_agent, jnp.zeros((1, self.hidden)), *one_step),
            "mixer": self.mixer.init(key_mixer, jnp.zeros((len(self.agents), 1, 1)), state),
        }
        learner = Learner(params, jax.tree.map(jnp.copy, params), self.optimiser.init(params), jnp.array(0))
        shape_of_episode, _ = jax.eval_shape(self.roll_out, learner, key_episode)
        example = jax.tree.map(lambda x: jnp.zeros((EPISODE_STEPS, *x.shape[2:]), x.dtype), shape_of_episode)
        return learner, self.buffer.init(example), key

    def act(self, key: Array, q: Array, available: Array, epsilon: Array) -> Array:
        """Epsilon-greedy actions [n, N] among the available ones, from q[n, N, n_actions]."""
        key_random, key_choice = jax.random.split(key)
        greedy = jnp.argmax(jnp.where(available > 0, q, -1e10), axis=-1)
        random = jax.random.categorical(key_random, jnp.where(available > 0, 0.0, -jnp.inf))
        return jnp.where(jax.random.uniform(key_choice, greedy.shape) < epsilon, random, greedy)

    def roll_out(self, learner: Learner, key: Array) -> tuple[Episode, Array]:
        """One episode in every copy: Episode of [N, T, ...], and the mean episode return."""
        key, key_reset = jax.random.split(key)
        obs, env_state = self.env.batch_reset(key_reset)
        dones = {name: jnp.zeros(self.num_envs, bool) for name in [*self.agents, "__all__"]}
        hidden = jnp.zeros((len(self.agents), self.num_envs, self.hidden))
        epsilon = self.epsilon(learner.updates)

        def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], tuple[Episode, Any]]:
            hidden, obs, dones, env_state, key = carry
            key, key_act, key_step = jax.random.split(key, 3)
            hidden, q = self.values(
                learner.params["agent"], hidden, self.stack(obs)[:, None], self.stack(dones)[:, None]
            )
            available = self.env.get_valid_actions(env_state.env_state)
            joint_action = self.act(key_act, q[:, 0], self.stack(available), epsilon)
            actions = dict(zip(self.agents, joint_action, strict=True))
            next_obs, env_state, rewards, next_dones, info = self.env.batch_step(key_step, env_state, actions)
            seen = Episode(obs, actions, rewards, dones, available)
            return (hidden, next_obs, next_dones, env_state, key), (seen, info)

        carry = hidden, obs, dones, env_state, key
        _, (episode, info) = jax.lax.scan(step, carry, None, EPISODE_STEPS)
        episode = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), episode)
        return episode, info["returned_episode_returns"][-1].mean()

    def loss(self, params: Any, target_params: Any, batch: Episode) -> Array:
        """Mean squared 1-step double-Q error of Q_tot over a batch of Episode [T, B, ...]."""
        hidden = jnp.zeros((len(self.agents), self.batch, self.hidden))
        obs, dones, state = self.stack(batch.obs), self.stack(batch.dones), batch.obs["__all__"]
        _, q = self.values(params["agent"], hidden, obs, dones)
        _, target_q = self.values(target_params["agent"], hidden, obs, dones)
        chosen = jnp.take_along_axis(q, self.stack(batch.actions)[..., None], -1)[..., 0]
        greedy = jnp.argmax(jnp.where(self.stack(batch.available) > 0, q, -1e10), -1)
        next_values = jnp.take_along_axis(target_q, greedy[..., None], -1)[..., 0]
        next_total = self.mixer.apply(target_params["mixer"], next_values, state)[1:]
        ended = batch.dones["__all__"][:-1]  # as in the baseline, which stores the flag one step late
        target = batch.rewards["__all__"][:-1] + DISCOUNT * (1 - ended) * next_total
        total = self.mixer.apply(params["mixer"], chosen, state)[:-1]
        return jnp.mean((total - jax.lax.stop_gradient(target)) ** 2)

    def update(self, learner: Learner, buffer_state: Any, key: Array) -> Learner:
        """One gradient step on a sampled batch of episodes; the target network follows every TARGET_INTERVAL."""
        sampled = self.buffer.sample(buffer_state, key).experience
        batch = jax.tree.map(lambda x: jnp.swapaxes(x[:, 0], 0, 1), sampled)
        gradients = jax.grad(self.loss)(learner.params, learner.target_params, batch)
        change, optimiser = self.optimiser.update(gradients, learner.optimiser, learner.params)
        params = optax.apply_updates(learner.params, change)
        target_params = jax.lax.cond(
            learner.updates % TARGET_INTERVAL == 0, lambda: params, lambda: learner.target_params
        )
        return Learner(params, target_params, optimiser, learner.updates + 1)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def train(self, carry: tuple[Learner, Any, Array]) -> tuple[tuple[Learner, Any, Array], Array]:
        """CHUNK iterations: roll out, store, one update once there is a batch; and their mean returns [CHUNK]."""

        def iteration(carry: tuple[Learner, Any, Array], _: None) -> tuple[tuple[Learner, Any, Array], Array]:
            learner, buffer_state, key = carry
            key, key_rollout, key_update = jax.random.split(key, 3)
            episode, returns = self.roll_out(learner, key_rollout)
            buffer_state = self.buffer.add(buffer_state, jax.tree.map(lambda x: x[:, None], episode))
            learner = jax.lax.cond(
                self.buffer.can_sample(buffer_state),
                lambda: self.update(learner, buffer_state, key_update),
                lambda: learner,
            )
            return (learner, buffer_state, key), returns

        last, out = jax.lax.scan(iteration, carry, None, CHUNK)
        return last, out

    @partial(jax.jit, static_argnums=0)
    def only_roll_out(self, carry: tuple[Learner, Array]) -> tuple[tuple[Learner, Array], Array]:
        """CHUNK rollouts with the policy, nothing stored, nothing learnt; sums of all that was seen [CHUNK]."""

        def iteration(carry: tuple[Learner, Array], _: None) -> tuple[tuple[Learner, Array], Array]:
            learner, key = carry
            key, key_rollout = jax.random.split(key)
            seen = self.roll_out(learner, key_rollout)
            return (learner, key), sum(x.sum() for x in jax.tree.leaves(seen))

        last, out = jax.lax.scan(iteration, carry, None, CHUNK)
        return last, out

    @partial(jax.jit, static_argnums=0)
    def only_simulate(self, key: Array) -> tuple[Array, Array]:
        """CHUNK rollouts with random actions and no network; sums of all that was seen [CHUNK]."""

        def step(carry: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Array]:
            env_state, key = carry
            key, key_act, key_step = jax.random.split(key, 3)
            joint_action = jax.random.randint(key_act, (len(self.agents), self.num_envs), 0, self.env.max_action_space)
            actions = dict(zip(self.agents, joint_action, strict=True))
            obs, env_state, rewards, _, info = self.env.batch_step(key_step, env_state, actions)
            return (env_state, key), sum(x.sum() for x in jax.tree.leaves((obs, rewards, info)))

        def iteration(key: Array, _: None) -> tuple[Array, Array]:
            key, key_reset = jax.random.split(key)
            _, env_state = self.env.batch_reset(key_reset)
            (_, key), seen = jax.lax.scan(step, (env_state, key), None, EPISODE_STEPS)
            return key, seen.sum()

        last, out = jax.lax.scan(iteration, key, None, CHUNK)
        return last, out


def seconds_per_iteration(loop: Callable[[Any], tuple[Any, Array]], carry: Any, seconds: float) -> tuple[float, float]:
    """Mean time of one iteration of a compiled loop over at least `seconds`, without compilation: (wall, CPU) s."""
    carry, out = loop(carry)
    out.block_until_ready()
    start, cpu_start, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        carry, out = loop(carry)
        out.block_until_ready()
        calls += 1
    iterations = calls * CHUNK
    return (time.perf_counter() - start) / iterations, (time.process_time() - cpu_start) / iterations


def measure(seconds: float, hidden: int, batch: int, num_envs: int) -> dict[str, Any]:
    """Train for `seconds`, time collection and simulation alone for a quarter of it each, and report.

    The start-up lasts until the first compiled call of CHUNK iterations, nearly all of them with an update, returns.
    """
    trainer = Trainer(num_envs, batch, hidden)
    carry, returns = trainer.train(trainer.start(jax.random.key(0)))
    returns.block_until_ready()
    startup = time.perf_counter() - STARTED
    learner, _, key = carry
    rollout_carry = jax.tree.map(jnp.copy, (learner, key))  # `train` gives its own argument's memory away
    training, training_cpu = seconds_per_iteration(trainer.train, carry, seconds)
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _, collection_cpu = seconds_per_iteration(trainer.only_roll_out, rollout_carry, seconds / 4)
    _, simulation_cpu = seconds_per_iteration(trainer.only_simulate, jax.random.key(1), seconds / 4)
    steps = EPISODE_STEPS * num_envs
    return {
        "name": "jaxmarl",
        "version": version("jaxmarl"),
        "env_steps_per_s": round(steps / training, 1),
        "updates_per_s": round(1 / training, 2),
        "steps_per_update": steps,
        "startup_s": round(startup, 2),
        "peak_memory_mb": round(peak_memory, 1),
        "cpu_share": round(training_cpu / training, 3),
        "collection_share": round(collection_cpu / training_cpu, 3),
        "simulation_share": round(simulation_cpu / training_cpu, 3),
        "setting": {
            "env": "MPE_simple_spread_v3",
            "agents": len(trainer.agents),
            "envs": num_envs,
            "episode_steps": EPISODE_STEPS,
            "batch_episodes": batch,
            "buffer_episodes": BUFFER_EPISODES,
            "network": f"linear {hidden}, GRU {hidden}, linear",
            "mixer": f"QMIX, embed {MIXER_EMBED}, hypernet 2 x {HYPERNET_HIDDEN}",
            "obs_dim": int(trainer.env.obs_size),
            "state_dim": len(trainer.agents) * int(trainer.env.max_obs_length),
            "packages": {name: version(name) for name in ("jax", "flax", "flashbax", "optax")},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time QMIX training on JaxMARL's simple_spread; prints one JSON line.")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long training is timed, in s")
    parser.add_argument("--hidden", type=int, default=64, help="width of the GRU")
    parser.add_argument("--batch", type=int, default=32, help="episodes in one update")
    parser.add_argument("--envs", type=int, default=8, help="copies of the environment, one episode each per update")
    parser.add_argument("--env", choices=["mpe"], default="mpe", help="the package has no level-based foraging")
    options = parser.parse_args()
    print(json.dumps(measure(options.seconds, options.hidden, options.batch, options.envs)))


if __name__ == "__main__":
    main()
