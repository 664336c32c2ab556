"""`python -m qllm_exp.results dashboard wandb://ENTITY/PROJECT`: a Weights & Biases workspace that fits the runs of a project."""

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from qllm_exp.errors import UserError, nearest
from qllm_exp.results.commands import split_list
from qllm_exp.results.records.keys import sort_key
from qllm_exp.results.records.reader import FUNCTION, Method, Reader
from qllm_exp.results.records.sources import Address, Project, read_project
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.tracking import wandb_payload

PRESETS = ("baselines", "ablation")

_HELP_TEXT = (
    "a Weights & Biases workspace: curves, bars and the table of runs, grouped by method or by the axes of an ablation"
)
_NON_AXIS_KEYS = ("env.", "mixer.name", FUNCTION)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Content of a workspace. Keys are as in the configuration of a run on the server.

    Attributes:
        entity: W&B entity.
        project: W&B project.
        group: the sweep to show; '' for all.
        preset: one of PRESETS.
        name: name of the view.
        tasks: each task, and the prefix of the names of its metrics (`wandb_payload.task_key`).
        mixers: mixers whose runs are shown.
        groupby: keys whose values make a line or a bar.
        axes: settings that an ablation varies.
        functions: source of each function, by the first digits of its hash.
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
    """Add the command `dashboard`.

    Args:
        commands: the sub-commands of an argparse parser.
    """
    parser = commands.add_parser("dashboard", help=_HELP_TEXT, description=_HELP_TEXT, allow_abbrev=False)
    parser.add_argument("address", metavar="ADDRESS", help="wandb://ENTITY/PROJECT, or wandb://ENTITY/PROJECT/SWEEP")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help=f"default: {PRESETS[0]}")
    parser.add_argument(
        "--name",
        default="",
        help="name of the view; an existing view of that name is replaced. Default: by preset and sweep",
    )
    parser.add_argument(
        "--axis",
        type=split_list,
        action="append",
        default=[],
        metavar="KEY",
        help="setting that varies; may be repeated. Default: all settings that vary",
    )
    parser.add_argument("--print", action="store_true", help="print the workspace as JSON and save nothing")
    parser.set_defaults(run=_dashboard)


def make_plan(project: Project, preset: str, name: str = "", axes: Sequence[str] = ()) -> Plan:
    """Return the plan of a workspace for all runs of a project, finished or not.

    Args:
        project: a project after download.
        preset: one of PRESETS.
        name: name of the view; '': by preset and sweep.
        axes: settings that vary; (): all that vary within a task and mixer.

    Raises:
        UserError: an axis that no run has, or an ablation of runs in which nothing varies.
    """
    reader = Reader()
    methods: list[Method] = []
    tasks: dict[str, str] = {}
    functions: dict[str, str] = {}
    for path in project.folders:
        directory = RunDirectory(path)
        method, _ = reader.method(path)
        methods.append(method)
        tasks.setdefault(method.task, wandb_payload.task_key(directory.read_config()))
        if directory.tfcaf.exists():
            stored = wandb_payload.read_function(directory)
            functions.setdefault(stored["hash"][:8], stored["source"])
    varying = _varying_keys(methods)
    known_keys = {key for method in methods for key in method.settings}
    for axis in axes:
        if axis not in known_keys:
            listed = ", ".join(varying) or "none"
            raise UserError(
                f"{axis!r} is not a setting of these runs.{nearest(axis, known_keys)} Settings that vary: {listed}."
            )
    selected_axes = list(axes) or varying
    shown_methods = methods
    groupby = ["mixer", *selected_axes]
    if preset == "ablation":
        if not selected_axes:
            raise UserError(
                "Nothing varies in these runs except task, mixer and seed. Use --preset baselines, or give an --axis."
            )
        shown_methods = [method for method in methods if any(axis in method.settings for axis in selected_axes)]
        groupby = selected_axes
    mixers = {method.settings["mixer.name"] for method in shown_methods}
    return Plan(
        entity=project.entity,
        project=project.project,
        group=project.group,
        preset=preset,
        name=name or " ".join(part for part in ("qllm_exp", preset, project.group) if part),
        tasks={task: tasks[task] for task in sorted(tasks, key=sort_key)},
        mixers=sorted(mixers, key=sort_key),
        groupby=groupby,
        axes=selected_axes,
        functions=functions,
    )


def _varying_keys(methods: Sequence[Method]) -> list[str]:
    """Return the settings that have several values among the runs of one task and mixer."""
    values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for method in methods:
        for key, value in method.settings.items():
            if not key.startswith(_NON_AXIS_KEYS):
                values[method.task, method.base, key].add(repr(value))
    return sorted({key for (_, _, key), key_values in values.items() if len(key_values) > 1})


def _dashboard(options: argparse.Namespace) -> int:
    """Build and save the workspace in a separate process, which alone imports the W&B client."""
    from qllm_exp.tracking import sidecar

    address = Address(options.address)
    axes = list(itertools.chain(*options.axis))
    plan = make_plan(read_project(address), options.preset, options.name, axes)
    command = [sys.executable, "-m", "qllm_exp.results.wandb_dashboard"]
    if options.print:
        command.append("--print")
    process = subprocess.run(
        command,
        input=json.dumps(dataclasses.asdict(plan)),
        stdout=subprocess.PIPE,
        text=True,
        env=sidecar.environment(),
        check=False,
    )
    if process.returncode != 0:
        reason = process.stdout.strip() or f"the dashboard process failed with exit code {process.returncode}"
        raise UserError(f"{address.text}: {reason}")
    print(process.stdout, end="")
    return 0
