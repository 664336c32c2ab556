"""Time every setting of this package and its peers in turn, on one core, in several rounds; print medians and ratios as Markdown.

The machine may be shared, so times are medians over rounds, and comparisons are ratios within a round.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OURS = (
    "qllm-mpe",
    "qllm-lbf",
    "epymarl-mpe",
    "epymarl-mpe-pettingzoo",
    "epymarl-mpe2",
    "epymarl-lbf",
    "jaxmarl-mpe",
    "grf",
)
PEERS = {"jaxmarl": "jaxmarl_qmix.py", "benchmarl": "benchmarl_qmix.py"}
PARTS = ("simulate", "act", "store", "update")
# Environment steps per second of the published programs, training included, measured on another machine of this kind. QLLM's
# code and EPyMARL are not installable packages, so they cannot run here beside this package.
ELSEWHERE = {"qllm-mpe": 761, "qllm-lbf": 1312, "epymarl-mpe": 1168, "epymarl-lbf": 1802}


def run(core: int, command: list[str]) -> dict:
    """Return the JSON object in the last line that a command prints, run on one core."""
    process = subprocess.run(["taskset", "-c", str(core), *command], capture_output=True, text=True, cwd=ROOT)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    result: dict = json.loads(process.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    seconds = ["--seconds", str(options.seconds)]
    results: dict[str, list[dict]] = {}
    for _ in range(options.rounds):
        for setting in OURS:
            command = [sys.executable, str(HERE / "ours.py"), "--setting", setting, *seconds]
            results.setdefault(setting, []).append(run(options.core, command))
        for name, script in PEERS.items():
            python = ROOT / f".venv-{name}/bin/python"
            results.setdefault(name, []).append(
                run(options.core, [str(python), str(HERE / "peers" / script), *seconds])
            )
    show(results)


def median(rows: list[dict], key: str) -> float:
    """Return the median of a key over rounds."""
    return statistics.median(row[key] for row in rows)


def show(results: dict[str, list[dict]]) -> None:
    """Print the results, which have a row per round for each setting and peer."""
    print(
        "\n| setting | env steps/s | updates/s | ms per update: simulate, act, store, update | start-up s | peak MB |"
    )
    print("|---|---|---|---|---|---|")
    for name in (*OURS, *PEERS):
        rows = results[name]
        parts = "-"
        if name in OURS:
            parts = ", ".join(f"{statistics.median(r['ms_per_update'].get(p, 0.0) for r in rows):.2f}" for p in PARTS)
        print(
            f"| {name} | {median(rows, 'env_steps_per_s'):,.0f} | {median(rows, 'updates_per_s'):.1f} | {parts} "
            f"| {median(rows, 'startup_s'):.1f} | {median(rows, 'peak_memory_mb'):,.0f} |"
        )
    print("\n| compared, ours to theirs in the same round | ratio (median, lowest, highest) |\n|---|---|")
    for peer in PEERS:
        pairs = zip(results["jaxmarl-mpe"], results[peer], strict=True)
        ratios = [ours["env_steps_per_s"] / theirs["env_steps_per_s"] for ours, theirs in pairs]
        print(f"| env steps/s, {peer}'s setting on mpe | {spread(ratios)} |")
    pairs = zip(results["epymarl-mpe-pettingzoo"], results["epymarl-mpe2"], strict=True)
    ratios = [ours["env_steps_per_s"] / theirs["env_steps_per_s"] for ours, theirs in pairs]
    print(f"| env steps/s of PettingZoo's simple_spread, env=mpe to env=pettingzoo | {spread(ratios)} |")
    total = {
        name: median(results[name], "startup_s") + 2e6 / median(results[name], "env_steps_per_s")
        for name in ("jaxmarl-mpe", "jaxmarl")
    }
    print(f"\n2M steps, start-up included: ours {total['jaxmarl-mpe']:.0f} s, JaxMARL {total['jaxmarl']:.0f} s")
    for setting, theirs in ELSEWHERE.items():
        ours = median(results[setting], "env_steps_per_s")
        print(
            f"{setting}: {ours / theirs:.1f} times the {theirs:,} steps/s that the published program reached elsewhere"
        )


def spread(ratios: list[float]) -> str:
    """Return 'median (lowest, highest)'."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


if __name__ == "__main__":
    main()
