"""Training speed of QMIX in BenchMARL on VMAS simple_spread, on one CPU core, as one JSON line.

Everything that is timed comes from published packages: the experiment, its loop, QMIX, the GRU and MLP models
(benchmarl), the mixer, loss, collector and buffer (torchrl), the simulator (vmas). This file only fills in the
configuration and reads the clock in a callback.

BenchMARL counts in frames, one frame being one step of one copy: a collected batch is `envs` episodes, a training
batch is `batch` episodes, both times EPISODE_STEPS. With a recurrent model its buffer stores whole collected
sequences, and the task's episode limit is set to their length, so that each sequence is one episode.

Where its configuration does not reach the setting of the other peer: the weight hypernetworks of torchrl's mixer have
a single layer (no hidden 128), observation and state are smaller (no agent index, no communication channel), the first
linear layer has no ReLU after it, targets are not double-Q, and the target network moves softly at every update. Only
the last of these adds work.
"""
# ruff: noqa: E402 - the thread pools read their settings once, when torch is imported

import time

STARTED = time.perf_counter() - time.process_time()  # the interpreter's own start is all CPU time

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import argparse
import contextlib
import json
import resource
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import torch
import vmas

with contextlib.redirect_stdout(sys.stderr):  # standard output is for the figures
    from benchmarl.algorithms import QmixConfig
    from benchmarl.environments import VmasTask
    from benchmarl.experiment import Callback, Experiment, ExperimentConfig
    from benchmarl.models import GruConfig, MlpConfig, SequenceModelConfig

EPISODE_STEPS = 26
BUFFER_EPISODES = 5000
TOTAL_STEPS = 10_000_000  # only scales the decay of epsilon; the clock ends the run
WARM_UP = 10  # iterations left out of the figures


class TimeUpError(Exception):
    """Ends the experiment from inside a callback, its only way out before the last frame."""


class Clock(Callback):  # type: ignore[misc, unused-ignore]
    """Notes when collection and training of each iteration end, and stops the run `seconds` after the warm-up.

    Attributes:
        ends: wall time at the end of each iteration, in s.
        collected_cpu, ends_cpu: CPU time of the process when an iteration had its batch, and at its end, in s.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.ends: list[float] = []
        self.collected_cpu: list[float] = []
        self.ends_cpu: list[float] = []

    def on_batch_collected(self, batch: Any) -> None:
        self.collected_cpu.append(time.process_time())

    def on_train_end(self, training_td: Any, group: str) -> None:
        self.ends.append(time.perf_counter())
        self.ends_cpu.append(time.process_time())
        if len(self.ends) > WARM_UP + 1 and self.ends[-1] - self.ends[WARM_UP] > self.seconds:
            raise TimeUpError

    def per_iteration(self) -> tuple[float, float, float]:
        """Means after the warm-up, in s: wall time, CPU time, CPU time until the batch was collected."""
        count = len(self.ends) - 1 - WARM_UP
        collecting = sum(self.collected_cpu[WARM_UP + 1 :]) - sum(self.ends_cpu[WARM_UP:-1])
        wall, cpu = (times[-1] - times[WARM_UP] for times in (self.ends, self.ends_cpu))
        return wall / count, cpu / count, collecting / count


def make_experiment(clock: Clock, hidden: int, batch: int, num_envs: int, folder: str) -> Experiment:
    """The experiment, with BenchMARL's own defaults for whatever is not named here."""
    config = ExperimentConfig.get_from_yaml()
    config.prefer_continuous_actions = False
    config.max_n_frames = TOTAL_STEPS
    config.off_policy_n_envs_per_worker = num_envs
    config.off_policy_collected_frames_per_batch = num_envs * EPISODE_STEPS
    config.off_policy_n_optimizer_steps = 1
    config.off_policy_train_batch_size = batch * EPISODE_STEPS
    config.off_policy_memory_size = BUFFER_EPISODES * EPISODE_STEPS
    config.evaluation = config.render = config.create_json = False
    config.loggers = []
    config.checkpoint_interval = 0
    config.save_folder = folder
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    task.config["max_steps"] = EPISODE_STEPS
    linear = MlpConfig.get_from_yaml()
    linear.num_cells = []
    gru = GruConfig.get_from_yaml()
    gru.hidden_size, gru.n_layers, gru.mlp_num_cells = hidden, 1, []
    return Experiment(
        task=task,
        algorithm_config=QmixConfig.get_from_yaml(),
        model_config=SequenceModelConfig(model_configs=[linear, gru], intermediate_sizes=[hidden]),
        seed=0,
        config=config,
        callbacks=[clock],
    )


@torch.no_grad()
def seconds_to_simulate(task: dict[str, Any], num_envs: int, seconds: float) -> float:
    """Mean CPU time of one reset and EPISODE_STEPS random steps of all copies in VMAS alone, with no network."""
    env = vmas.make_env("simple_spread", num_envs=num_envs, continuous_actions=False, seed=0, **task)
    start, cpu_start, episodes = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        env.reset()
        for _ in range(EPISODE_STEPS):
            env.step([env.get_random_action(agent) for agent in env.agents])
        episodes += 1
    return (time.process_time() - cpu_start) / episodes


def measure(seconds: float, hidden: int, batch: int, num_envs: int) -> dict[str, Any]:
    """Train for `seconds`, time simulation alone for a quarter of it, and report."""
    torch.set_num_threads(1)
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as folder:
        experiment = make_experiment(clock, hidden, batch, num_envs, folder)
        with contextlib.suppress(TimeUpError):
            experiment.run()
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    simulation_cpu = seconds_to_simulate(experiment.task.config, num_envs, seconds / 4)
    training, training_cpu, collection_cpu = clock.per_iteration()
    steps = EPISODE_STEPS * num_envs
    observation = experiment.observation_spec["agents", "observation"].shape
    mixer = experiment.losses["agents"].mixer_network.module
    return {
        "name": "benchmarl",
        "version": version("benchmarl"),
        "env_steps_per_s": round(steps / training, 1),
        "updates_per_s": round(1 / training, 2),
        "steps_per_update": steps,
        "startup_s": round(clock.ends[0] - STARTED, 2),
        "peak_memory_mb": round(peak_memory, 1),
        "cpu_share": round(training_cpu / training, 3),
        "collection_share": round(collection_cpu / training_cpu, 3),
        "simulation_share": round(simulation_cpu / training_cpu, 3),
        "setting": {
            "env": "vmas simple_spread",
            "agents": observation[0],
            "envs": num_envs,
            "episode_steps": EPISODE_STEPS,
            "batch_episodes": experiment.replay_buffers["agents"].batch_size,
            "buffer_episodes": BUFFER_EPISODES,
            "network": f"linear {hidden}, GRU {hidden}, linear",
            "mixer": f"QMIX, embed {mixer.embed_dim}, hypernet 1 layer",
            "obs_dim": observation[1],
            "state_dim": mixer.state_dim,
            "packages": {name: version(name) for name in ("torch", "torchrl", "tensordict", "vmas")},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time BenchMARL's QMIX on VMAS simple_spread; prints one JSON line.")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long training is timed, in s")
    parser.add_argument("--hidden", type=int, default=64, help="width of the GRU")
    parser.add_argument("--batch", type=int, default=32, help="episodes in one update")
    parser.add_argument("--envs", type=int, default=8, help="copies of the environment, one episode each per update")
    parser.add_argument("--env", choices=["mpe"], default="mpe", help="the package has no level-based foraging")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        report = measure(options.seconds, options.hidden, options.batch, options.envs)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
