"""Writes notebooks/methods: a page per algorithm and mixer, and the table of what they reach.

    python tests/pages.py                 from the modules' docstrings, the YAML files and measured.csv
    python tests/pages.py runs/methods    measured.csv and the figures from these runs as well (experiment=methods)

A page repeats nothing by hand, so that it cannot say other than the code; tests/unit/test_pages.py fails where it does.
"""

import ast
import csv
import json
import sys
from pathlib import Path

from qllm_exp.config import schema
from qllm_exp.config.load import of_name

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "notebooks" / "methods"
MEASURED = PAGES / "measured.csv"
MARK = "<!-- From here on tests/pages.py writes. -->"
GROUPS = ("algorithm", "mixer")
FIGURES = {  # name of a figure: the methods in it, as parts of the names of their run folders
    "mixers": [f"q-learning_{name}" for name in schema.CHOICES["mixer"] if name != "none"] + ["iql_none"],
    "plugged": [f"{one}_{mixer}" for one in ("q-learning", "riit", "maser") for mixer in ("qmix", "tfcaf")],
    "policies": [
        f"{name}_none" for name, c in schema.CHOICES["algorithm"].items() if not issubclass(c, schema.QLearning)
    ]
    + ["q-learning_qmix"],
}


def pages() -> dict[str, str]:
    """The text of each file in PAGES, by its name."""
    found = {f"{name}.md": _page(group, name) for group in GROUPS for name in schema.CHOICES[group]}
    return found | {"README.md": _index()}


def _page(group: str, name: str) -> str:
    module = ROOT / "qllm_exp" / f"{group}s" / f"{name}.py"
    title, _, body = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n")
    options = (ROOT / "conf" / group / f"{name}.yaml").read_text()
    parts = [f"# {name}", title, body.strip("\n")]
    parts += [f"## Settings\n\n`conf/{group}/{name}.yaml`:\n\n```yaml\n{options}```", _presets(group, name)]
    parts += [f"## Measured\n\n{_measured(group, name)}"]
    parts += [f"Module: [{module.relative_to(ROOT)}](../../{module.relative_to(ROOT)})"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _presets(group: str, name: str) -> str:
    """What the training presets change for it."""
    files = sorted((ROOT / "conf" / "train" / "preset" / group).glob(f"*_{name}.yaml"))
    if not files:
        return ""
    texts = [f"# {one.stem.removesuffix(f'_{name}').replace('_', ', ', 2)}\n{one.read_text().strip()}" for one in files]
    return "What the training presets (`train=fair`, `paper`, `quick`) change for it, by environment:\n\n```yaml\n{}\n```".format(
        "\n".join(texts)
    )


def _rows() -> list[dict[str, str]]:
    if not MEASURED.exists():
        return []
    with MEASURED.open(newline="") as file:
        return list(csv.DictReader(file))


def _is_of(group: str, name: str, method: str) -> bool:
    plain = method.partition(" ")[0]
    if group == "mixer" and plain == "iql":
        return name == "none"
    return name == (plain if plain in schema.CHOICES["algorithm"] else of_name(plain)[GROUPS.index(group)])


def _measured(group: str, name: str) -> str:
    mine = [row for row in _rows() if _is_of(group, name, row["method"])]
    if not mine:
        return f"Not yet: `python -m qllm_exp -m experiment=methods {group}={name}`."
    table = ["| method | task | return of the last evaluation |", "|---|---|---|"]
    table += [f"| {row['method']} | {row['env']}/{row['task']} | {_cell(row)} |" for row in mine]
    axes = f"mixer={name}" if group == "mixer" else f"algorithm={name}"
    pictures = [figure for figure in FIGURES if (PAGES / f"{figure}.png").exists() and _shown(figure, mine)]
    return "\n".join(
        [
            f"    python -m qllm_exp -m experiment=methods {axes}\n",
            *table,
            "",
            "All methods under the same settings, and what the columns mean: [README.md](README.md).",
            *(f"\n![learning curves]({figure}.png)" for figure in pictures),
        ]
    )


def _shown(figure: str, mine: list[dict[str, str]]) -> bool:
    names = {f"{a.replace('_', '-')}_{m}" for a, m in (of_name(row["method"].partition(" ")[0]) for row in mine)}
    return not names.isdisjoint(FIGURES[figure])


def _cell(row: dict[str, str]) -> str:
    if not row["value"]:
        return row["text"]
    value, low, high = (f"{float(row[key]):.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}] (n={row['n']})"


def _index() -> str:
    head, mark, _ = (PAGES / "README.md").read_text().partition(MARK)
    rows = _rows()
    tasks = list(dict.fromkeys((row["env"], row["task"]) for row in rows))
    cells = {(row["env"], row["task"], row["method"]): row for row in rows}
    table = ["| method | " + " | ".join("/".join(task) for task in tasks) + " |", "|---|" + "---|" * len(tasks)]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [cells.get((*task, method)) for task in tasks]
        table.append(f"| {method} | " + " | ".join(_cell(one) if one else "-" for one in found) + " |")
    links = [f"- {group}s: " + ", ".join(f"[{name}]({name}.md)" for name in schema.CHOICES[group]) for group in GROUPS]
    pictures = [f"![{figure}]({figure}.png)" for figure in FIGURES if (PAGES / f"{figure}.png").exists()]
    return "\n\n".join([head + mark, "\n".join(links), "\n".join(table) if rows else "", *pictures]).strip() + "\n"


def measure(folder: Path) -> None:
    """measured.csv and the figures, from the runs of a sweep."""
    from qllm_exp.results.__main__ import main

    runs = [folder.parent / name for name in json.loads((folder / "sweep.json").read_text())["runs"]]
    main(["table", str(folder), "-o", str(MEASURED)])
    for figure, methods in FIGURES.items():
        shown = [str(run) for run in runs if any(f"_{name}_s" in run.name for name in methods)]
        main(["curves", *shown, "-o", str(PAGES / f"{figure}.png")])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    for file, text in pages().items():
        (PAGES / file).write_text(text)
