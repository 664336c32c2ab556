"""Turn a checked configuration into a run that is ready to start: device resolved, function at hand, directory named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from qllm_exp.config import schema
from qllm_exp.config.device import DeviceResolver, resolve_device
from qllm_exp.config.load import run_name, with_num_envs
from qllm_exp.errors import UserError, error_line
from qllm_exp.generation import provide
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking import wandb_login
from qllm_exp.utils.memory import Memory, available_memory


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        config: its configuration.
        directory: its directory, which may not exist yet.
        tfcaf: JSON text of its credit-assignment function; None if its mixer has none.
        tfcaf_hash: hash of that function's program; None likewise.
    """

    config: schema.RunConfig
    directory: RunDirectory
    tfcaf: str | None
    tfcaf_hash: str | None


MemoryReader = Callable[[], Memory | None]  # returns the memory of the machine that will train a run; None: not known


def check(
    run: schema.RunConfig, resolve: DeviceResolver = resolve_device, memory: MemoryReader = available_memory
) -> schema.RunConfig:
    """Check that a run can start. Nothing is written, and no language model is called.

    Args:
        run: the configuration.
        resolve: maps a configured device to the device of the machine that will train the run.
        memory: returns the memory of that machine for a run on its CPU.

    Returns:
        The configuration with its device and the sizes that depend on it (`env.num_envs=auto`) resolved.

    Raises:
        UserError: the run cannot start.
    """
    from qllm_exp.algorithms import check_combination
    from qllm_exp.credit import stored_function
    from qllm_exp.envs import env_module

    if run.seed in schema.SEARCH_SEEDS and not run.sweep.search:
        first, last = schema.SEARCH_SEEDS[0], schema.SEARCH_SEEDS[-1]
        raise UserError(
            f"seed={run.seed} is reserved: functions and settings are chosen by runs with seeds from {first} to {last}, and no "
            "table may repeat them. Use another seed, e.g. seed=0."
        )
    run = replace(run, device=resolve(run.device))
    run = with_num_envs(run, run.device.partition(":")[0])
    check_combination(run.algorithm.name, run.mixer.name)
    env_module(run.env.name).check(run.env)
    if run.env.built_when_planned:
        _check_built(run, memory)
    if isinstance(run.tracking, schema.WandbConfig):
        tracking = wandb_login.obey_environment(run.tracking)  # for this command; a run looks for itself when it starts
        wandb_login.check(tracking, (*run.sweep.tags, *tracking.tags))
    if isinstance(run.mixer, schema.FunctionMixerConfig):
        source = provide.locate(run)
        if source.exists or not source.key:
            _check_fits(run, source.path)
        else:
            stored_function.check_names(run.env.name, run.env.task)  # before a function is paid for
            provide.check_backend(run)
    return run


_SMALL = 2**28  # bytes of a replay buffer for which no machine is asked
_SIZES: dict[str, Any] = {}  # EpisodeSize by environment, of those that were built


def _check_built(run: schema.RunConfig, memory: MemoryReader) -> None:
    """Build one copy of the run's environment, once per environment, and check that the run's episodes fit into memory.

    Raises:
        UserError: the environment cannot be built, or the episodes do not fit.
    """
    from qllm_exp.training.replay import check_memory

    key = repr(replace(run.env, num_envs=1))
    if key not in _SIZES:
        _SIZES[key] = _built_size(run.env)
    size, num_envs = _SIZES[key], int(run.env.num_envs)
    if run.device.startswith("cuda") or size.nbytes * max(run.train.buffer_episodes, num_envs) < _SMALL:
        return
    try:
        check_memory(size, num_envs, run.train, False, memory())
    except UserError:
        if not _is_on_policy(run):
            raise
        check_memory(size, num_envs, run.train, True, memory())


def _built_size(config: schema.EnvConfig) -> Any:
    """Return the size of an episode of an environment, from one copy that is built and closed again.

    It is built on the CPU: a machine that submits jobs may lack the GPUs that they have, and a sweep needs none of its own.
    """
    from qllm_exp.envs import make_env
    from qllm_exp.training.replay import episode_size

    try:
        env = make_env(replace(config, num_envs=1), 1, 0)
        try:
            return episode_size(env)
        finally:
            env.close()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"env={config.name} with env.task={config.task!r} cannot be built: {' '.join(error_line(error).split())}"
        ) from error


def _is_on_policy(run: schema.RunConfig) -> bool:
    """Whether the algorithm of a run stores its last rollout only, which takes building it."""
    from qllm_exp.algorithms import make_algorithm
    from qllm_exp.envs import make_env
    from qllm_exp.mixers import make_mixer

    if isinstance(run.mixer, schema.FunctionMixerConfig):  # of an algorithm that learns from a replay buffer
        return False
    env = make_env(replace(run.env, num_envs=1), 1, 0)
    try:
        return make_algorithm(run, env, make_mixer(run.mixer, env)).on_policy
    finally:
        env.close()


def missing_function(run: schema.RunConfig) -> Path | None:
    """Return the file of a credit-assignment function that has to be generated for a run; None if none has to be."""
    if not isinstance(run.mixer, schema.FunctionMixerConfig):
        return None
    source = provide.locate(run)
    return source.path if source.key and not source.exists else None


def prepare(run: schema.RunConfig, search: provide.Search | None = None) -> PreparedRun:
    """Provide the credit-assignment function of a checked run, and name its directory.

    A function that does not exist yet is generated, which calls a language model.

    Args:
        run: the configuration.
        search: as for `provide.provide`.
    """
    text, tfcaf_hash = None, None
    if isinstance(run.mixer, schema.FunctionMixerConfig):
        path = provide.provide(run, search)
        tfcaf_hash = _check_fits(run, path)
        text = _read_text(path, path.stat().st_mtime_ns)
    name = run_name(run, tfcaf_hash)
    return PreparedRun(run, RunDirectory(Path(run.dir) / name), text, tfcaf_hash)


@cache
def _read_text(path: Path, modified_ns: int) -> str:
    """Read a file; `modified_ns`, its modification time, makes the cache notice a changed file."""
    return path.read_text(encoding="utf-8")


# Hash of a function's program, by environment, mixer, file and its modification time, once they are known to fit.
_FITTING: dict[tuple[Any, ...], str] = {}


def _check_fits(run: schema.RunConfig, path: Path) -> str:
    """Check a credit-assignment function against the environment and mixer of a run, once for each combination.

    Returns:
        Hash of the function's program.

    Raises:
        UserError: the function is for other sizes, for another task (`check_transfer` where the user names its file), or its IGM
            gate does not allow it.
    """
    from qllm_exp.credit import stored_function
    from qllm_exp.generation.transfer import check_transfer
    from qllm_exp.mixers import make_mixer

    assert isinstance(run.mixer, schema.FunctionMixerConfig)
    modified_ns = path.stat().st_mtime_ns if path.exists() else None
    key = (repr(run.env), repr(run.mixer), path, modified_ns)
    if key not in _FITTING:
        with provide.small_environment(run) as env:
            function = stored_function.load(path)
            if run.mixer.file:
                check_transfer(run, function, env)
            make_mixer(replace(run.mixer, file=str(path)), env)
            if not run.mixer.file:
                function.check_written_for(env)
        _FITTING[key] = function.program.hash
    return _FITTING[key]
