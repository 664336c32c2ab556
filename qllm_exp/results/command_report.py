"""The command `report`."""

import argparse
from pathlib import Path
from typing import Any

from qllm_exp.errors import UserError
from qllm_exp.results.command_table import add_folders, add_only, collected, write
from qllm_exp.sweep.record import RECORD
from qllm_exp.tracking.run_dir import CONFIG

_NAME = "report.html"


def add_parser(commands: Any) -> None:
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
