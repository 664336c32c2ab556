"""The commands `table` and `ablation`."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError, choose
from qllm_exp.results.cells import METRICS, STATISTICS, Pivot
from qllm_exp.results.collect import Collection, collect
from qllm_exp.results.formats import ENDINGS, WRITERS
from qllm_exp.results.only import narrow
from qllm_exp.results.sheet import Sheet
from qllm_exp.results.sources import source
from qllm_exp.results.spent import NAMES, spent
from qllm_exp.results.table import COLUMNS, ROWS, ablation, comparison


def add_parser(commands: Any) -> None:
    """Register them with an argparse parser's sub-commands."""
    table = _parser(commands, "table", "the comparison: value [interval] (n seeds) per row and column")
    table.add_argument("--rows", type=words, default=list(ROWS), metavar="KEY,...", help="default: env,task")
    table.add_argument(
        "--cols", type=words, default=list(COLUMNS), metavar="KEY,...", help="default: method; any key of config.yaml"
    )
    table.set_defaults(run=_table)
    one = _parser(commands, "ablation", "the values of one or several settings, with the difference to the default")
    one.add_argument(
        "--axis", type=words, action="append", required=True, metavar="KEY", help="e.g. tfcaf.rounds; may be repeated"
    )
    one.set_defaults(run=_ablation)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The argument that all commands on run folders share."""
    help_text = "of a run, of a sweep, or of many (default: runs); or wandb://ENTITY/PROJECT, or .../PROJECT/SWEEP"
    parser.add_argument("folders", nargs="*", type=source, default=[Path("runs")], metavar="FOLDER", help=help_text)


def add_only(parser: argparse.ArgumentParser) -> None:
    """The option that all commands on collected runs share; `collected` follows it."""
    help_text = "only runs with these values of a key, e.g. mixer=qmix,tfcaf or seed=0-4; may be repeated"
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE,...", help=help_text)


def collected(given: argparse.Namespace) -> Collection:
    """The runs of the folders that --only lets through."""
    return narrow(collect(given.folders), given.only)


def write(path: Path, text: str) -> None:
    """UserError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another file with -o.") from None


def _parser(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    add_folders(parser)
    add_only(parser)
    parser.add_argument("--metric", default="final", metavar="METRIC", help=" or ".join(METRICS))
    parser.add_argument("--stat", default="mean", metavar="STATISTIC", help=", ".join(STATISTICS))
    parser.add_argument(
        "--format", metavar="FORMAT", help=f"{', '.join(WRITERS)}; default: by the file's ending, or markdown"
    )
    parser.add_argument("--columns", type=words, default=[], metavar="NAME,...", help=f"also: {', '.join(NAMES)}")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the terminal")
    return parser


def words(given: str) -> list[str]:
    """Of 'mixer, train.gamma'."""
    return [word for word in given.replace(" ", "").split(",") if word]


def _table(given: argparse.Namespace) -> int:
    return _written(given, *comparison(collected(given), given.rows, given.cols, given.metric, given.stat))


def _ablation(given: argparse.Namespace) -> int:
    axes = list(itertools.chain(*given.axis))
    return _written(given, *ablation(collected(given), axes, given.metric, given.stat))


def _written(given: argparse.Namespace, sheet: Sheet, found: Pivot) -> int:
    sheets: Sequence[Sheet] = [sheet, spent(found, sheet, given.columns)] if given.columns else [sheet]
    text = WRITERS[_format(given.format, given.output)](sheets)
    if given.output is None:
        print(text, end="")
    else:
        write(given.output, text)
        print(given.output)
    return 0


def _format(given: str | None, output: Path | None) -> str:
    if given is not None:
        return choose("--format", given, WRITERS)
    if output is None:
        return "markdown"
    if output.suffix.lower() not in ENDINGS:
        raise UserError(f"{output}: its ending says no format. Give --format, or one of {', '.join(ENDINGS)}.")
    return ENDINGS[output.suffix.lower()]
