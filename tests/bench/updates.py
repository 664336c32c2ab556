"""Time of an update of Q-learning with every mixer, and of every other algorithm, beside that of Q-learning with QMIX.

python tests/bench/updates.py --rounds 20
python tests/bench/updates.py --only qplex wqmix

All learn from the same 32 episodes, in turn, on one thread, as a run does with its default settings; an algorithm that can use
QMIX does. Times are medians over the rounds, of processor time on a CPU; a ratio is the median of the ratios within a round. In
the first ratio the actions of the episodes are random, as early in a run; in the second those that each learner now takes in
these episodes itself, with the exploration that is left at the end. The observations are the same in both.
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
REPEATS = 3  # updates that one time is taken over
BASIS = "q_learning+qmix"
LATE = 10**12  # environment steps, at which exploration is what is left of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="names of mixers and algorithms; without it, all")
    given = parser.parse_args()
    show({task: measure(task, given.rounds, given.device, given.only) for task in TASKS})


def measure(task: str, rounds: int, device: str, only: list[str] | None) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of an update in every round: by learner, then by whose actions."""
    import torch

    from qllm_exp import experiment
    from qllm_exp.algorithms.base import EpisodeBatch
    from qllm_exp.envs import make_env

    class Given:
        """The same episodes, whichever are asked for."""

        def __init__(self, batch: EpisodeBatch) -> None:
            self.batch = batch

        def sample(self, count: int) -> EpisodeBatch:
            return self.batch

        latest = sample

        def last_rollout(self) -> EpisodeBatch:
            return self.batch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    experiment.keep_freed_memory()
    env = make_env(config_class("env", task)(), EPISODES, 0, device)
    made = {name: learner(task, name, env) for name in names(only)}
    explored = Given(episodes(env, made[BASIS]))
    times: dict[str, dict[str, list[float]]] = {name: {"random": [], "own": []} for name in made}
    for number in range(rounds + 1):  # the first does not count
        for name, one in made.items():
            for whose, experience in (("random", explored), ("own", Given(as_it_acts(one, explored.batch)))):
                started = clock(device)
                for _ in range(REPEATS):
                    one.update(experience)
                if number:
                    times[name][whose].append(1e3 * (clock(device) - started) / REPEATS)
    env.close()
    return times


def names(only: list[str] | None) -> list[str]:
    """'q_learning+MIXER' for every mixer, the basis first, then the other algorithms."""

    mixers = [f"q_learning+{name}" for name in registry.choices("mixer")]
    others = [name for name in registry.choices("algorithm") if name != "q_learning"]
    every = [name for name in (*mixers, *others) if only is None or name.rpartition("+")[2] in only]
    return [BASIS, *(name for name in every if name != BASIS)]


def learner(task: str, name: str, env: Any) -> Any:
    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.config import registry, schema
    from qllm_exp.credit import stored_function
    from qllm_exp.mixers import make_mixer

    algorithm, _, mixer = name.partition("+")
    accepts = registry.find("algorithm", algorithm).ACCEPTS
    mixer = mixer or ("qmix" if accepts is None or "qmix" in accepts else accepts[0])
    written = {"file": str(stored_function.bundled_path(task, env.task.task))} if mixer == "tfcaf" else {}
    run = schema.RunConfig(
        env=config_class("env", task)(),
        algorithm=config_class("algorithm", algorithm)(),
        mixer=config_class("mixer", mixer)(**written),
    )
    return make_algorithm(run, env, make_mixer(run.mixer, env))


def episodes(env: Any, explorer: Any) -> Any:
    """One episode of every copy of the environment, with random actions."""
    import torch

    from qllm_exp.training.replay import EpisodeStorage, ReplayBuffer
    from qllm_exp.training.rollout import rollout
    from qllm_exp.training.timer import Timer

    new, kept = EpisodeStorage(env, EPISODES), ReplayBuffer(env, EPISODES)
    generator = torch.Generator(env.device)
    rollout(env, explorer, new, 0, generator, Timer(env.device))
    kept.add(new)
    return kept.batch(torch.arange(EPISODES))


def as_it_acts(one: Any, batch: Any) -> Any:
    """The episodes with the actions that the learner takes where it sees what was seen in them."""
    import torch

    generator = torch.Generator(batch.obs.device)
    memory, actions = one.initial_memory(EPISODES), []
    for t in range(batch.steps):
        chosen, memory = one.act(batch.obs[t], batch.available_actions[t], memory, LATE, generator)
        actions.append(chosen)
    return batch._replace(actions=torch.stack(actions))


def show(found: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    print("| learner | " + " | ".join(f"{task}: ms | ratio, random | ratio, own actions" for task in found) + " |")
    print("|---|" + "---|---|---|" * len(found))
    for name in next(iter(found.values())):
        cells = []
        for times in found.values():
            cells.append(f"{statistics.median(times[name]['random']):.1f}")
            for whose, each in times[name].items():
                ratios = [mine / basis for mine, basis in zip(each, times[BASIS][whose], strict=True)]
                cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
