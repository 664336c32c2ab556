"""Commands on run directories: tables, figures, the report, and the upload to Weights & Biases."""

import argparse
import itertools
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError, choose
from qllm_exp.results.records.collect import Collection, collect, filter_runs
from qllm_exp.results.records.keys import METHOD
from qllm_exp.results.records.metric_names import CURVE_METRICS, TABLE_METRICS
from qllm_exp.results.records.sources import parse_source
from qllm_exp.results.tables.costs import COLUMN_NAMES, cost_sheet
from qllm_exp.results.tables.formats import FORMAT_BY_ENDING, WRITERS
from qllm_exp.results.tables.pivot import STATISTICS, Pivot, rename_methods
from qllm_exp.results.tables.sheet import Sheet, notes_on_runs
from qllm_exp.results.tables.table import COLUMNS, ROWS, ablation, comparison, finished_records
from qllm_exp.runs.run_directory import CONFIG
from qllm_exp.runs.sweep_directory import RECORD, REPORT, SEARCH_RECORD, run_folders

_FIGURE_COMMANDS = {
    "curves": "learning curves per task, with bands",
    "profiles": "performance profiles: fraction of runs above each normalised score",
    "improvement": "probability of improvement between methods",
    "bars": "final returns per task, with intervals",
}
_REPORT_TEXT = "one HTML page: run states, tables, figures, functions with their credit, all runs, costs, versions"
_EXPORT_TEXT = (
    "a dataset of the runs: CSV, marl-eval JSON, run directories, checksums, data card; a source of all commands"
)
_SYNC_TEXT = (
    "Upload runs with tracking.mode=offline, and runs that lost the connection to the server. Each row is sent once, however "
    "often the command is repeated. Prints one line per run."
)


def add_parsers(commands: Any) -> None:
    """Add all commands of this module.

    Args:
        commands: the sub-commands of an argparse parser.
    """
    _add_tables(commands)
    _add_figures(commands)
    _add_report(commands)
    _add_export(commands)
    _add_sync(commands)


def _add_tables(commands: Any) -> None:
    table = _add_table_parser(commands, "table", "comparison table: value [interval] (n seeds) per row and column")
    table.add_argument("--rows", type=split_list, default=list(ROWS), metavar="KEY,...", help="default: env,task")
    table.add_argument(
        "--cols",
        type=split_list,
        default=list(COLUMNS),
        metavar="KEY,...",
        help="any keys of config.yaml; default: method",
    )
    table.set_defaults(run=_table)
    ablation_parser = _add_table_parser(
        commands, "ablation", "ablation table: each value of one or more settings, with its difference to the default"
    )
    ablation_parser.add_argument(
        "--axis",
        type=split_list,
        action="append",
        required=True,
        metavar="KEY",
        help="setting that varies, e.g. tfcaf.rounds; may be repeated",
    )
    ablation_parser.set_defaults(run=_ablation)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the sources of runs, which all commands on run directories share."""
    help_text = (
        "directory of a run, of a sweep, or with many of them (default: runs); wandb://ENTITY/PROJECT, or "
        "wandb://ENTITY/PROJECT/SWEEP; an archive of `export`; or results of another program: a marl-eval .json file, a folder of "
        "Sacred (EPyMARL, PyMARL), a .csv file, or a .yaml file that maps one of them"
    )
    parser.add_argument(
        "folders", nargs="*", type=parse_source, default=[Path("runs")], metavar="FOLDER", help=help_text
    )


def add_only(parser: argparse.ArgumentParser) -> None:
    """Add the option --only, which `collect_runs` applies."""
    help_text = "only runs with these values of a key, e.g. mixer=qmix,tfcaf or seed=0-4; may be repeated"
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE,...", help=help_text)


def collect_runs(options: argparse.Namespace) -> Collection:
    """Return the runs of the given directories that pass --only."""
    return filter_runs(collect(options.folders), options.only)


def write_file(path: Path, text: str) -> None:
    """Write a text file, and create its directory.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another file with -o.") from None


def split_list(text: str) -> list[str]:
    """Return the items of a comma-separated list: 'mixer, train.gamma'."""
    return [item for item in text.replace(" ", "").split(",") if item]


def _add_table_parser(commands: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    add_folders(parser)
    add_only(parser)
    parser.add_argument("--metric", default="final", metavar="METRIC", help=_metric_help(TABLE_METRICS))
    parser.add_argument("--stat", default="mean", metavar="STATISTIC", help=f"{', '.join(STATISTICS)}; default: mean")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help=f"{', '.join(WRITERS)}; default: by the ending of the output file, else markdown",
    )
    parser.add_argument(
        "--columns", type=split_list, default=[], metavar="NAME,...", help=f"add columns: {', '.join(COLUMN_NAMES)}"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="output file; default: the terminal")
    return parser


def _metric_help(names: Sequence[str]) -> str:
    """Return the help on --metric, whose default is the first of these names."""
    others = "or what the environment reports for each episode: length, score, ..."
    return f"{', '.join(names)}, {others}; default: {names[0]}"


def _table(options: argparse.Namespace) -> int:
    sheet, cells = comparison(collect_runs(options), options.rows, options.cols, options.metric, options.stat)
    return _write_table(options, sheet, cells)


def _ablation(options: argparse.Namespace) -> int:
    axes = list(itertools.chain(*options.axis))
    sheet, cells = ablation(collect_runs(options), axes, options.metric, options.stat)
    return _write_table(options, sheet, cells)


def _write_table(options: argparse.Namespace, sheet: Sheet, cells: Pivot) -> int:
    sheets: Sequence[Sheet] = [sheet]
    if options.columns:
        sheets = [sheet, cost_sheet(cells, sheet, options.columns)]
    text = WRITERS[_format(options.format, options.output)](sheets)
    if options.output is None:
        print(text, end="")
    else:
        write_file(options.output, text)
        print(options.output)
    return 0


def _format(format_name: str | None, output: Path | None) -> str:
    """Return the format of a table: --format, else by the ending of the output file, else Markdown."""
    if format_name is not None:
        return choose("--format", format_name, WRITERS)
    if output is None:
        return "markdown"
    ending = output.suffix.lower()
    if ending not in FORMAT_BY_ENDING:
        raise UserError(
            f"{output}: its ending is not that of a known format. Use {', '.join(FORMAT_BY_ENDING)}, or give --format."
        )
    return FORMAT_BY_ENDING[ending]


def _add_figures(commands: Any) -> None:
    for name, help_text in _FIGURE_COMMANDS.items():
        parser = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        add_folders(parser)
        add_only(parser)
        parser.add_argument(
            "--by",
            type=split_list,
            default=[METHOD],
            metavar="KEY,...",
            help="what a line or bar stands for; default: method; method,tfcaf.sample separates the samples of a language model",
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
            parser.add_argument("--metric", default="return", metavar="METRIC", help=_metric_help(CURVE_METRICS))
        else:
            parser.add_argument("--metric", default="final", metavar="METRIC", help=_metric_help(TABLE_METRICS))
        if name == "improvement":
            parser.add_argument(
                "--against", default="", metavar="METHOD", help="compare with this method only; default: all pairs"
            )
        parser.set_defaults(run=_draw, figure=name)


def _draw(options: argparse.Namespace) -> int:
    from qllm_exp.results.figures import across_tasks, per_task  # matplotlib is slow to import
    from qllm_exp.results.figures.style import check_figure_path

    check_figure_path(options.output)
    collection = collect_runs(options)
    records = rename_methods(finished_records(collection), options.by)
    missing = notes_on_runs(collection)
    if options.figure == "curves":
        draw_curves = across_tasks.aggregated_curves if options.normalise else per_task.curves
        draw_curves(records, options.output, missing, metric=options.metric)
    elif options.figure == "improvement":
        across_tasks.improvement(records, options.output, options.metric, missing, options.against)
    else:
        draw_scores = across_tasks.profiles if options.figure == "profiles" else per_task.bars
        draw_scores(records, options.output, options.metric, missing)
    print(options.output)
    return 0


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help=_REPORT_TEXT, description=_REPORT_TEXT, allow_abbrev=False)
    add_folders(parser)
    add_only(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f".html; default: {REPORT} in the directory of the sweep, or here if several directories are given",
    )
    parser.add_argument(
        "--no-credit", action="store_true", help="skip the credit figures of functions, which take seconds each"
    )
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    for folder in options.folders:
        if (folder / SEARCH_RECORD).exists():
            raise UserError(
                f"{folder} is the directory of a search, whose page has a command of its own. Type: python -m qllm_exp.tfcaf "
                f"report {shlex.quote(str(folder))}    (or, for its trainings as runs, give {folder / 'runs'})."
            )
    page = _report_path(options.output, options.folders, options.sources)
    collection = collect_runs(options)

    from qllm_exp.results.report.page import report  # matplotlib is slow to import

    write_file(page, report(collection, options.folders, page.parent, not options.no_credit, options.sources))
    print(page)
    return 0


def _report_path(output: Path | None, folders: list[Path], sources: list[str]) -> Path:
    """Return where the report is written.

    Args:
        output: --output, if given.
        folders: the directories of all sources.
        sources: the sources as typed.

    Raises:
        UserError: the output file does not end in .html.
    """
    is_single_folder = sources == [str(folders[0])]
    is_run_or_sweep = is_single_folder and any((folders[0] / name).exists() for name in (RECORD, CONFIG))
    return page_path(output, folders[0] if is_run_or_sweep else Path())


def page_path(output: Path | None, folder: Path) -> Path:
    """Return where a page is written.

    Args:
        output: --output, if given.
        folder: its folder otherwise.

    Raises:
        UserError: the output file does not end in .html.
    """
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output}: a report is a .html file. Give e.g. -o {output.stem or 'report'}.html.")
    return output or folder / REPORT


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help=_EXPORT_TEXT, description=_EXPORT_TEXT, allow_abbrev=False)
    add_folders(parser)
    add_only(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="ARCHIVE",
        help="a .zip file, or a folder that does not exist yet",
    )
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from qllm_exp.results.export import export  # pandas is slow to import

    print(export(collect_runs(options), options.folders, options.output))
    return 0


def _add_sync(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("sync", help="upload missing data of runs to Weights & Biases", description=_SYNC_TEXT)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="directory of a run, of a sweep, or with runs in it"
    )
    parser.add_argument("--all", action="store_true", help="also upload runs with tracking=local")
    parser.add_argument(
        "--adopt", action="store_true", help="continue runs on the server that were started from other directories"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds to wait for the end of an upload (60)"
    )
    parser.set_defaults(run=_sync)


def _sync(options: argparse.Namespace) -> int:
    """Upload runs in a separate process, which has its own environment variables and alone imports the W&B client."""
    from qllm_exp.tracking import sidecar, wandb_login

    runs = [run for folder in options.folders for run in run_folders(folder) if (run / CONFIG).exists()]
    if not wandb_login.logged_in():
        raise UserError(f"{wandb_login.LOGIN_HINT.format(server=wandb_login.server())}.")
    switches = ["--timeout", str(options.timeout)]
    if options.all:
        switches.append("--all")
    if options.adopt:
        switches.append("--adopt")
    paths = "".join(f"{run}\n" for run in dict.fromkeys(runs))
    command = sidecar.command("--once", *switches)
    return subprocess.run(command, input=paths, text=True, env=sidecar.environment(), check=False).returncode
