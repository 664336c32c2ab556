"""Training speed of this package in one setting, as one JSON line with the same fields as those of the scripts in peers/.

python tests/bench/ours.py --setting jaxmarl-mpe --seconds 20
"""

import argparse
import json
import os
import resource
import sys
import time

BEGIN = time.monotonic()
os.environ.setdefault("OMP_NUM_THREADS", "1")

# name: (environment and mixer with their options, hidden width, episodes per batch, environment steps per update)
SETTINGS: dict[str, tuple[dict, dict, int, int, int]] = {
    "qllm-mpe": ({"name": "mpe"}, {"name": "tfcaf"}, 128, 64, 200),
    "qllm-lbf": ({"name": "lbf"}, {"name": "tfcaf"}, 128, 64, 400),
    "epymarl-mpe": ({"name": "mpe"}, {"name": "qmix"}, 64, 32, 200),
    "epymarl-mpe-pettingzoo": ({"name": "mpe", "rules": "pettingzoo"}, {"name": "qmix"}, 64, 32, 200),
    "epymarl-mpe2": ({"name": "pettingzoo"}, {"name": "qmix"}, 64, 32, 200),
    "epymarl-lbf": ({"name": "lbf"}, {"name": "qmix"}, 64, 32, 400),
    "jaxmarl-mpe": ({"name": "mpe"}, {"name": "qmix", "hypernet": 128}, 64, 32, 208),
    "smax": ({"name": "smax"}, {"name": "qmix"}, 64, 32, 400),
    "grf": ({"name": "grf"}, {"name": "qmix"}, 64, 32, 1200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=SETTINGS, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measurement, after a warm-up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num-envs", type=int, default=0, help="0: as env.num_envs=auto chooses for the device")
    options = parser.parse_args()
    print(json.dumps(measure(options.setting, options.seconds, options.device, options.num_envs)))


def measure(
    setting: str, seconds: float, device: str, num_envs: int, steps_per_update: int = 0, warm_up: int = 10
) -> dict:
    """Train in a setting for some seconds after a warm-up, and return the speed.

    Args:
        setting: name of the setting.
        seconds: length of the measurement, s.
        device: 'cpu' or 'cuda'. A GPU is not stopped to time the parts of an update, whose times then mean nothing.
        num_envs: copies of the environment; 0: as env.num_envs=auto chooses for the device.
        steps_per_update: environment steps per update; 0: those of the setting.
        warm_up: updates before the measurement.
    """
    import torch

    from qllm_exp import experiment
    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.config.load import config_class, load_run, with_num_envs
    from qllm_exp.credit.stored_function import bundled_path
    from qllm_exp.envs import make_env
    from qllm_exp.mixers import make_mixer
    from qllm_exp.networks import gru_kernel
    from qllm_exp.training.trainer import Trainer

    torch.set_num_threads(1)
    experiment.keep_freed_memory()
    env_options, mixer, hidden, batch, default = SETTINGS[setting]
    steps_per_update = steps_per_update or default
    env_name = env_options["name"]
    task = config_class("env", env_name)().task
    function = {"file": str(bundled_path(env_name, task))} if mixer["name"] == "tfcaf" else {}
    run = load_run(
        {
            "env": env_options | {"num_envs": num_envs or "auto"},
            "mixer": mixer | function,
            "algorithm": {"name": "q_learning"},
            "train": {"name": "fair", "hidden": hidden, "batch_episodes": batch, "steps_per_update": steps_per_update},
        }
    )
    run = with_num_envs(run, device.partition(":")[0])
    env = make_env(run.env, run.env.num_envs, 0, device)
    algorithm = make_algorithm(run, env, make_mixer(run.mixer, env))
    trainer = Trainer(
        run.train, env, algorithm, 0, lambda _: 0, lambda _: None, lambda: False, exact_timer=device == "cpu"
    )
    trainer.cycle()
    startup = time.monotonic() - BEGIN
    while trainer.updates < warm_up:
        trainer.cycle()
    trainer.timer.seconds.clear()
    steps, updates, begin, processor = trainer.env_steps, trainer.updates, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        trainer.cycle()
    wall, processor = time.perf_counter() - begin, time.process_time() - processor
    evaluation = time.perf_counter()
    trainer.evaluate(100, "bench")
    evaluation = time.perf_counter() - evaluation
    env.close()
    updates = trainer.updates - updates
    return {
        "name": "qllm_exp",
        "setting": setting,
        "env_steps_per_s": (trainer.env_steps - steps) / wall,
        "env_steps_per_processor_s": (trainer.env_steps - steps) / processor,
        "updates_per_s": updates / wall,
        "ms_per_update": {
            part: 1000 * s / max(updates, 1) for part, s in trainer.timer.seconds.items() if part != "evaluate"
        },
        "evaluation_of_100_episodes_s": evaluation,
        "startup_s": startup,
        "gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "num_envs": env.num_envs,
        "kernel": gru_kernel.status(),
    }


if __name__ == "__main__":
    sys.exit(main())
