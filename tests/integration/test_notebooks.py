"""The notebooks, executed by a kernel in a copy: no cell fails, and what they show is what the package finds in the runs."""

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from run_folders import make_run, run_config

from qllm_exp.credit import stored_function
from qllm_exp.results.records.collect import collect
from qllm_exp.results.statistics.comparison import permutation_test
from qllm_exp.results.tables.pivot import Cell
from qllm_exp.results.tables.sheet import markdown
from qllm_exp.results.tables.table import ablation, comparison

FOLDER = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(autouse=True)
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the notebooks, in which they run; the original one is left as it was."""
    before = sorted(FOLDER.rglob("*"))
    for kind in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(kind, str(tmp_path / kind))
    yield shutil.copytree(FOLDER, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    assert sorted(FOLDER.rglob("*")) == before


def execute(path: Path, **parameters: str) -> NotebookNode:
    """The notebook with its outputs. `parameters`: assignments at the start of a line, by name, that are replaced."""
    text = path.read_text()
    for name, value in parameters.items():
        text, times = re.subn(rf"^{name} = .*$", lambda _, line=f"{name} = {value}": line, text, flags=re.MULTILINE)
        assert times == 1
    notebook = jupytext.reads(text, fmt="py:percent")
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def shown(notebook: NotebookNode, kind: str) -> list[str]:
    """What the cells show as 'image/png' or 'text/markdown'."""
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    return [one.data[kind] for one in outputs if kind in one.get("data", {})]


def printed(notebook: NotebookNode) -> str:
    return "".join(one.text for cell in notebook.cells for one in cell.get("outputs", ()) if "text" in one)


def test_the_readme_names_them_all_and_each_names_the_next() -> None:
    listed = re.findall(r"^\| \d\. \[(\w+)\.py\]", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in FOLDER.glob("*.py"))
    for name, following in itertools.pairwise(listed):
        assert f"Next: `{following}.py`" in (FOLDER / f"{name}.py").read_text()


def test_first_tour(copy: Path) -> None:
    notebook = execute(copy / "first_tour.py")
    sweep = collect([copy / "runs" / "first_tour"])
    assert sweep.counts() == "9 runs: 9 finished"
    tables = [markdown([comparison(sweep, metric=metric)[0]]) for metric in ("final", "absolute")]
    assert shown(notebook, "text/markdown") == tables
    assert all(f"| {name} " in tables[0] for name in ("tfcaf", "qmix", "vdn"))
    assert len(shown(notebook, "image/png")) == 2, "the curve of one run, and the curves of all"
    said = printed(notebook)
    assert "Did you mean 'train.learning_rate'?" in said and "12 runs: 9 finished" in said
    played = dict(re.findall(r"^(\w+) +return +(-?[\d.]+), joint actions", said, re.MULTILINE))
    last = {one.method: one.returns[-1] for one in sweep.finished if one.seed == 2}
    assert {name: float(value) for name, value in played.items()} == last


def test_baseline_comparison(copy: Path) -> None:
    notebook = execute(copy / "baseline_comparison.py")
    sweep = collect([copy / "runs" / "baseline_comparison"])
    assert sweep.counts() == "18 runs: 18 finished"
    per_task, over_tasks = shown(notebook, "text/markdown")
    assert per_task == markdown([comparison(sweep)[0]]) and over_tasks == markdown(
        [comparison(sweep, rows=(), stat="iqm")[0]]
    )
    assert all(f"| {name} " in one for name in ("tfcaf", "qmix", "vdn") for one in (per_task, over_tasks))
    assert "lbf/8x8-2p-2f-coop-2s" in per_task and "mpe/simple_spread" in per_task
    assert len(shown(notebook, "image/png")) == 5, "curves, bars, aggregated curves, profiles, improvement"
    said = printed(notebook)
    assert "settings of the training that differ: none" in said
    assert said.count("permutation test: p = ") == 2, "tfcaf against each other method"


def test_baseline_comparison_of_runs_that_are_there(copy: Path, tmp_path: Path) -> None:
    for task in ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"):
        for worth, mixer in ((0.6, "qmix"), (0.7, "vdn")):
            for seed in range(3):
                make_run(tmp_path / "mine", run_config(mixer, seed, task), worth + 0.02 * seed)
    notebook = execute(copy / "baseline_comparison.py", RUNS=repr([str(tmp_path / "mine")]))
    assert not (copy / "runs").exists(), "nothing is trained"
    assert "12 runs: 12 finished\nmethods: qmix, vdn\n" in printed(notebook)
    assert len(shown(notebook, "image/png")) == 5


def test_ablation(copy: Path) -> None:
    notebook = execute(copy / "ablation.py")
    tables = [
        ablation(collect([copy / "runs" / name]), [axis])[0]
        for name, axis in (
            ("ablation_learning_rate", "train.learning_rate"),
            ("ablation_rounds", "tfcaf.rounds"),
        )
    ]
    assert shown(notebook, "text/markdown") == [markdown([one]) for one in tables]
    assert len(shown(notebook, "image/png")) == 1
    (_, (vdn, _)), (_, (better, _)) = tables[1].rows
    assert isinstance(vdn, Cell) and isinstance(better, Cell)
    assert better.estimate.value > vdn.estimate.value, "the function of two rounds can represent the game"
    said = printed(notebook)
    assert said.count("answers are missing") == 3, "a candidate, advice, a candidate"
    assert "3 calls: round 1: candidate 1" in said
    assert re.search(r"functions generated: 1, 1 call", said), "the sweep has the function of one round written"
    assert f"p = {permutation_test(vdn.scores, better.scores)[0]:.3f}" in said


def test_reading_a_tfcaf(copy: Path) -> None:
    notebook = execute(copy / "reading_a_tfcaf.py")
    bundled = stored_function.load(stored_function.bundled_path("lbf", "8x8-2p-2f-coop-2s"))
    texts = shown(notebook, "text/markdown")
    assert bundled.source in texts[0] and "all agent fields" in texts[2]
    assert len(shown(notebook, "image/png")) == 4
    said = printed(notebook)
    autograd, package = (
        [float(word) for word in re.findall(r"[\d.]+", line)]
        for line in re.findall(r"^by (?:autograd|credits): +\[(.*)\]", said, re.MULTILINE)
    )
    assert autograd == pytest.approx(package, abs=1e-6) and sum(package) == pytest.approx(2, abs=1e-5)
    assert re.search(r"^episode \d+: return 0?\.?[1-9]", said, re.MULTILINE), "something is paid in the episode shown"
    stages = re.findall(r": refused \((\w+)\): ", said)
    assert stages == ["run", "probe", "probe", "probe", "static"]
    mine = stored_function.load(copy / "runs" / "nearer.json")
    assert (mine.env, mine.task) == ("lbf", bundled.task) and mine.program != bundled.program
    assert "weights = torch.softmax(-0.3 * steps.amin(dim=2), dim=1)" in mine.source
