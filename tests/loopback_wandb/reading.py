"""Operations of `Api()` on runs and saved workspaces; each returns the data."""

import json
from typing import Any

from loopback_wandb.state import ENTITY, Run, ServerState, View, history_keys


class Reading(ServerState):
    """Handlers of these operations."""

    def _on_run_history_keys(self, v: dict[str, Any]) -> Any:
        return {"project": {"run": {"historyKeys": history_keys(self._by_id[v["name"]])}}}

    def _on_run_parquet_history(self, v: dict[str, Any]) -> Any:
        """No row has been moved to Parquet files."""
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    def _on_history_page(self, v: dict[str, Any]) -> Any:
        lines = self._by_id[v["run"]].lines
        steps = [json.loads(line)["_step"] for line in lines]
        chosen = [line for line, step in zip(lines, steps, strict=True) if v["minStep"] <= step < v["maxStep"]]
        return {"project": {"run": {"history": chosen}}}

    def _on_run(self, v: dict[str, Any]) -> Any:
        run = self._by_id.get(v["name"])
        return {"project": {"run": run and _run_node(run)}}

    def _on_runs(self, v: dict[str, Any]) -> Any:
        """Runs in pages, oldest first; of one group if the filter names it."""
        if all(run.project != v["project"] for run in self._by_id.values()) or v["entity"] != ENTITY:
            return {"project": None}
        filters = json.loads(v["filters"])
        assert set(filters) <= {"group"}, filters
        in_project = [run for run in self._by_id.values() if run.project == v["project"]]
        chosen = [run for run in in_project if run.group == filters.get("group", run.group)]
        start = int(v["cursor"] or 0)
        page = chosen[start : start + v["perPage"]]
        edges = [{"node": _run_node(run), "cursor": str(position)} for position, run in enumerate(page, start + 1)]
        ends = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(chosen)}
        counts = {"internalId": "1", "runCount": len(chosen), "readOnly": False}
        return {"project": {**counts, "runs": {"edges": edges, "pageInfo": ends}}}

    def _on_view(self, v: dict[str, Any]) -> Any:
        chosen = [view for view in self.views if (view.project, view.name) == (v["name"], v["viewName"])]
        edges = [
            {"node": {"id": view.id, "displayName": view.display_name, "spec": json.dumps(view.spec)}}
            for view in chosen
        ]
        return {"project": {"allViews": {"edges": edges}}}

    def _on_upsert_view2(self, v: dict[str, Any]) -> Any:
        """A view without an id is a new one."""
        known = next((view for view in self.views if view.id == v.get("id")), None)
        view = known or View(f"view{len(self.views)}", v["name"], v["projectName"], v["displayName"], {})
        view.name, view.display_name, view.spec = v["name"], v["displayName"], json.loads(v["spec"])
        view.saved += 1
        if known is None:
            self.views.append(view)
        return {"upsertView": {"view": {"id": view.id, "name": view.name}, "inserted": known is None}}


def _run_node(run: Run) -> dict[str, Any]:
    """A run as `Api()` receives it."""
    texts = {"config": json.dumps(run.raw_config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}"}
    none = {"sweepName": None, "commit": None, "description": None, "notes": None, "readOnly": False}
    times = {"createdAt": run.heartbeat, "heartbeatAt": run.heartbeat, "user": {"name": "user", "username": "user"}}
    own = {"group": run.group, "jobType": run.job_type, "tags": run.tags, "state": run.state}
    counts = {"historyLineCount": len(run.lines), "historyKeys": history_keys(run)}
    return {
        "id": run.id,
        "name": run.id,
        "displayName": run.name,
        "projectId": "1",
        **texts,
        **own,
        **counts,
        **none,
        **times,
    }
