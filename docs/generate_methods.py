"""Generate docs/pages/methods: a page per algorithm and mixer, and the table of their results.

    python docs/generate_methods.py                  from the docstrings of the modules, the YAML files and measured.csv
    python docs/generate_methods.py runs/methods     first replace the rows and figures of the environments of a sweep
                                                     (experiment=methods, whole or with env=lbf)

tests/unit/test_generate_methods.py fails when a page differs from its sources.
"""

import ast
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages" / "methods"
MEASURED = PAGES / "measured.csv"
MARK = "<!-- docs/generate_methods.py writes everything below this line. -->"
GROUPS = ("algorithm", "mixer")
OPEN, CLOSE = '<div class="numbers" markdown>', "</div>"  # around a table whose cells stay on one line

# The order of the pages in the index; a method that is not listed comes last.
_ORDER = (
    *("q_learning", "iql", "pqn", "riit", "maser", "coma", "maddpg", "ippo", "mappo", "lica"),
    *("vdn", "none", "qmix", "qatten", "qplex", "qtran", "wqmix", "qfix", "tfcaf"),
)


def _choices(group: str) -> list[str]:
    names = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


CHOICES = {group: _choices(group) for group in GROUPS}


def _learns_a_policy(algorithm: str) -> bool:
    """Whether the algorithm has a stochastic policy, and so the option `evaluation` (sample or greedy)."""
    return "\nevaluation:" in (ROOT / "conf" / "algorithm" / f"{algorithm}.yaml").read_text()


# Name of a figure, of which each environment has its own file: the methods in it, as parts of the names of their run folders.
FIGURES = {
    "mixers": [f"q-learning_{mixer}" for mixer in CHOICES["mixer"] if mixer != "none"] + ["iql_none"],
    "plugged": [f"{algorithm}_{mixer}" for algorithm in ("q-learning", "riit", "maser") for mixer in ("qmix", "tfcaf")],
    "policies": [f"{name}_none" for name in CHOICES["algorithm"] if _learns_a_policy(name)] + ["q-learning_qmix"],
}
_CAPTIONS = {
    "mixers": "Learning curves of Q-learning with each mixer",
    "plugged": "Learning curves of Q-learning, RIIT and MASER with QMIX's network and with a written function",
    "policies": "Learning curves of the policy-gradient methods, and of QMIX",
}


# True of the runs in measured.csv, which has no columns for it; index.md says the same. By environment.
_NOTES = {
    "mpe": "mpe was measured by VMAS's rules (`env.rules=vmas`, the default), not by PettingZoo's.",
}


def pages() -> dict[str, str]:
    """The text of each generated page, by its file name."""
    written = {f"{name}.md": _page(group, name) for group in GROUPS for name in CHOICES[group]}
    return written | {"index.md": _index()}


def _page(group: str, name: str) -> str:
    module = ROOT / "qllm_exp" / f"{group}s" / f"{name}.py"
    title, _, body = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n\n")
    options = (ROOT / "conf" / group / f"{name}.yaml").read_text()
    parts = [f"# {name}", _markdown(title), _markdown(body.strip("\n"))]
    parts += [f"## Settings\n\n`conf/{group}/{name}.yaml`:\n\n```yaml\n{options}```", _presets(group, name)]
    parts += [f"## Results\n\n{_measured(group, name)}"]
    parts += [f"Module: `{module.relative_to(ROOT)}`"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: a blank line before each list, which Markdown requires and docstrings omit."""
    lines: list[str] = []
    for line in docstring.splitlines():
        starts_list = re.match(r"(1\.|-) ", line) is not None
        continues_list = bool(lines) and re.match(r"(\d+\.|-) |   ?\S", lines[-1]) is not None
        if starts_list and lines and lines[-1] and not continues_list:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _presets(group: str, name: str) -> str:
    """The settings that the training presets change for this algorithm or mixer, in the order in which they apply."""
    root = ROOT / "conf" / "train" / "preset"
    folders = [root / group, root / f"env_{group}"]
    files = [path for folder in folders for path in sorted(folder.glob(f"*_{name}.yaml"))]
    if not files:
        return ""
    texts = [f"# {path.relative_to(root)}\n{path.read_text().strip()}" for path in files]
    return (
        "The training presets (`train=fair`, `paper`, `quick`) change these settings, by the files in `conf/train/preset/`:\n\n"
        "```yaml\n{}\n```".format("\n".join(texts))
    )


def _rows() -> list[dict[str, str]]:
    if not MEASURED.exists():
        return []
    with MEASURED.open(newline="") as file:
        return list(csv.DictReader(file))


def _parts(method: str) -> tuple[str, str]:
    """Algorithm and mixer of a method's name: 'riit+tfcaf', 'iql' (no mixer), 'qmix' (Q-learning)."""
    algorithm, plus, mixer = method.partition(" ")[0].partition("+")
    if plus:
        return algorithm, mixer
    return (algorithm, "none") if algorithm in CHOICES["algorithm"] else ("q_learning", algorithm)


def _is_method_of(group: str, name: str, method: str) -> bool:
    algorithm, mixer = _parts(method)
    if group == "mixer":
        return name == mixer and (mixer != "none" or algorithm == "iql")
    return name == algorithm


def _measured(group: str, name: str) -> str:
    mine = [row for row in _rows() if _is_method_of(group, name, row["method"])]
    command = f"```bash\nqllm-exp -m experiment=methods {group}={name}\n```"
    if not mine:
        return f"Not measured yet:\n\n{command}"
    table = [OPEN, "", "| method | task | return of the last evaluation |", "|---|---|---|"]
    table += [f"| {row['method']} | {row['env']}/{row['task']} | {_cell(row)} |" for row in mine]
    pictures = [line for figure in FIGURES if _is_shown(figure, mine) for line in _pictures(figure)]
    return "\n".join(
        [
            f"{command}\n",
            *table,
            "",
            CLOSE,
            "",
            "[The index](index.md) has all methods under the same settings, and explains the columns.",
            *(note for env, note in _NOTES.items() if any(row["env"] == env for row in mine)),
            *(f"\n{picture}" for picture in pictures),
        ]
    )


def _is_shown(figure: str, rows: list[dict[str, str]]) -> bool:
    parts = (_parts(row["method"]) for row in rows)
    return not {f"{algorithm.replace('_', '-')}_{mixer}" for algorithm, mixer in parts}.isdisjoint(FIGURES[figure])


def _picture(figure: str, env: str) -> Path:
    """Path of a figure of an environment."""
    return PAGES / f"{figure}-{env}.png"


def _pictures(figure: str) -> list[str]:
    """Markdown of the pictures of a figure: those environments that have one."""
    paths = {env: _picture(figure, env) for env in dict.fromkeys(row["env"] for row in _rows())}
    return [f"![{_CAPTIONS[figure]}, {env}]({path.name})" for env, path in paths.items() if path.exists()]


def _cell(row: dict[str, str]) -> str:
    if not row["value"]:
        return row["text"]
    value, low, high = (f"{float(row[key]):.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}] (n={row['n']})"


def _index() -> str:
    head, mark, _ = (PAGES / "index.md").read_text().partition(MARK)
    rows = _rows()
    tasks = list(dict.fromkeys((row["env"], row["task"]) for row in rows))
    cells = {(row["env"], row["task"], row["method"]): row for row in rows}
    table = [
        OPEN,
        "",
        "| method | " + " | ".join("/".join(task) for task in tasks) + " |",
        "|---|" + "---|" * len(tasks),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        row_cells = [cells.get((*task, method)) for task in tasks]
        table.append(f"| {method} | " + " | ".join(_cell(cell) if cell else "-" for cell in row_cells) + " |")
    table += ["", CLOSE]
    links = [f"- {group}s: " + ", ".join(f"[{name}]({name}.md)" for name in CHOICES[group]) for group in GROUPS]
    pictures = [line for figure in FIGURES for line in _pictures(figure)]
    sections = ["## Pages", "\n".join(links), "## All methods", "\n".join(table) if rows else "", *pictures]
    return "\n\n".join([head + mark, *sections]).strip() + "\n"


def measure(sweep: Path) -> None:
    """Replace the rows of measured.csv and the figures of the environments that a sweep has runs of."""
    before = _rows()
    runs = [sweep.parent / name for name in json.loads((sweep / "sweep.json").read_text())["runs"]]
    _results("table", sweep, "-o", MEASURED)
    MEASURED.write_text(merged(before, MEASURED.read_text()))
    for env in dict.fromkeys(run.name.partition("_")[0] for run in runs):
        for figure, methods in FIGURES.items():
            shown = [
                run
                for run in runs
                if run.name.startswith(f"{env}_") and any(f"_{name}_s" in run.name for name in methods)
            ]
            _results("curves", *shown, "-o", _picture(figure, env))


def merged(before: list[dict[str, str]], measured: str) -> str:
    """A table with the new rows of each environment that was measured, and the rows of before of the others.

    Args:
        before: rows of before.
        measured: CSV of the new rows.

    Returns:
        CSV, sorted by environment.
    """
    lines = csv.DictReader(io.StringIO(measured))
    rows = list(lines)
    rows += [row for row in before if row["env"] not in {new["env"] for new in rows}]
    text = io.StringIO()
    writer = csv.DictWriter(text, lines.fieldnames or [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["env"]))
    return text.getvalue()


def _results(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "qllm_exp.results", *map(str, arguments)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    for file, text in pages().items():
        (PAGES / file).write_text(text)
