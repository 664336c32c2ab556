"""Operations of the client's service while it tracks a run; each returns the data."""

import json
from typing import Any

from loopback_wandb.state import ENTITY, Run, ServerState


class Tracking(ServerState):
    """Handlers of these operations."""

    def _on_viewer(self, v: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "v", "entity": ENTITY, "username": "user", "email": "", "flags": "{}", "teams": teams}}

    def _on_get_default_entity(self, v: dict[str, Any]) -> Any:
        return {"viewer": {"id": "v", "entity": ENTITY}}

    def _on_server_features_query(self, v: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _on_run_resume_status(self, v: dict[str, Any]) -> Any:
        run = self._by_id.get(v["name"])
        entity = {"id": "e", "name": ENTITY}
        return {"model": {"id": "p", "name": v["project"], "entity": entity, "bucket": run and _resume_status(run)}}

    def _on_upsert_bucket(self, v: dict[str, Any]) -> Any:
        new = v["name"] not in self._by_id
        run = self._by_id.setdefault(v["name"], Run(v["name"], v["project"]))
        run.name = v.get("displayName") or run.name
        run.group = v.get("groupName") or run.group
        run.job_type = v.get("jobType") or run.job_type
        run.tags = v["tags"] if v.get("tags") is not None else run.tags
        if v.get("displayName"):  # later requests change the configuration only
            run.starts += 1
            run.state, run.exit_code = "running", None
        run.raw_config |= json.loads(v.get("config") or "{}")
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": run.id, "name": run.id, "displayName": run.name, "description": "", "sweepName": None}
        more = {"config": json.dumps(run.raw_config), "historyLineCount": len(run.lines), "project": project}
        return {"upsertBucket": {"bucket": bucket | more, "inserted": new}}

    def _on_create_run_files(self, v: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}


def _resume_status(run: Run) -> dict[str, Any]:
    """What the client needs to resume a run."""
    counts = {"historyLineCount": len(run.lines), "logLineCount": 0, "eventsLineCount": 0}
    tails = {"historyTail": json.dumps(run.lines[-1:]), "eventsTail": "[]"}
    texts = {"config": json.dumps(run.raw_config), "summaryMetrics": json.dumps(run.summary), "notes": ""}
    own = {"wandbConfig": json.dumps({"t": 1}), "tags": run.tags}
    return {"id": run.id, "name": run.id, "displayName": run.name, **counts, **tails, **texts, **own}
