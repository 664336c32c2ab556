"""Search for credit-assignment functions by what training did with the earlier ones."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qllm_exp.config.schema import RunConfig
    from qllm_exp.credit.stored_function import StoredFunction
    from qllm_exp.sweep.launcher import Launcher


def search(run: "RunConfig", launcher: "Launcher") -> "StoredFunction":
    """Search for a function, or continue a search; see `qllm_exp.search.procedure`, which is imported only when it is needed."""
    from qllm_exp.search import procedure

    return procedure.search(run, launcher)
