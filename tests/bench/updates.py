"""Time of an update of Q-learning with every mixer, and of every other algorithm, beside Q-learning with QMIX.

python tests/bench/updates.py --rounds 20
python tests/bench/updates.py --only qplex wqmix
python tests/bench/updates.py --tasks lbf --lengths 10 13 16 19 22 27 37 50

All algorithms learn from the same 32 episodes, in turn, on one thread, with their default settings; an algorithm that accepts
QMIX uses it. Times are medians over the rounds, of processor time on a CPU. A ratio is the median of the ratios within a round.
For the first ratio the actions in the episodes are random, as early in a run. For the second each algorithm has chosen them
itself, with the exploration at the end of a run. The observations are the same in both. With --lengths the episodes terminate
after these numbers of steps, in turn; the example has those of a replay buffer of lbf in the middle of a run.
"""

import argparse
import os
import statistics
from typing import Any

from mixers import clock

from qllm_exp.config import registry
from qllm_exp.config.load import config_class

os.environ.setdefault("OMP_NUM_THREADS", "1")

EPISODES = 32
TASKS = ("lbf", "mpe")  # the default task of each
REPEATS = 3  # updates per time measurement
REFERENCE = "q_learning+qmix"
LATE = 10**12  # environment steps, after which exploration has its final value


class FixedEpisodes:
    """Experience that returns the same episodes for every request."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def sample(self, count: int) -> Any:
        return self.batch

    latest = sample

    def last_rollout(self) -> Any:
        return self.batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="names of mixers and algorithms; default: all")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--lengths", nargs="*", type=int, help="steps of the episodes; default: as played")
    options = parser.parse_args()
    settings = (options.rounds, options.device, options.only, options.lengths)
    show({task: measure(task, *settings) for task in options.tasks})


def measure(
    task: str, rounds: int, device: str, only: list[str] | None, lengths: list[int] | None
) -> dict[str, dict[str, list[float]]]:
    """Return the milliseconds of an update in every round, by algorithm and by actions.

    Args:
        task: environment whose default task is used.
        rounds: number of rounds.
        device: 'cpu' or 'cuda'.
        only: names of mixers and algorithms; None: all.
        lengths: steps of the episodes; None: as played.

    Returns:
        For each algorithm, {'random': [rounds], 'own': [rounds]}: random actions, or its own.
    """
    import torch

    from qllm_exp import experiment
    from qllm_exp.envs import make_env

    torch.set_num_threads(1)
    torch.manual_seed(0)
    experiment.keep_freed_memory()
    env = make_env(config_class("env", task)(), EPISODES, 0, device)
    algorithms = {name: make(task, name, env) for name in names(only)}
    random = FixedEpisodes(random_episodes(env, algorithms[REFERENCE], lengths))
    times: dict[str, dict[str, list[float]]] = {name: {"random": [], "own": []} for name in algorithms}
    for number in range(rounds + 1):  # the first round is a warm-up
        for name, algorithm in algorithms.items():
            own = FixedEpisodes(with_own_actions(algorithm, random.batch))
            for actions, experience in (("random", random), ("own", own)):
                started = clock(device)
                for _ in range(REPEATS):
                    algorithm.update(experience)
                if number:
                    times[name][actions].append(1e3 * (clock(device) - started) / REPEATS)
    env.close()
    return times


def names(only: list[str] | None) -> list[str]:
    """Return 'q_learning+MIXER' for every mixer, the reference first, and then the other algorithms."""
    mixers = [f"q_learning+{name}" for name in registry.choices("mixer")]
    others = [name for name in registry.choices("algorithm") if name != "q_learning"]
    selected = [name for name in (*mixers, *others) if only is None or name.rpartition("+")[2] in only]
    return [REFERENCE, *(name for name in selected if name != REFERENCE)]


def make(task: str, name: str, env: Any) -> Any:
    """Return an algorithm with its default settings, by one of `names`."""
    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.config import registry, schema
    from qllm_exp.credit import stored_function
    from qllm_exp.mixers import make_mixer

    algorithm, _, mixer = name.partition("+")
    accepts = registry.find("algorithm", algorithm).ACCEPTS
    mixer = mixer or ("qmix" if accepts is None or "qmix" in accepts else accepts[0])
    function = {"file": str(stored_function.bundled_path(task, env.task.task))} if mixer == "tfcaf" else {}
    run = schema.RunConfig(
        env=config_class("env", task)(),
        algorithm=config_class("algorithm", algorithm)(),
        mixer=config_class("mixer", mixer)(**function),
    )
    return make_algorithm(run, env, make_mixer(run.mixer, env))


def random_episodes(env: Any, algorithm: Any, lengths: list[int] | None) -> Any:
    """Return an episode of every copy of the environment, with random actions: those of `algorithm` at the start of a run.

    Args:
        env: the environment.
        algorithm: acts.
        lengths: steps after which the episodes terminate, in turn; None: as played.
    """
    import torch

    from qllm_exp.training.replay import EpisodeStorage, ReplayBuffer
    from qllm_exp.training.rollout import rollout
    from qllm_exp.training.timer import Timer

    storage, buffer = EpisodeStorage(env, EPISODES), ReplayBuffer(env, EPISODES)
    generator = torch.Generator(env.device)
    rollout(env, algorithm, storage, 0, generator, Timer(env.device))
    for episode in range(EPISODES if lengths else 0):
        storage.lengths[episode] = length = min(lengths[episode % len(lengths)], env.episode_limit)
        storage.terminated[length - 1, episode] = True
    buffer.add(storage)
    return buffer.batch(torch.arange(EPISODES))


def with_own_actions(algorithm: Any, batch: Any) -> Any:
    """Return the episodes with the actions that an algorithm takes for their observations."""
    import torch

    generator = torch.Generator(batch.obs.device)
    memory, actions = algorithm.initial_memory(EPISODES), []
    for t in range(batch.steps):
        chosen, memory = algorithm.act(batch.obs[t], batch.available_actions[t], memory, LATE, generator)
        actions.append(chosen)
    return batch._replace(actions=torch.stack(actions))


def show(results: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Print the times of `measure` for each task, and their ratios to the reference, as Markdown."""
    print("| algorithm | " + " | ".join(f"{task}: ms | ratio, random | ratio, own actions" for task in results) + " |")
    print("|---|" + "---|---|---|" * len(results))
    for name in next(iter(results.values())):
        cells = []
        for times in results.values():
            cells.append(f"{statistics.median(times[name]['random']):.1f}")
            for actions, values in times[name].items():
                ratios = [value / other for value, other in zip(values, times[REFERENCE][actions], strict=True)]
                cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
