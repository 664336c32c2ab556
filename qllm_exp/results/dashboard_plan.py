"""`python -m qllm_exp.results dashboard wandb://ENTITY/PROJECT`: a workspace of Weights & Biases that fits what is there."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from qllm_exp.errors import UserError, nearest
from qllm_exp.results.commands import words
from qllm_exp.results.records.keys import sort_key
from qllm_exp.results.records.reader import FUNCTION, Method, Reader
from qllm_exp.results.records.sources import Address, Project, read
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking.wandb_payload import function, task_key

PRESETS = ("baselines", "ablation")

_TEXT = "a workspace on Weights & Biases: curves, bars and the table of runs, grouped by method or by what an ablation varies"
_NOT_AN_AXIS = ("env.", "mixer.name", FUNCTION)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a workspace shows. Keys are as in the configuration of a run on the server.

    Attributes:
        name: of the view. group: the sweep that is shown; '' for all.
        tasks: the task to what begins the names of its figures (`mirrored.task_key`).
        mixers: whose runs are shown. groupby: keys whose values make a line or a bar. axes: what an ablation varies.
        functions: digits of a function's hash to its source.
    """

    entity: str
    project: str
    group: str
    preset: str
    name: str
    tasks: dict[str, str]
    mixers: list[str]
    groupby: list[str]
    axes: list[str]
    functions: dict[str, str]


def add_parser(commands: Any) -> None:
    """Register `dashboard`."""
    parser = commands.add_parser("dashboard", help=_TEXT, description=_TEXT, allow_abbrev=False)
    parser.add_argument("address", metavar="ADDRESS", help="wandb://ENTITY/PROJECT, or .../PROJECT/SWEEP")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help=f"default: {PRESETS[0]}")
    parser.add_argument(
        "--name", default="", help="of the view; one of that name is replaced. Default: by preset and sweep"
    )
    parser.add_argument(
        "--axis", type=words, action="append", default=[], metavar="KEY", help="default: the settings that vary"
    )
    parser.add_argument("--print", action="store_true", help="the workspace as JSON; nothing is saved")
    parser.set_defaults(run=_dashboard)


def plan(found: Project, preset: str, name: str = "", axes: Sequence[str] = ()) -> Plan:
    """What there is to show of a project, whether its runs are finished or not.

    Args:
        axes: settings that vary; () for all that do within a task and mixer.

    Raises:
        UserError: for an axis that no run has; where nothing varies and that is what is asked for.
    """
    reader, tasks, functions = Reader(), dict[str, str](), dict[str, str]()
    methods: list[Method] = []
    for path in found.folders:
        directory = RunDirectory(path)
        methods.append(reader.method(path)[0])
        tasks.setdefault(methods[-1].task, task_key(directory.read_config()))
        if directory.tfcaf.exists():
            stored = function(directory)
            functions.setdefault(stored["hash"][:8], stored["source"])
    varying = _varying(methods)
    for axis in axes:
        known = {key for one in methods for key in one.settings}
        if axis not in known:
            raise UserError(
                f"{axis!r} is no setting of these runs.{nearest(axis, known)} What varies: {_listed(varying)}."
            )
    chosen = list(axes) or varying
    if preset == "ablation" and not chosen:
        raise UserError("Nothing varies in these runs but task, mixer and seed. Give --preset baselines, or an --axis.")
    mixers = {one.settings["mixer.name"] for one in methods}
    if preset == "ablation":
        mixers = {one.settings["mixer.name"] for one in methods if any(axis in one.settings for axis in chosen)}
    return Plan(
        **{"entity": found.entity, "project": found.project, "group": found.group, "preset": preset},
        name=name or " ".join(part for part in ("qllm_exp", preset, found.group) if part),
        tasks={task: tasks[task] for task in sorted(tasks, key=sort_key)},
        mixers=sorted(mixers, key=sort_key),
        groupby=chosen if preset == "ablation" else ["mixer", *chosen],
        axes=chosen,
        functions=functions,
    )


def _varying(methods: Sequence[Method]) -> list[str]:
    """Settings that have several values among the runs of one task and mixer."""
    values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for one in methods:
        for key, value in one.settings.items():
            if not key.startswith(_NOT_AN_AXIS):
                values[one.task, one.base, key].add(repr(value))
    return sorted({key for (_, _, key), several in values.items() if len(several) > 1})


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "nothing"


def _dashboard(given: argparse.Namespace) -> int:
    """The workspace is built and saved in a process of its own, which alone imports the client."""
    from qllm_exp.tracking import sidecar

    address = Address(given.address)
    wanted = plan(read(address), given.preset, given.name, [axis for some in given.axis for axis in some])
    command = [sys.executable, "-m", "qllm_exp.results.wandb_dashboard", *["--print"] * given.print]
    text = json.dumps(dataclasses.asdict(wanted))
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, text=True, env=sidecar.environment(), check=False
    )
    if done.returncode != 0:
        raise UserError(
            f"{address.text}: {done.stdout.strip() or f'the process that saves it ended with code {done.returncode}'}"
        )
    print(done.stdout, end="")
    return 0
