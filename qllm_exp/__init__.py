"""Experiments on credit assignment in cooperative multi-agent reinforcement learning.

Trained mixing networks against credit-assignment functions that a language model writes (QLLM, arXiv 2504.12961).
`qllm_exp.api` documents what this module offers; nothing heavy is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qllm_exp.api import (
        RunFailed,
        UserError,
        ablation,
        assign_credit,
        compare,
        compose,
        export,
        generate,
        load_curves,
        load_function,
        load_policy,
        load_runs,
        make_env,
        play,
        plot_ablation,
        plot_bars,
        plot_credit,
        plot_curves,
        plot_improvement,
        plot_profiles,
        run,
        run_sweep,
        table,
        verify,
    )

__all__ = [
    "RunFailed",
    "UserError",
    "ablation",
    "assign_credit",
    "compare",
    "compose",
    "export",
    "generate",
    "load_curves",
    "load_function",
    "load_policy",
    "load_runs",
    "make_env",
    "play",
    "plot_ablation",
    "plot_bars",
    "plot_credit",
    "plot_curves",
    "plot_improvement",
    "plot_profiles",
    "run",
    "run_sweep",
    "table",
    "verify",
]


def __getattr__(name: str) -> Any:
    """The names of the API, imported at first use, and `__version__`."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version  # which takes longer than all else here

        try:
            return version("qllm_exp")
        except PackageNotFoundError:  # a checkout on PYTHONPATH that was not installed
            return "unknown"
    if name in __all__:
        from qllm_exp import api

        return getattr(api, name)
    raise AttributeError(f"module 'qllm_exp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
