"""LaTeX tables compile as they are, with the packages that they name, and stay within the text width."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.config import schema
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.results.records.collect import collect
from qllm_exp.results.statistics.aggregate import Estimate
from qllm_exp.results.tables.costs import cost_sheet
from qllm_exp.results.tables.formats import in_latex, latex
from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.sheet import Sheet
from qllm_exp.results.tables.table import ablation, comparison

OTHER = "10x10-3p-3f-2s"


def compiled(folder: Path, sheets: Sequence[Sheet], packages: str = "booktabs,graphicx") -> tuple[int, str]:
    """Return the number of pages of an article with the tables, and the log of pdflatex."""
    text = f"\\documentclass{{article}}\n\\usepackage{{{packages}}}\n\\begin{{document}}\n{latex(sheets)}\\end{{document}}\n"
    (folder / "t.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    pages = re.search(r"Output written on t\.pdf \((\d+) page", done.stdout)
    assert pages is not None
    return int(pages[1]), done.stdout


def sheet(columns: int, rows: int, long: str = "", cell: Cell | str | None = None) -> Sheet:
    value = Cell(Estimate(-0.5, -0.75, -0.25, 4), bold=True, functions=True) if cell is None else cell
    return Sheet(
        title="Return & <more> of 95 % λ",
        heading="method",
        labels=["env", "task"],
        columns=[f"tfcaf learning_rate=0.{at:04}" for at in range(columns)],
        rows=[(("lbf", f"8x8-2p-2f_{at}{long}"), [value] * columns) for at in range(rows)],
        notes=["Missing: " + "a long note of what there is not " * 20],
    )


def test_tables_of_every_kind_compile(tmp_path: Path) -> None:
    for task in ("8x8-2p-2f-coop-2s", OTHER):
        for sample in range(2):
            llm = OnlineConfig(name="openai", model="openai/gpt_5&x%#$^~{}")
            for seed in range(2):
                run = run_config("tfcaf", seed, task, tfcaf=schema.GenerationConfig(sample=sample), llm=llm)
                make_run(tmp_path / "runs", run, 0.5 + 0.1 * seed, program=sample)
        for rate in (5e-4, 1e-3):
            for seed in range(2):
                train = schema.TrainConfig(learning_rate=rate)
                make_run(tmp_path / "runs", run_config("qmix", seed, task, train=train), 0.4 + 0.1 * seed)
    make_unfinished_run(tmp_path / "runs", run_config("vdn", 7), "failed")
    runs = collect([tmp_path / "runs"])
    table, cells = comparison(runs, columns=["method", "llm.model"])
    took = cost_sheet(cells, table, ["parameters", "time", "cost", "steps-to=0.3"])
    over, _ = comparison(runs, rows=[], columns=["mixer", "train.learning_rate", "tfcaf.sample"])
    effects, _ = ablation(runs, ["train.learning_rate"])
    _, log = compiled(tmp_path, [table, took, over, effects])
    assert "Overfull" not in log and "undefined" not in log


SIGNS = (
    "λ ± † ≥ ≤ ≠ ≈ × · − → ← ∞ ∂ Δ αβγδεζηθικμνξπρστυφχψω"
    " – — ‘’ “” … é ü Ñ ç Å ő ŠšŽž ĝ ċ & % $ # _ { } ~ ^ \\ < > | [ ] \" ' ` 中文 🎉 ∑ Я ß ø æ ł Œ ð ą «»\t\x07"
)


@pytest.mark.parametrize("cell", [SIGNS, "[1] begins with a bracket"])
def test_all_characters_compile(tmp_path: Path, cell: str) -> None:
    table = sheet(2, 1, " " + SIGNS, cell)
    _, log = compiled(tmp_path, [Sheet(**{**vars(table), "title": SIGNS, "notes": [SIGNS], "labels": ["env", SIGNS]})])
    assert "Missing character" not in log and "undefined" not in log


def test_characters_without_a_glyph_are_written_as_code_points() -> None:
    assert in_latex("中é") == "U+4E2Dé" and in_latex("λ≥½") == r"$\lambda$$\geq$U+00BD"


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 4), (4, 10), (14, 3), (3, 75), (9, 30)])
def test_tables_stay_within_the_text(tmp_path: Path, columns: int, rows: int) -> None:
    table = sheet(columns, rows)
    _, log = compiled(tmp_path, [table])
    assert "Overfull" not in log and "too large" not in log
    written = latex([table])
    assert written.count(r"\begin{table}") == written.count(r"\end{table}") == written.count(r"\caption")
    assert written.count(r"\textbf{") == columns * rows  # every cell, once
    assert written.count("Missing: ") == 1


def test_a_narrow_table_is_not_split_and_has_intervals_beside_values() -> None:
    written = latex([sheet(1, 3)])
    assert (
        written.count(r"\begin{tabular}") == 1
        and r"\textbf{$-$0.500} {[}$-$0.750, $-$0.250{]} (n=4 functions)" in written
    )


def test_booktabs_is_enough(tmp_path: Path) -> None:
    compiled(tmp_path, [sheet(2, 2), sheet(12, 3)], "booktabs")
