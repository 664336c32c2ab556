"""The commands that draw: `curves`, `profiles`, `improvement`, `bars`."""

import argparse
from pathlib import Path
from typing import Any

from qllm_exp.results.cells import METRICS, renamed
from qllm_exp.results.command_table import add_folders, add_only, collected, words
from qllm_exp.results.keys import METHOD
from qllm_exp.results.sheet import notes_on_missing
from qllm_exp.results.table import finished

_COMMANDS = {
    "curves": "learning curves per task, with bands",
    "profiles": "performance profiles: the share of runs above each normalised score",
    "improvement": "probability of improvement of each method over each other",
    "bars": "final returns per task, with intervals",
}


def add_parser(commands: Any) -> None:
    """Register them with an argparse parser's sub-commands."""
    for name, text in _COMMANDS.items():
        parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_folders(parser)
        add_only(parser)
        parser.add_argument(
            "--by",
            type=words,
            default=[METHOD],
            metavar="KEY,...",
            help="what is a line or a bar; default: method; method,tfcaf.sample draws samples of a language model apart",
        )
        parser.add_argument(
            "-o",
            "--output",
            type=Path,
            default=Path(f"{name}.png"),
            metavar="FILE",
            help=f".png, .pdf or .svg; default: {name}.png",
        )
        if name == "curves":
            parser.add_argument(
                "--normalise", action="store_true", help="one figure over all tasks: IQM of normalised returns"
            )
        else:
            parser.add_argument("--metric", default="final", metavar="METRIC", help=" or ".join(METRICS))
        if name == "improvement":
            parser.add_argument(
                "--against", default="", metavar="METHOD", help="over this one only; default: each pair"
            )
        parser.set_defaults(run=_draw, figure=name)


def _draw(given: argparse.Namespace) -> int:
    from qllm_exp.results import across, figures  # matplotlib is slow to import
    from qllm_exp.results.looks import check_picture

    check_picture(given.output)
    found = collected(given)
    records, missing = renamed(finished(found), given.by), notes_on_missing(found)
    if given.figure == "curves":
        draw = across.aggregated_curves if given.normalise else figures.curves
        draw(records, given.output, missing)
    elif given.figure == "improvement":
        across.improvement(records, given.output, given.metric, missing, given.against)
    else:
        scores = across.profiles if given.figure == "profiles" else figures.bars
        scores(records, given.output, given.metric, missing)
    print(given.output)
    return 0
