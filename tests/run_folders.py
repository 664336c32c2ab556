"""What tests read from run folders."""

import json
from pathlib import Path
from typing import Any


def final(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All that a finished run found, but for what the clock decides: its rows, and its final figures."""
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("wall_s", None)
    return rows, {k: result[k] for k in ("final_return", "absolute_return", "env_steps", "episodes", "updates")}
