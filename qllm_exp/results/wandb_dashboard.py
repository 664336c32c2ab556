"""The process that builds and saves a W&B workspace from a `dashboard_plan.Plan`, which it reads as JSON; it prints the URL.

A workspace has one selection of runs for all its panels, and tasks differ in scale. The section of a task therefore shows the
metrics that carry the task in their names (`wandb_payload.TASK_PREFIX`). The address of a view is derived from its name, so
saving a view again replaces it. Runs are grouped by keys of their configuration, written with the '.value' that the service
appends to dotted keys.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import wandb_workspaces.expr as expressions
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces
from wandb_workspaces.reports.v2 import internal

from qllm_exp.results.dashboard_plan import Plan
from qllm_exp.tracking import wandb_client, wandb_login

MAX_RUNS = 200  # lines in a panel, and runs in the band of a group
MAX_SOURCES = 6  # functions whose source is shown

_RETURN_TITLES = {
    "final_return": "Return, last evaluation",
    "absolute_return": "Return, best parameters (absolute metric)",
}
_COST_TITLES = {
    "parameters.agent": "Trained parameters, agents",
    "parameters.mixer": "Trained parameters, mixer",
    "speed/steps_per_s": "Environment steps per second",
    "wall_s": "Wall time (s)",
}


class _ConfigColumn(panels.ParallelCoordinatesPlotColumn):  # type: ignore[misc]
    """A column for a configuration key with dots, which the library would take for nested groups."""

    def _to_model(self) -> Any:
        return internal.Column(accessor=f"config:{_server_key(self.display_name)}", display_name=self.display_name)


def make_workspace(plan: Plan) -> Any:
    """Return the workspace of a plan, unsaved."""
    sections = [_task_section(plan, task, metric_prefix) for task, metric_prefix in plan.tasks.items()]
    cost_panels = [_bar_plot(title, metric, key) for key in _panel_keys(plan) for metric, title in _COST_TITLES.items()]
    sections.append(workspaces.Section(name="Cost of the runs", panels=cost_panels, layout_settings=_layout(2)))
    if plan.functions:
        sections.append(_functions_section(plan))
    filters = [expressions.Config("mixer").isin(plan.mixers)]
    if plan.group:
        filters.append(expressions.Metric("Group") == plan.group)
    column_keys = dict.fromkeys(["task", *plan.groupby, "seed"])
    pinned_columns = [f"config:{_server_key(key)}" for key in column_keys]
    pinned_columns += [f"summary:{metric}" for metric in (*_RETURN_TITLES, *_COST_TITLES)]
    return workspaces.Workspace(
        entity=plan.entity,
        project=plan.project,
        name=plan.name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="env_step", max_runs=MAX_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=filters,
            groupby=[expressions.Config(_server_key(key)) for key in ("task", *plan.groupby)],
            pinned_columns=pinned_columns,
        ),
    )


def _task_section(plan: Plan, task: str, metric_prefix: str) -> Any:
    """Return the section of a task: curves and bars, and for an ablation the relation of its settings to the return."""
    task_panels: list[Any] = []
    for key in _panel_keys(plan):
        suffix = f" by {key}" if key else ""
        task_panels.append(
            panels.LinePlot(
                title=f"Return of evaluations{suffix}",
                x="env_step",
                y=[f"{metric_prefix}/return_mean"],
                title_x="environment steps",
                title_y="episode return",
                max_runs_to_show=MAX_RUNS,
                **_grouping(key),
            )
        )
        for metric, title in _RETURN_TITLES.items():
            task_panels.append(_bar_plot(f"{title}{suffix}", f"{metric_prefix}/{metric}", key))
    if plan.preset == "ablation":
        columns = [_ConfigColumn(metric=panels.Config(axis), display_name=axis) for axis in plan.axes]
        return_column = panels.ParallelCoordinatesPlotColumn(
            metric=panels.SummaryMetric(f"{metric_prefix}/final_return"), display_name=_RETURN_TITLES["final_return"]
        )
        task_panels.append(
            panels.ParallelCoordinatesPlot(title="Settings and return", columns=[*columns, return_column])
        )
    return workspaces.Section(
        name=task,
        panels=task_panels,
        is_open=True,
        layout_settings=_layout(3),
        panel_settings=workspaces.SectionPanelSettings(x_axis="env_step"),
    )


def _panel_keys(plan: Plan) -> list[str]:
    """Return the keys by which panels are grouped, one panel each; '' groups by all keys at once, as the table of runs."""
    if plan.preset == "ablation":
        return plan.axes
    return plan.groupby if len(plan.groupby) == 1 else [""]


def _bar_plot(title: str, metric: str, key: str) -> Any:
    return panels.BarPlot(
        title=title,
        metrics=[metric],
        orientation="v",
        max_runs_to_show=MAX_RUNS,
        max_bars_to_show=MAX_RUNS,
        **_grouping(key),
    )


def _grouping(key: str) -> dict[str, Any]:
    """Return the options that group a panel by a key; '' groups as the table of runs."""
    options: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    if key:
        options["groupby"] = panels.Config(_server_key(key))
    return options


def _functions_section(plan: Plan) -> Any:
    """Return the section of the credit-assignment functions, each as text and as artifact."""
    function_panels: list[Any] = []
    for digits, source in list(plan.functions.items())[:MAX_SOURCES]:
        function_panels.append(panels.MarkdownPanel(markdown=f"### tfcaf-{digits}\n\n```python\n{source}\n```"))
        function_panels.append(panels.WeavePanelArtifact(artifact=f"tfcaf-{digits}", tab="overview"))
    hidden = len(plan.functions) - MAX_SOURCES
    if hidden > 0:
        function_panels.append(panels.MarkdownPanel(markdown=f"{hidden} more: see the artifacts of type *tfcaf*."))
    return workspaces.Section(name="Credit-assignment functions", panels=function_panels, layout_settings=_layout(2))


def _layout(columns: int) -> Any:
    return workspaces.SectionLayoutSettings(columns=columns, rows=2)


def _server_key(key: str) -> str:
    """Return the name under which the service stores a key of a flat configuration."""
    return f"{key}.value"


def save(workspace: Any) -> str:
    """Save a workspace under its name, in place of an existing one.

    Returns:
        The URL of the workspace.
    """
    text = f"{workspace.entity}/{workspace.project}/{workspace.name}"
    slug = hashlib.sha256(text.encode()).hexdigest()[:11]
    workspace._internal_name = f"nw-{slug}-v"  # the library would draw a random name
    try:
        workspace._internal_id = workspaces.Workspace.from_url(workspace.url)._internal_id
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
    workspace.save()
    return str(workspace.url)


def main(arguments: list[str]) -> int:
    """Build the workspace of the plan on standard input, and save or print it.

    Returns:
        Exit code: 0 success, 2 the server or the library rejected it, with the reason on standard output.
    """
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.results.wandb_dashboard")
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args(arguments)
    plan = Plan(**json.load(sys.stdin))
    try:
        workspace = make_workspace(plan)
    except ValueError as error:  # from pydantic: only the name is unchecked user input
        print(f"--name={plan.name!r} is not accepted by W&B: {' '.join(str(error).split())[:200]}")
        return 2
    if options.print:
        spec = workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        print(json.dumps(spec, indent=1))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        wandb_client.keep_out_of_home(Path(scratch))
        try:
            wandb_client.api()
            print(save(workspace))
        except Exception as error:  # the client's exceptions have no common base class
            print(f"{wandb_login.server()} did not accept the workspace: {wandb_client.one_line(error)[:300]}")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
