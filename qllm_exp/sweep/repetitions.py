"""Repetitions of a trial, for sweepers that search: a seed is not a hyper-parameter.

A sweeper that searches, such as Optuna's, proposes a few values and wants one number for them, the objective. It must not see
`seed=0-2`: it would look for the best seed. So the repetitions are taken out of its search space, each trial is run once for
each of them, and the objective is the mean.
"""

from typing import Any

from hydra.experimental.callback import Callback

# Options that repeat an experiment: another random seed, another function by the same procedure.
KEYS = ("seed", "tfcaf.sample")


class Repetitions(Callback):
    """Hydra's hook before a sweep: takes the repetitions out of what a searching sweeper will see.

    Args:
        overrides: the overrides that were taken out, e.g. ['seed=0,1,2']. Not for users: the hook writes them here.
    """

    def __init__(self, overrides: Any = ()) -> None:
        self.overrides = overrides

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Move the repetitions from the overrides and from the sweeper's `params` to this hook's own options.

        Args:
            config: Hydra's configuration, which is changed.
            kwargs: what Hydra passes beside it.
        """
        from omegaconf import OmegaConf, flag_override

        if is_grid(config):
            return
        hydra = config.hydra
        typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
        sweeper: Any = OmegaConf.to_container(hydra.sweeper, resolve=False)
        params = sweeper.get("params") or {}
        overrides = [f"{key}={_axis(value)}" for key, value in params.items() if key in KEYS]
        overrides += [override for override in typed if override_key(override) in KEYS]
        with flag_override(config, ["readonly", "struct"], False), flag_override(hydra, ["readonly", "struct"], False):
            hydra.overrides.task = [override for override in typed if override not in overrides]
            for key in KEYS:
                if key in params:
                    del hydra.sweeper.params[key]
            hydra.callbacks.repetitions.overrides = overrides


def is_grid(config: Any) -> bool:
    """Whether the sweeper of a configuration is the package's own, which does not search and runs every combination."""
    return str(config.hydra.sweeper._target_).endswith(".GridSweeper")


def repetitions(config: Any) -> list[tuple[str, ...]]:
    """Return the overrides of each repetition of a trial; [()] for a single one.

    Args:
        config: Hydra's configuration, as a launcher receives it.

    Raises:
        UserError: the values of a repetition are not listed, as in seed=interval(0,9).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from qllm_exp.config.overrides import combinations
    from qllm_exp.errors import UserError

    overrides = list(OmegaConf.select(config, "hydra.callbacks.repetitions.overrides") or ())
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_interval_sweep():
            key = override.get_key_element()
            raise UserError(
                f"{override.input_line}: {key} is a repetition, not an option to search. The objective of a trial is the "
                f"mean over the values listed: write {key}=0-4."
            )
    return combinations(overrides)


def override_key(override: str) -> str:
    """Return the key of an override, without the signs of ++KEY=VALUE."""
    return override.partition("=")[0].lstrip("+~")


def _axis(value: Any) -> str:
    """Return the value of an axis in YAML as on the command line: [0, 1] as '0,1'."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
