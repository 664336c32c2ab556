"""The process that builds a workspace from a `command_dashboard.Plan`, as JSON on its input, and saves it; prints its URL.

A workspace has one choice of runs for all its panels, and tasks differ in scale: a section shows its task by the names of the
task's own figures (`mirrored.BY_TASK`). The name of the view gives its address, so that saving it again replaces it. Runs are
grouped by keys of their configuration, each written with the '.value' that the service keeps at the end of a dotted key.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import wandb_workspaces.expr as choose
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as spaces
from wandb_workspaces.reports.v2 import internal

from qllm_exp.results.dashboard_plan import Plan
from qllm_exp.tracking import wandb_client, wandb_login

MOST = 200  # lines in a panel, and runs in a group's band
SOURCES = 6  # functions whose source is shown

_FIGURES = {"final_return": "Return, last evaluation", "absolute_return": "Return, best parameters (absolute metric)"}
_TOOK = {
    "parameters.agent": "Trained parameters, agents",
    "parameters.mixer": "Trained parameters, mixer",
    "speed/steps_per_s": "Environment steps per second",
    "wall_s": "Wall time (s)",
}


class _Column(panels.ParallelCoordinatesPlotColumn):  # type: ignore[misc]
    """A column of a configuration's key that has dots in it, which the library takes for groups within groups."""

    def _to_model(self) -> Any:
        return internal.Column(accessor=f"config:{_stored(self.display_name)}", display_name=self.display_name)


def workspace(plan: Plan) -> Any:
    """The workspace of a plan, not saved."""
    sections = [_of_task(plan, task, figures) for task, figures in plan.tasks.items()]
    took = [_bars(title, figure, key) for key in _keys(plan) for figure, title in _TOOK.items()]
    sections.append(spaces.Section(name="What runs took", panels=took, layout_settings=_layout(2)))
    if plan.functions:
        sections.append(_of_functions(plan))
    shown = [choose.Config("mixer").isin(plan.mixers)]
    shown += [choose.Metric("Group") == plan.group] if plan.group else []
    columns = ["task", *plan.groupby, "seed"]
    return spaces.Workspace(
        entity=plan.entity,
        project=plan.project,
        name=plan.name,
        sections=sections,
        settings=spaces.WorkspaceSettings(x_axis="env_step", max_runs=MOST),
        runset_settings=spaces.RunsetSettings(
            filters=shown,
            groupby=[choose.Config(_stored(one)) for one in ("task", *plan.groupby)],
            pinned_columns=[
                *(f"config:{_stored(one)}" for one in dict.fromkeys(columns)),
                *(f"summary:{figure}" for figure in (*_FIGURES, *_TOOK)),
            ],
        ),
    )


def _of_task(plan: Plan, task: str, figures: str) -> Any:
    """The section of a task: curves and bars, and for an ablation how its settings go together."""
    drawn: list[Any] = []
    for key in _keys(plan):
        by = f" by {key}" if key else ""
        drawn.append(
            panels.LinePlot(
                title=f"Return of evaluations{by}",
                x="env_step",
                y=[f"{figures}/return_mean"],
                title_x="environment steps",
                title_y="episode return",
                max_runs_to_show=MOST,
                **_grouped(key),
            )
        )
        drawn += [_bars(f"{title}{by}", f"{figures}/{name}", key) for name, title in _FIGURES.items()]
    if plan.preset == "ablation":
        columns = [_Column(metric=panels.Config(one), display_name=one) for one in plan.axes]
        last = panels.ParallelCoordinatesPlotColumn(
            metric=panels.SummaryMetric(f"{figures}/final_return"), display_name=_FIGURES["final_return"]
        )
        drawn.append(panels.ParallelCoordinatesPlot(title="Settings to return", columns=[*columns, last]))
    return spaces.Section(
        name=task,
        panels=drawn,
        is_open=True,
        layout_settings=_layout(3),
        panel_settings=spaces.SectionPanelSettings(x_axis="env_step"),
    )


def _keys(plan: Plan) -> list[str]:
    """What the panels of a task are grouped by, one after the other; '' as the table of runs is, by all keys at once."""
    if plan.preset == "ablation":
        return plan.axes
    return plan.groupby if len(plan.groupby) == 1 else [""]


def _bars(title: str, figure: str, key: str) -> Any:
    return panels.BarPlot(
        title=title, metrics=[figure], orientation="v", max_runs_to_show=MOST, max_bars_to_show=MOST, **_grouped(key)
    )


def _grouped(key: str) -> dict[str, Any]:
    own = {"groupby": panels.Config(_stored(key))} if key else {}
    return {**own, "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}


def _of_functions(plan: Plan) -> Any:
    """The credit-assignment functions, as text and as the artifacts that they are."""
    shown: list[Any] = []
    for digits, source in list(plan.functions.items())[:SOURCES]:
        shown.append(panels.MarkdownPanel(markdown=f"### tfcaf-{digits}\n\n```python\n{source}\n```"))
        shown.append(panels.WeavePanelArtifact(artifact=f"tfcaf-{digits}", tab="overview"))
    left = len(plan.functions) - SOURCES
    if left > 0:
        shown.append(panels.MarkdownPanel(markdown=f"{left} more: see the artifacts of type *tfcaf*."))
    return spaces.Section(name="Credit-assignment functions", panels=shown, layout_settings=_layout(2))


def _layout(columns: int) -> Any:
    return spaces.SectionLayoutSettings(columns=columns, rows=2)


def _stored(key: str) -> str:
    """How the service keeps a key of a flat configuration."""
    return f"{key}.value"


def save(made: Any) -> str:
    """Save a workspace under its name, in place of the one that was there; returns its URL."""
    slug = hashlib.sha256(f"{made.entity}/{made.project}/{made.name}".encode()).hexdigest()[:11]
    made._internal_name = f"nw-{slug}-v"  # the library would draw one by lot
    try:
        made._internal_id = spaces.Workspace.from_url(made.url)._internal_id
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
    made.save()
    return str(made.url)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.results.wandb_dashboard")
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args(arguments)
    plan = Plan(**json.load(sys.stdin))
    try:
        made = workspace(plan)
    except ValueError as error:  # pydantic's: nothing but the name comes from outside unchecked
        print(f"--name={plan.name!r} is not taken by W&B: {' '.join(str(error).split())[:200]}")
        return 2
    if options.print:
        print(json.dumps(made._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True), indent=1))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        wandb_client.keep_out_of_home(Path(scratch))
        try:
            wandb_client.api()
            print(save(made))
        except Exception as error:  # the client's own types share no base
            print(f"{wandb_login.server()} has not taken the workspace: {wandb_client.words(error)[:300]}")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
