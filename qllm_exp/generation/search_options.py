"""Checks of the options of a search that need more than one option."""

import itertools

from qllm_exp.config.schema import SearchConfig
from qllm_exp.errors import UserError
from qllm_exp.utils.text import count


def check_search_options(options: SearchConfig) -> None:
    """Raise UserError if the stages of a search do not fit together."""
    steps, seeds = options.steps, options.seeds
    if not steps or any(a >= b for a, b in itertools.pairwise(steps)) or steps[0] < 1:
        raise UserError(
            f"tfcaf.search.steps={steps} is not allowed. Allowed: increasing numbers of environment steps, e.g. [20000,100000]."
        )
    if len(seeds) != len(steps) or min(seeds) < 1 or max(seeds) > 999:
        raise UserError(
            f"tfcaf.search.seeds={seeds} is not allowed. Allowed: a number of seeds from 1 to 999 for each of the "
            f"{count(len(steps), 'stage')} of tfcaf.search.steps={steps}."
        )
