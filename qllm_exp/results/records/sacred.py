"""Run folders of Sacred, as PyMARL and EPyMARL write them: config.json, run.json, and metrics.json or info.json.

EPyMARL writes results/sacred/ALGORITHM/TASK/NUMBER, PyMARL results/sacred/NUMBER. Both evaluate every `test_interval` steps and log
`test_return_mean` at `t_env`, the training steps over all copies of the environment. With `common_reward=False` EPyMARL logs a
return per agent and their sum, `test_total_return_mean`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.results.records.external import ExternalRun, SourceMapping, check_curve, check_win_rates, read_json
from qllm_exp.runs.dotted_keys import flatten
from qllm_exp.runs.run_state import FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING
from qllm_exp.utils.text import excerpt, inert

_CONFIG, _RUN, _METRICS, _INFO = "config.json", "run.json", "metrics.json", "info.json"
_MAX_DEPTH = 4  # of a run folder below the folder that is given: results/sacred/ALGORITHM/TASK/NUMBER
_RETURN, _TOTAL_RETURN, _WIN = "test_return_mean", "test_total_return_mean", "test_battle_won_mean"
_STATES = {
    "COMPLETED": FINISHED,
    "RUNNING": RUNNING,
    "QUEUED": QUEUED,
    "INTERRUPTED": INTERRUPTED,
    "FAILED": FAILED,
    "TIMED_OUT": FAILED,
}
# Keys of the configuration that do not define a method: names, task, seed, where results go, and what is logged and saved.
_NOT_METHOD = re.compile(
    r"(name|label|seed|env|env_args|repeat_id|hypergroup|evaluate|render|runner|load_step|checkpoint_path|buffer_cpu_only"
    r"|use_cuda|use_tensorboard|local_results_path|test_nepisode|test_interval|(\w+_)?log_interval|(use_)?wandb\w*|save_\w+)"
)
_NOT_ENV = ("key", "map_name", "seed", "state_last_action", "replay_dir", "replay_prefix", "debug")
_FORAGING = re.compile(r"(?:lbforaging:)?Foraging(?P<sight>-2s)?-(?P<size>(\d+)x\3-\d+p-\d+f)(?P<coop>-coop)?-v3")
_FORAGING_LIMIT = 50  # steps, which the registered ids have themselves: a longer time_limit has no effect


def run_folders(path: Path) -> list[Path]:
    """Return the run folders of Sacred at or below a folder, sorted."""
    folders: list[Path] = []
    for depth in range(_MAX_DEPTH + 1):
        configs = path.glob(f"{'*/' * depth}{_CONFIG}")
        folders += [config.parent for config in configs if (config.parent / _RUN).exists()]
    return sorted(folders)


def read(folder: Path, mapping: SourceMapping) -> ExternalRun:
    """Return the run of a folder.

    Args:
        folder: a run folder of Sacred.
        mapping: what the user states about it.

    Raises:
        UserError: a file is missing or cannot be read, the run has no seed, or a finished run has no valid evaluations.
    """
    config, run = _object(folder / _CONFIG), _object(folder / _RUN)
    for key, expected in (("seed", int), ("name", str), ("env", str)):
        if type(config.get(key)) is not expected:
            raise UserError(
                f"{folder / _CONFIG} has no {key}, so it is not the configuration of a PyMARL or EPyMARL run."
            )
    status = str(run.get("status"))
    state = _STATES.get(status, FAILED)
    env_args = config["env_args"] if isinstance(config.get("env_args"), dict) else {}
    task, env_options = _own_task(config, env_args)
    steps: tuple[int, ...] = ()
    returns: tuple[float, ...] = ()
    win_rates: tuple[float, ...] = ()
    metric = _RETURN
    if state == FINISHED:
        series = _series(folder)
        metric = _RETURN if _RETURN in series else _TOTAL_RETURN
        if metric not in series:
            available = ", ".join(sorted(series)) or "none"
            raise UserError(f"{folder} has no {_RETURN}. Metrics of the run: {available}.")
        steps, returns = check_curve(f"{folder}: {metric}", *series[metric])
        win_steps, wins = series.get(_WIN, ((), ()))
        if wins:
            if tuple(win_steps) != steps:
                raise UserError(f"{folder}: {_WIN} and {metric} are at different steps. Leave the run out.")
            win_rates = check_win_rates(f"{folder}: {_WIN}", steps, wins)
    program = "epymarl" if "common_reward" in config or config["env"] == "gymma" else "pymarl"
    return ExternalRun(
        path=folder,
        program=mapping.program or program,
        env=inert(config["env"]),
        task=inert(env_args.get("map_name") or env_args.get("key") or config["env"]),
        method=inert(config["name"]),
        seed=config["seed"],
        steps=steps,
        returns=returns,
        unit=mapping.unit or _unit(config, metric),
        settings=_settings(config, env_args),
        win_rates=win_rates,
        own_task=task,
        env_options=env_options,
        state=state,
        reason="" if state == FINISHED else _reason(status, run),
    )


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object. Copy the whole run folder again.")
    return content


def _series(folder: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return steps and values of each metric, from metrics.json or, as older versions have no such file, from info.json."""
    if (folder / _METRICS).exists():
        metrics = _object(folder / _METRICS)
        if metrics:
            return {
                name: (entry["steps"], [_number(value) for value in entry["values"]])
                for name, entry in metrics.items()
                if isinstance(entry, dict) and all(isinstance(entry.get(key), list) for key in ("steps", "values"))
            }
    info = _object(folder / _INFO)
    return {
        name: ([_number(step) for step in info[f"{name}_T"]], [_number(value) for value in values])
        for name, values in info.items()
        if isinstance(values, list) and isinstance(info.get(f"{name}_T"), list)
    }


def _number(value: Any) -> Any:
    """Return a number of NumPy, which info.json has as an object, as its value."""
    return value.get("value", value) if isinstance(value, dict) else value


def _settings(config: Mapping[str, Any], env_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that distinguish methods and tasks; those of the environment begin with 'env.'."""
    settings = flatten({key: value for key, value in config.items() if not _NOT_METHOD.fullmatch(key)})
    env_options = {f"env.{key}": value for key, value in env_args.items() if key not in _NOT_ENV}
    if config.get("common_reward"):
        env_options["env.reward"] = config.get("reward_scalarisation")
    return settings | env_options


def _own_task(config: Mapping[str, Any], env_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the task of this package with the same rules and the options that the program states; '' and {} if there is none.

    Foraging of lbforaging, version 3, is the only one: its rules are those of env=lbf, and all actions are available. Its reward
    is unknown in configurations from before `common_reward`.
    """
    match = _FORAGING.fullmatch(str(env_args.get("key")))
    limit = env_args.get("time_limit")
    is_known = match is not None and "common_reward" in config and not env_args.get("pretrained_wrapper")
    if match is None or not is_known or type(limit) is not int or not 0 < limit <= _FORAGING_LIMIT:
        return "", {}
    reward = config.get("reward_scalarisation") if config["common_reward"] else "sum"
    if reward not in ("sum", "mean"):
        return "", {}
    task = f"lbf/{match['size']}{match['coop'] or ''}{match['sight'] or ''}"
    return task, {"episode_limit": limit, "reward": reward, "mask_ineffective": False}


def _unit(config: Mapping[str, Any], metric: str) -> str:
    if metric == _TOTAL_RETURN:
        unit = "sum of the returns of the agents (common_reward=False)"
    elif config.get("common_reward") and config["env"] == "gymma":
        unit = f"return of the team, the {config.get('reward_scalarisation')} of the rewards of the agents"
    elif config["env"] == "gymma":
        unit = "return of the team; the configuration does not say whether the rewards of the agents are averaged or summed"
    else:
        unit = "return of the team, as its environment gives it"
    return f"{unit}; {config.get('test_nepisode')} episodes per evaluation; steps: t_env, steps over all copies"


def _reason(status: str, run: Mapping[str, Any]) -> str:
    trace = run.get("fail_trace")
    last_line = str(trace[-1]).strip() if isinstance(trace, list) and trace else ""
    heartbeat = run.get("heartbeat")
    details = last_line or (f"last heartbeat {heartbeat}" if heartbeat else "")
    return excerpt(f"Sacred recorded {status}{f': {details}' if details else ''}", 300)
