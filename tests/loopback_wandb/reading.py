"""Operations of `Api()` on runs and saved workspaces; each returns the data."""

import json
from typing import Any

from loopback_wandb.kept import ENTITY, Kept, Run, View, keys_of


class Reading(Kept):
    def _on_run_history_keys(self, v: dict[str, Any]) -> Any:
        return {"project": {"run": {"historyKeys": keys_of(self._by_id[v["name"]])}}}

    def _on_run_parquet_history(self, v: dict[str, Any]) -> Any:
        """Nothing has been moved to parquet files: all rows are live."""
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    def _on_history_page(self, v: dict[str, Any]) -> Any:
        lines = self._by_id[v["run"]].lines
        steps = [json.loads(line)["_step"] for line in lines]
        chosen = [line for line, at in zip(lines, steps, strict=True) if v["minStep"] <= at < v["maxStep"]]
        return {"project": {"run": {"history": chosen}}}

    def _on_run(self, v: dict[str, Any]) -> Any:
        run = self._by_id.get(v["name"])
        return {"project": {"run": run and _shown(run)}}

    def _on_runs(self, v: dict[str, Any]) -> Any:
        """In pages, the oldest first; of one group where that is asked for."""
        if all(run.project != v["project"] for run in self._by_id.values()) or v["entity"] != ENTITY:
            return {"project": None}
        filters = json.loads(v["filters"])
        assert set(filters) <= {"group"}, filters
        every = [run for run in self._by_id.values() if run.project == v["project"]]
        chosen = [run for run in every if run.group == filters.get("group", run.group)]
        start = int(v["cursor"] or 0)
        page = chosen[start : start + v["perPage"]]
        edges = [{"node": _shown(run), "cursor": str(at)} for at, run in enumerate(page, start + 1)]
        ends = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(chosen)}
        counts = {"internalId": "1", "runCount": len(chosen), "readOnly": False}
        return {"project": {**counts, "runs": {"edges": edges, "pageInfo": ends}}}

    def _on_view(self, v: dict[str, Any]) -> Any:
        chosen = [one for one in self.views if (one.project, one.name) == (v["name"], v["viewName"])]
        edges = [{"node": {"id": one.id, "displayName": one.shown, "spec": json.dumps(one.spec)}} for one in chosen]
        return {"project": {"allViews": {"edges": edges}}}

    def _on_upsert_view2(self, v: dict[str, Any]) -> Any:
        """A view without an id is a new one."""
        known = next((one for one in self.views if one.id == v.get("id")), None)
        one = known or View(f"view{len(self.views)}", v["name"], v["projectName"], v["displayName"], {})
        one.name, one.shown, one.spec, one.saved = v["name"], v["displayName"], json.loads(v["spec"]), one.saved + 1
        if known is None:
            self.views.append(one)
        return {"upsertView": {"view": {"id": one.id, "name": one.name}, "inserted": known is None}}


def _shown(run: Run) -> dict[str, Any]:
    """A run as `Api()` reads it."""
    texts = {"config": json.dumps(run.raw_config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}"}
    none = {"sweepName": None, "commit": None, "description": None, "notes": None, "readOnly": False}
    times = {"createdAt": run.heartbeat, "heartbeatAt": run.heartbeat, "user": {"name": "user", "username": "user"}}
    own = {"group": run.group, "jobType": run.job_type, "tags": run.tags, "state": run.state}
    counts = {"historyLineCount": len(run.lines), "historyKeys": keys_of(run)}
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
