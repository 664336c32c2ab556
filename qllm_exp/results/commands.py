"""The commands `table` and `ablation`."""

import argparse
import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError, choose
from qllm_exp.results.records.collect import Collection, collect, narrow
from qllm_exp.results.records.keys import METHOD
from qllm_exp.results.records.sources import source
from qllm_exp.results.tables.costs import NAMES, spent
from qllm_exp.results.tables.formats import ENDINGS, WRITERS
from qllm_exp.results.tables.pivot import METRICS, STATISTICS, Pivot, renamed
from qllm_exp.results.tables.sheet import Sheet, notes_on_missing
from qllm_exp.results.tables.table import COLUMNS, ROWS, ablation, comparison, finished
from qllm_exp.runs.run_directory import CONFIG
from qllm_exp.runs.sweep_directory import RECORD, run_folders


def add_parsers(commands: Any) -> None:
    """Register every command of this module with an argparse parser's sub-commands."""
    _add_tables(commands)
    _add_figures(commands)
    _add_report(commands)
    _add_sync(commands)


def _add_tables(commands: Any) -> None:
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


_COMMANDS = {
    "curves": "learning curves per task, with bands",
    "profiles": "performance profiles: the share of runs above each normalised score",
    "improvement": "probability of improvement of each method over each other",
    "bars": "final returns per task, with intervals",
}


def _add_figures(commands: Any) -> None:
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
    from qllm_exp.results.figures import across_tasks, per_task  # matplotlib is slow to import
    from qllm_exp.results.figures.style import check_picture

    check_picture(given.output)
    found = collected(given)
    records, missing = renamed(finished(found), given.by), notes_on_missing(found)
    if given.figure == "curves":
        draw = across_tasks.aggregated_curves if given.normalise else per_task.curves
        draw(records, given.output, missing)
    elif given.figure == "improvement":
        across_tasks.improvement(records, given.output, given.metric, missing, given.against)
    else:
        scores = across_tasks.profiles if given.figure == "profiles" else per_task.bars
        scores(records, given.output, given.metric, missing)
    print(given.output)
    return 0


_NAME = "report.html"


def _add_report(commands: Any) -> None:
    """Register it with an argparse parser's sub-commands."""
    text = "one HTML page: what was asked and ran, tables, figures, functions with their credit, every run, versions"
    parser = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    add_folders(parser)
    add_only(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        metavar="FILE",
        help=f".html; default: {_NAME} in the sweep's folder, or here where several folders are given",
    )
    parser.add_argument(
        "--no-credit", action="store_true", help="no pictures of the functions' credit, which take seconds each"
    )
    parser.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> int:
    page = _page(given.output, given.folders, given.typed)
    found = collected(given)

    from qllm_exp.results.report.page import report  # matplotlib is slow to import

    write(page, report(found, given.folders, page.parent, not given.no_credit, given.typed))
    print(page)
    return 0


def _page(output: Path | None, folders: list[Path], typed: list[str]) -> Path:
    """Where the page goes; UserError for a file that is no HTML by its ending."""
    if output is not None:
        if output.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"{output}: a report is a .html file. Give e.g. -o {output.stem or 'report'}.html.")
        return output
    alone = typed == [str(folders[0])] and any((folders[0] / name).exists() for name in (RECORD, CONFIG))
    return folders[0] / _NAME if alone else Path(_NAME)


_SYNC = (
    "For runs with tracking.mode=offline, and for those that lost the server. Sends each row once, however often it is called, "
    "and says a line per run."
)


def _add_sync(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `sync`."""
    parser = commands.add_parser("sync", help="send to Weights & Biases what it lacks of runs", description=_SYNC)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="of a run, of a sweep, or with runs in it"
    )
    parser.add_argument("--all", action="store_true", help="send runs of tracking=local too")
    parser.add_argument("--adopt", action="store_true", help="go on with runs on the server that other folders began")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for the end of a run (60)")
    parser.set_defaults(run=_sync)


def _sync(options: argparse.Namespace) -> int:
    """In a process with an environment of its own, which alone imports the client."""
    from qllm_exp.tracking import sidecar, wandb_login

    folders = [one for folder in options.folders for one in run_folders(folder) if (one / CONFIG).exists()]
    if not wandb_login.logged_in():
        raise UserError(f"{wandb_login.HOW.format(server=wandb_login.server())}.")
    switches = ["--all"] * options.all + ["--adopt"] * options.adopt + ["--timeout", str(options.timeout)]
    names = "".join(f"{path}\n" for path in dict.fromkeys(folders))
    return subprocess.run(
        sidecar.command("--once", *switches), input=names, text=True, env=sidecar.environment(), check=False
    ).returncode
