"""The page of a search: every number of it follows from the log and the runs, at any time of the search."""

import json
from pathlib import Path

import pytest
from report_pages import Page
from searches import Launcher, Model, Searches, answer, searches, share_of, shares, source

from qllm_exp.errors import UserError
from qllm_exp.llm import Request
from qllm_exp.results.report import functions
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.search.report import search_report
from qllm_exp.search.search_directory import SearchDirectory

__all__ = ["searches"]  # a fixture


@pytest.fixture(autouse=True)
def credit_runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs whose credit was drawn."""
    paths: list[Path] = []

    def draw(folder: Path, trained: bool) -> str:
        assert trained
        paths.append(folder)
        return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"></svg>'

    monkeypatch.setattr(functions, "credit_figure", draw)
    return paths


def equal_once(request: Request) -> str:
    """Answer candidate 2 of generation 2 with the plain sum each time, and candidate 3 with it the first time."""
    if request.name.startswith("generation-2-candidate-2") or request.name == "generation-2-candidate-3":
        return answer(source(0.5))
    return shares(request)


def page(directory: SearchDirectory, credit: bool = True) -> Page:
    return Page(search_report(directory.path, credit))


def test_the_page_has_the_best_function_the_family_and_the_costs(searches: Searches, credit_runs: list[Path]) -> None:
    directory = searches.run(model=Model(equal_once))
    report = page(directory)
    assert "lbf/5x5-2p-1f; evolve, 3 generations of 3 candidates; finished" in report.text
    assert (
        "Function 3.3 has the best return, 0.648 after 200 steps (mean of 2 seeds): 0.198 more than the plain sum (VDN) and 0.198 "
        "more than QMIX, with the same steps and seeds."
    ) in report.text
    assert len(credit_runs) == 1 and credit_runs[0].parent == directory.runs
    assert "The nearer agent decides." in report.text and "give agent" not in report.text
    baseline = report.row("the plain sum (VDN)")
    assert baseline[-2:] == ["0.450", "0.450"]
    row = report.row("3.3 best")
    assert row[1].startswith(("1.", "2.")) and "is now 0.72" in row[2] and row[-2:] == ["0.648", "0.648"]
    first = report.row("1.1")
    assert first[1:4] == ["first function", "reads nothing of the state", "0.280"], (
        "0.64 and 0.36 of 2 instead of 0.5 each"
    )
    assert first[-1] == "-", "not among the better half"
    anchors = {attributes.get("id") for _, attributes in report.elements}
    links = [attributes["href"] for attributes in report.all("a")]
    assert {link[1:] for link in links if link and link.startswith("#")} <= anchors


def test_the_costs_are_those_of_the_stored_function(searches: Searches) -> None:
    report = page(searches.run("tfcaf.search.tune=gradient"), credit=False)
    total = report.row("all")
    rows = [report.row(f"generation {number}") for number in (1, 2, 3)]
    rows += [report.row("the plain sum (VDN) and QMIX"), report.row("constants, and trainings of an open step")]
    for column in range(1, len(total)):
        cells = [row[column].replace(",", "") for row in rows if row[column] != "-"]
        assert sum(map(float, cells)) == pytest.approx(float(total[column].replace(",", "")), abs=0.02)
    assert total[1:5] == ["9", "900", "90", "0.0900"]


def test_what_was_equal_and_not_trained_is_listed_with_the_reason(searches: Searches) -> None:
    report = page(searches.run(model=Model(equal_once)), credit=False)
    assert (
        "1 candidate of 9 not trained. 3 answers computed the same as the plain sum or as an earlier function"
        in report.text
    )
    assert "for 1 candidate the model then wrote another function" in report.text
    assert "it computes the same as the sum of the individual values (VDN)" in report.row("2.2")[1]
    assert "1 refused" in report.text and "disabled by --no-credit" in report.text


def test_a_function_that_diverged_is_below_all_others(searches: Searches) -> None:
    def value(directory: RunDirectory) -> float | None:
        return None if "_tfcaf_" in directory.path.name and share_of(directory) > 0.7 else share_of(directory)

    report = page(searches.run(launcher=Launcher(value)), credit=False)
    assert report.row("3.3")[-2:] == ["diverged", "-"] and report.row("100 steps")[4] == "2"
    assert "Function 3.1 has the best return" in report.text


def test_the_page_of_a_search_that_has_just_begun_or_was_moved(searches: Searches, tmp_path: Path) -> None:
    directory = searches.run("tfcaf.search.generations=2")
    lines = directory.log.read_text().splitlines(keepends=True)
    written = [row["kind"] for row in json.loads(lines[1])]
    assert "candidate" in written
    directory.log.write_text("".join(lines[:2]))  # the candidates of the first generation are written, none is trained
    report = page(directory)
    assert "No training has finished yet" in report.text and report.row("1.1")[-2:] == ["-", "-"]
    directory.log.write_text("")
    assert "No training has finished yet" in page(directory).text
    with pytest.raises(UserError, match="is not the directory of a search"):
        search_report(tmp_path)


def test_a_page_of_a_running_search_leaves_the_line_that_is_being_written(searches: Searches) -> None:
    directory = searches.run("tfcaf.search.generations=1")
    with open(directory.log, "a", encoding="utf-8") as log:
        log.write('[{"kind": "quest')
    content = directory.log.read_text()
    assert "Function 1.3 has the best return" in page(directory).text and directory.log.read_text() == content
    directory.create(directory.read_config(), directory.key)
    assert directory.log.read_text() == content[: content.rfind("\n") + 1], "the searching process removes it"


def test_without_the_run_directories_the_numbers_of_the_log_remain(searches: Searches) -> None:
    directory = searches.run("tfcaf.search.generations=1")
    directory.runs.rename(directory.path / "elsewhere")
    report = page(directory)
    assert "Function 1.3 has the best return" in report.text
    assert "No learning curves: the run directories of the trainings are not in" in report.text
    assert "No credit figure: there is no policy of a training with this function" in report.text
