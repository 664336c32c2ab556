"""The notebooks, executed by a kernel in a copy: no cell fails, and they show what the package computes from the runs."""

import ast
import itertools
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from run_folders import make_run, run_config

import qllm_exp

FOLDER = Path(__file__).parents[2] / "notebooks"
FORKING = f"""
import sys
sys.path.insert(0, {str(Path(commands.__file__).parent)!r})
import commands
import qllm_exp.api.runs
qllm_exp.api.runs.subprocess = commands.Subprocess(timeout=280)
"""
LIBRARIES = {"IPython", "matplotlib", "numpy", "pandas"}


@pytest.fixture(autouse=True)
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with copies of the notebooks, in which they run; the originals stay as they are."""
    before = sorted(FOLDER.rglob("*"))
    for kind in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(kind, str(tmp_path / kind))
    yield shutil.copytree(FOLDER, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    assert sorted(FOLDER.rglob("*")) == before


def execute(path: Path, is_forking: bool = False, **parameters: str) -> NotebookNode:
    """Return the notebook with its outputs.

    Args:
        path: the notebook.
        is_forking: whether its sweeps are forked, as tests/commands.py does; else each is a Python that imports torch twice.
        **parameters: new values of assignments at the start of a line, by name.
    """
    text = path.read_text()
    for name, value in parameters.items():
        text, times = re.subn(rf"^{name} = .*$", lambda _, line=f"{name} = {value}": line, text, flags=re.MULTILINE)
        assert times == 1
    notebook = jupytext.reads(text, fmt="py:percent")
    if is_forking:
        notebook.cells.insert(0, new_code_cell(FORKING))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST")  # with it, a kernel does not capture the output of subprocesses
        NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def displayed(notebook: NotebookNode, kind: str) -> list[str]:
    """Return what the cells display as 'image/png', 'text/markdown' or 'text/html'."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def printed(notebook: NotebookNode) -> str:
    """Return what the cells print, and what they show of data frames."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = (output["text"] if "text" in output else f"{output.data['text/plain']}\n" for output in outputs)
    return "".join(texts)


def test_the_readme_lists_every_notebook_and_each_names_the_next() -> None:
    listed = re.findall(r"^\| \d\. \[(\w+)\.py\]", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in FOLDER.glob("*.py"))
    for name, following in itertools.pairwise(listed):
        assert f"Next: `{following}.py`" in (FOLDER / f"{name}.py").read_text()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_use_the_public_api_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "qllm_exp" in modules
    allowed = {"qllm_exp", *LIBRARIES, *sys.stdlib_module_names}
    assert all(name.partition(".")[0] in allowed and not name.startswith("qllm_exp.") for name in modules), modules
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qllm_exp"
    }
    assert used <= set(qllm_exp.__all__)


def test_first_tour(copy: Path) -> None:
    notebook = execute(copy / "first_tour.py", is_forking=True)
    folder = copy / "runs" / "first_tour"
    runs = qllm_exp.load_runs(folder)
    assert len(runs) == 12 and set(runs.state) == {"finished"}
    tables = [str(qllm_exp.table(folder, metric=metric)) for metric in ("final", "absolute")]
    assert displayed(notebook, "text/markdown") == tables
    assert all(f"| {name} " in tables[0] for name in ("tfcaf", "qmix", "vdn"))
    assert len(displayed(notebook, "image/png")) == 2, "the curve of one run, and the curves of all"
    text = printed(notebook)
    assert "Did you mean 'train.learning_rate'?" in text and "12 runs: 9 finished" in text
    played = dict(re.findall(r"^(\w+) +return +(-?[\d.]+), joint actions", text, re.MULTILINE))
    last = runs[runs.seed == 2].set_index("method").final_return
    assert {name: float(value) for name, value in played.items()} == dict(last)
    assert "tfcaf  return  275.0, joint actions [[0, 0]]" in text, "the best joint action"


def test_baseline_comparison(copy: Path) -> None:
    notebook = execute(copy / "baseline_comparison.py")
    folder = copy / "runs" / "baseline_comparison"
    assert list(qllm_exp.load_runs(folder).state) == ["finished"] * 18
    per_task, over_tasks = displayed(notebook, "text/markdown")
    assert per_task == str(qllm_exp.table(folder))
    assert over_tasks == str(qllm_exp.table(folder, rows=(), stat="iqm"))
    assert all(f"| {name} " in table for name in ("tfcaf", "qmix", "vdn") for table in (per_task, over_tasks))
    assert "lbf/8x8-2p-2f-coop-2s" in per_task and "mpe/simple_spread" in per_task
    assert len(displayed(notebook, "image/png")) == 5, "curves, bars, normalised curves, profiles, improvement"
    assert "training settings that differ: none" in printed(notebook)
    assert qllm_exp.compare(folder).round(3).to_html(notebook=True) in displayed(notebook, "text/html")[-1]


def test_baseline_comparison_with_runs_of_the_user(copy: Path, tmp_path: Path) -> None:
    for task in ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"):
        for final, mixer in ((0.6, "qmix"), (0.7, "vdn")):
            for seed in range(3):
                make_run(tmp_path / "mine", run_config(mixer, seed, task), final + 0.02 * seed)
    notebook = execute(copy / "baseline_comparison.py", RUNS=repr([str(tmp_path / "mine")]))
    assert not (copy / "runs").exists(), "nothing is trained"
    text = printed(notebook)
    assert re.search(r"lbf 10x10-3p-3f-2s +finished +3 +3\n", text), "three runs of qmix and of vdn"
    assert len(displayed(notebook, "image/png")) == 5


def test_ablation(copy: Path) -> None:
    notebook = execute(copy / "ablation.py", is_forking=True)
    rates, rounds = copy / "runs" / "ablation_learning_rate", copy / "runs" / "ablation_rounds"
    tables = [qllm_exp.ablation(rates, axis="train.learning_rate"), qllm_exp.ablation(rounds, axis="tfcaf.rounds")]
    assert displayed(notebook, "text/markdown") == [str(table) for table in tables]
    assert len(displayed(notebook, "image/png")) == 1
    returns = qllm_exp.load_runs(rates).groupby(["mixer.name", "train.learning_rate"]).final_return
    assert returns.min()["tfcaf", 0.005] == 250 and returns.max()["qmix", 0.005] == returns.min()["qmix", 0.005] == 50
    assert (returns.mean()[:, 0.0005] < 50).all(), "too small for either mixer"
    (pair,) = qllm_exp.compare(rounds, by="tfcaf.rounds").itertuples()
    assert pair.difference < -100, "the function of two rounds can represent the game"
    assert pair.p == pair.smallest_p == pytest.approx(2 / 70)
    text = printed(notebook)
    assert text.count("answers are missing") == 3, "a candidate, advice, a candidate"
    assert "3 calls: round 1: candidate 1" in text
    assert re.search(r"functions generated: 1, 1 call", text), "the sweep generates the function of one round"
    table = qllm_exp.compare(rounds, by="tfcaf.rounds").round(3)
    assert table.to_html(notebook=True) in displayed(notebook, "text/html")[-1]


def test_reading_a_tfcaf(copy: Path) -> None:
    notebook = execute(copy / "reading_a_tfcaf.py")
    bundled = qllm_exp.load_function("lbf/8x8-2p-2f-coop-2s")
    assert bundled.source in displayed(notebook, "text/markdown")[0]
    assert len(displayed(notebook, "image/png")) == 4
    text = printed(notebook)
    autograd, assigned = (
        [float(number) for number in re.findall(r"[\d.]+", line)]
        for line in re.findall(r"^(?:autograd|assign_credit): +\[(.*)\]", text, re.MULTILINE)
    )
    assert autograd == pytest.approx(assigned, abs=1e-6) and sum(assigned) == pytest.approx(2, abs=1e-5)
    assert re.search(r"^episode\n\d+ +0\.5\nName: reward", text, re.MULTILINE), "one of the episodes has a reward"
    importance = {label: float(value) for label, value in re.findall(r"^(\w+ \d \w+) +(\d\.\d+) ", text, re.MULTILINE)}
    assert importance["agent 0 position"] > 0.01 and importance["agent 0 last_action"] == 0
    assert re.findall(r": refused \((\w+)\): ", text) == ["probe", "probe", "static"]
    nearer = qllm_exp.load_function(copy / "runs" / "nearer.json")
    assert (nearer.env, nearer.task) == ("lbf", bundled.task) and nearer.program != bundled.program
    assert "weights = torch.softmax(-0.3 * distances.amin(dim=2), dim=1)" in nearer.source
