"""A report shows everything in the run directories on one self-contained page, and nothing from a run becomes markup."""

import html
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_pages import Page, give_function, make_sweep
from run_folders import make_run, make_unfinished_run, run_config

from qllm_exp.config import schema
from qllm_exp.credit import stored_function
from qllm_exp.errors import UserError
from qllm_exp.results.__main__ import main
from qllm_exp.results.records.collect import collect
from qllm_exp.results.report import credit as report_credit
from qllm_exp.results.report import functions as report_functions
from qllm_exp.results.report import runs as report_runs
from qllm_exp.results.report.credit import credit_figure
from qllm_exp.results.report.page import report
from qllm_exp.results.report.parts import Html, concat, tag
from qllm_exp.results.report.prose import prose
from qllm_exp.results.report.python import highlight
from qllm_exp.results.report.tables import varied_settings
from qllm_exp.runs.versions import resumed_record
from qllm_exp.utils.text import inert_lines

pytestmark = pytest.mark.slow

TASK, OTHER = "8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"
COMMAND = "python -m qllm_exp -m env=lbf mixer=qmix,vdn seed=0-2"


def text_of(*folders: Path, credit: bool = False) -> str:
    return report(collect(folders), folders, folders[0].parent, credit)


def page_of(*folders: Path) -> Page:
    return Page(text_of(*folders))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs of qmix on two tasks, and of vdn on one of them."""
    for seed in range(3):
        for mixer, task, worth in (("qmix", TASK, 0.5), ("qmix", OTHER, 0.2), ("vdn", TASK, 0.3)):
            run = make_run(
                tmp_path / "runs",
                run_config(mixer, seed, task, sweep=schema.SweepConfig(tags=["night"])),
                worth + 0.1 * seed,
            )
            versions = {
                "qllm_exp": "0.1.0",
                "commit": "abc123def4567",
                "torch": "2.6" if seed else "2.5",
                "host": "lab7",
            }
            (run / "versions.json").write_text(json.dumps(versions))
    make_sweep(tmp_path / "runs" / "first", sorted(path.name for path in (tmp_path / "runs").iterdir()), COMMAND)
    return tmp_path / "runs"


# Content


def test_runs_from_an_address_are_titled_by_it(runs: Path) -> None:
    folders = sorted(path for path in runs.iterdir() if (path / "config.yaml").exists())
    page = report(collect(folders), folders, runs, credit=False, sources=["wandb://team/project"])
    assert "<h1>project</h1>" in page and "in wandb://team/project; the runs are shown as found" in page


def test_sweep_command_start_tags_and_version_are_shown(runs: Path) -> None:
    page = page_of(runs / "first")
    for message in ("first", COMMAND, "2026-11-20 21:00:00", "night", "qllm_exp 0.1.0, commit abc123def4 (9 runs)"):
        assert message in page.text
    assert "9 of 9 runs finished" in page.text and "2 tasks" in page.text and "Unfinished runs" not in page.text


def test_its_tables_are_those_of_the_commands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(runs / "first")
    main(["table", str(runs / "first"), "--columns", "parameters,time,cost"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| lbf")]
    assert len(lines) == 5
    for line in lines:
        cells = [cell.strip().replace("**", "") for cell in line.strip("|").split("|")]
        assert cells in page.rows
    assert page.rows.count(["lbf/10x10-3p-3f-2s", "0.300 [0.200, 0.400] (n=3)", "-"]) == 2, (
        "no vdn there, by either metric"
    )


def test_every_run_has_a_row_with_a_link_to_its_directory(runs: Path) -> None:
    page = page_of(runs / "first")
    links = {str(link["href"]) for link in page.all("a") if not str(link["href"]).startswith("#")}
    for record in collect([runs]).finished:
        line = page.row(record.name)
        final = f"{record.result['final_return']:.3f}"
        assert line[1:] == [
            record.task,
            record.method,
            str(record.seed),
            final,
            final,
            "200,000",
            "1 min 40 s",
            "finished",
        ]
        assert record.name in links
    assert all((runs / link).is_dir() for link in links)


def test_no_machine_is_named(runs: Path) -> None:
    assert "lab7" not in text_of(runs / "first")


def test_differing_versions_are_marked(runs: Path) -> None:
    page = page_of(runs)
    assert page.row("torch")[1:] == ["2.6 (6 runs)2.5 (3 runs)", "differs"] and page.row("qllm_exp")[1:] == [
        "0.1.0",
        "",
    ]
    assert "Differs between runs: torch." in page.text
    assert "git checkout abc123def4567" in page.text


def test_all_versions_of_a_resumed_run_are_shown(runs: Path) -> None:
    run = next(path for path in sorted(runs.iterdir()) if (path / "versions.json").exists())
    before = json.loads((run / "versions.json").read_text()) | {"torch": "2.5", "kernel": "native 0123456789"}
    after = before | {"commit": "fff123def4567", "torch": "2.7", "kernel": "torch", "host": "lab8"}
    record = resumed_record(before, after, 100_000)
    (run / "versions.json").write_text(json.dumps(record))
    page = page_of(runs)
    assert "2.5 -> 2.7 (1 run)" in page.row("torch")[1] and "native 0123456789 -> torch" in page.row("kernel")[1]
    assert "torch 2.5 -> 2.7, kernel native 0123456789 -> torch (s" in page.text and "from step 100,000)" in page.text
    assert "qllm_exp 0.1.0, commit abc123def4 -> qllm_exp 0.1.0, commit fff123def4 (1 run)" in page.text
    assert "git checkout abc123def4567" in page.text and "git checkout fff123def4567" in page.text
    assert not [row for row in page.rows if row[0] in ("env_step", "segments")] and "lab" not in page.text


def test_cost_and_the_settings_that_differ(runs: Path) -> None:
    page = page_of(runs)
    assert "environment steps 1,800,000" in page.text and "wall time 15 min 00 s" in page.text
    assert page.row("mixer.name") == ["mixer.name", "qmix", "vdn"] and page.row("mixer.embed")[2] == "-"
    assert not any(row[0] in ("env.task", "seed", "train.gamma") for row in page.rows)


def test_functions_are_counted_once_in_the_cost(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, run_config("tfcaf", seed), 0.5, program=1, usd=0.25)
    assert "LLM calls 7 LLM cost (USD) 0.2500" in page_of(tmp_path).text


def test_figures_that_cannot_be_drawn_are_replaced_by_the_reason(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix", 0), 0.5)
    make_run(tmp_path, run_config("vdn", 0, OTHER), 0.5)
    make_run(tmp_path, run_config("vdn", 1, OTHER), 0.5, steps=(0, 7, 9))
    page = page_of(tmp_path)
    assert page.text.count("No task has runs of all 2 methods") == 3
    assert f"No learning curves on lbf/{OTHER}: The runs of vdn" in page.text
    assert [figure["aria-label"] for figure in page.all("svg")] == [
        f"Learning curves on lbf/{TASK}: evaluation return against environment steps"
    ]


def test_one_task_has_no_aggregated_curves_of_its_own(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix"), 0.5)
    make_run(tmp_path, run_config("vdn"), 0.4)
    page = page_of(tmp_path)
    assert "No aggregated curves: for one task" in page.text and len(page.all("svg")) == 3


def test_many_methods_are_rows_and_many_columns_are_parts(tmp_path: Path) -> None:
    for hidden in (8, 16, 24, 32, 40):
        make_run(tmp_path, run_config("vdn", train=schema.TrainConfig(hidden=hidden)), hidden / 100)
    rows = page_of(tmp_path).rows
    assert rows.count(["method", f"lbf {TASK}"]) == rows.count(["vdn hidden=16", "0.160 (n=1)"]) == 2
    for task in (
        "5x5-2p-1f",
        "5x5-2p-2f",
        "5x5-3p-1f",
        "5x5-3p-2f",
        "5x5-3p-3f",
        "6x6-2p-1f",
        "6x6-2p-2f",
        "6x6-3p-1f",
    ):
        for hidden in range(10):
            make_run(tmp_path, run_config("vdn", 0, task, train=schema.TrainConfig(hidden=hidden + 1)), hidden / 10)
    heads = [row for row in page_of(tmp_path).rows if row[:1] == ["method"]]
    assert [len(row) for row in heads] == [9, 2, 9, 2] and len(set(heads[0][1:] + heads[1][1:])) == 9


# Varied settings


def test_a_varied_setting_gets_an_ablation_table(tmp_path: Path) -> None:
    for rate in (1e-3, 3e-4):
        for mixer in ("qmix", "vdn"):
            make_run(tmp_path, run_config(mixer, train=schema.TrainConfig(learning_rate=rate)), 100 * rate)
    assert varied_settings(collect([tmp_path]).finished) == ["train.learning_rate"]
    page = page_of(tmp_path)
    assert [row[:3] for row in page.rows if row[-1] == "default"] == [
        [f"lbf/{TASK}", mixer, "0.0003"] for mixer in ("qmix", "vdn")
    ]


def test_environment_mixer_seed_and_generated_functions_are_not_varied_settings(runs: Path) -> None:
    make_run(runs, run_config("tfcaf"), 0.5, program=1)
    for sample in (1, 2):
        make_run(runs, run_config("tfcaf", tfcaf=schema.GenerationConfig(sample=sample)), 0.5, program=sample + 1)
    assert varied_settings(collect([runs]).finished) == []
    assert "Ablation" not in page_of(runs).text


# Unfinished runs


def failed(folder: Path) -> Path:
    run = make_unfinished_run(folder, run_config("vdn", 1), "failed", "RuntimeError: no board")
    (run / "console.txt").write_text("Traceback\n")
    return run


def running(folder: Path) -> Path:
    run = make_unfinished_run(folder, run_config("vdn", 1), "running")
    (run / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere", "heartbeat": time.time()}))
    return run


def missing_directory(folder: Path) -> Path:
    return folder / "lbf_8x8-2p-2f-coop-2s_q-learning_vdn_s1_12345678"


def with_status(state: str) -> Callable[[Path], Path]:
    """Return a function that creates a run with this state in its status file."""
    return lambda folder: make_unfinished_run(folder, run_config("vdn", 1), state)


@pytest.mark.parametrize(
    ("state", "create", "reason", "resume"),
    [
        ("failed", failed, "RuntimeError: no board", "qllm_exp.experiment"),
        ("interrupted", with_status("interrupted"), "at 0%", "qllm_exp.experiment"),
        ("running", running, "", "nothing to do: the run is running"),
        ("dead", with_status("running"), "ended without an error message", "qllm_exp.experiment"),
        ("queued", with_status("queued"), "submitted to Slurm", "nothing to do: the run is queued"),
        ("new", with_status(""), "", "qllm_exp.experiment"),
        ("new", missing_directory, "its run directory does not exist", COMMAND),
    ],
)
def test_every_unfinished_run_has_its_state_reason_and_resume_command(
    tmp_path: Path, state: str, create: Callable[[Path], Path], reason: str, resume: str
) -> None:
    finished = make_run(tmp_path / "runs", run_config("vdn"), 0.5)
    run = create(tmp_path / "runs")
    page = page_of(make_sweep(tmp_path / "runs" / "s", [finished.name, run.name], COMMAND))
    assert f"finished 1 {state} 1 Unfinished runs" in page.text and "1 of 2 runs finished" in page.text
    text = page.text.partition("Unfinished runs")[2].partition("Comparison")[0]
    assert run.name in text and reason in text and resume in text.partition(run.name)[2]
    can_retry = run.exists()
    assert ("qllm_exp retry" in text) == (can_retry and state in ("failed", "dead", "interrupted", "new"))
    assert ("--missing" in text) == (can_retry and state in ("interrupted", "new"))
    assert page.row(run.name)[3:] == ["1", "-", "-", "-", "-", state]
    assert ("console.txt" in text) == (state == "failed")


def test_a_dead_run_of_a_job_has_the_log_of_its_own_array_task(tmp_path: Path) -> None:
    runs = [make_unfinished_run(tmp_path / "runs", run_config("vdn", seed), "running") for seed in range(12)]
    sweep = make_sweep(tmp_path / "runs" / "s", [run.name for run in runs], COMMAND)
    submission = sweep / "jobs" / "ab12"
    submission.mkdir(parents=True)
    (submission / "packs.json").write_text(json.dumps([[run.name] for run in runs]))
    for task in range(12):
        (submission / f"17_{task}_0_log.out").write_text(f"oom-kill in task {task}\n")
    (runs[1] / "console.txt").write_text("ready\n")
    text = page_of(sweep).text.partition("Unfinished runs")[2].partition("Comparison")[0]
    entries = re.findall(r"(?<= dead )lbf_\S*_vdn_s(\d+)_(.*?qllm_exp\.experiment)", text)
    assert len(entries) == 12
    for seed, entry in entries:
        assert re.findall(r"17_(\d+)_0_log\.out", entry) == [seed]
        assert ("console.txt" in entry) == (seed == "1")


def test_there_is_a_page_without_a_finished_run(tmp_path: Path) -> None:
    make_unfinished_run(tmp_path, run_config("vdn"), "failed", "it broke")
    page = page_of(tmp_path)
    assert "0 of 1 run finished" in page.text and "it broke" in page.text
    assert "No table: No run has finished (1 run: 0 finished, 1 failed)." in page.text
    assert (
        "No figure: No run has finished" in page.text
        and "No run has finished, so there is no cost to report." in page.text
    )
    assert "There is no sweep record (sweep.json)" in page.text


def test_long_lists_are_truncated_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_runs, "MAX_RUNS", 3)
    monkeypatch.setattr(report_runs, "MAX_UNFINISHED", 2)
    for seed in range(2):
        make_run(tmp_path, run_config("vdn", seed), 0.5)
    names = [
        make_unfinished_run(tmp_path, run_config("qmix", seed), "failed", f"error {seed}").name for seed in range(3)
    ]
    page = page_of(tmp_path)
    assert "This page lists 3 of 5 runs, finished runs first." in page.text
    assert sum(row[0] in names for row in page.rows) == 1
    assert "1 more not shown" in page.text and len(re.findall("error [012]", page.text)) == 2


# Functions


def test_a_function_is_shown_with_its_origin(tmp_path: Path) -> None:
    for seed in range(2):
        run = make_run(tmp_path, run_config("tfcaf", seed, "climbing", "matrix"), 100.0, program=1)
        give_function(run)
    known, page = stored_function.load(run / "tfcaf.json"), page_of(tmp_path)
    for message in (known.prompt_hash, known.program.hash, known.verdict, "and 1 more", "3 calls, price unknown"):
        assert message in page.text
    assert "Written by a large language model on 2026-11-21, in 1 round of 2 candidates" in page.text
    assert "The reward is decided by whether the two agents' choices match." in page.text, "the model's explanation"
    assert page.text.count("def credit_assignment") == 1 and "No credit figure: disabled by --no-credit" in page.text
    source = re.search(r'<pre class="source".*?><code>(.*?)</code></pre>', text_of(tmp_path), re.DOTALL)
    assert source and html.unescape(re.sub("<[^>]*>", "", source[1])) == known.source.strip()


def test_a_function_that_a_search_has_found_leads_to_the_page_of_the_search(tmp_path: Path) -> None:
    run = make_run(tmp_path, run_config("tfcaf", 0, "climbing", "matrix"), 100.0, program=1)
    give_function(run)
    directory = tmp_path / f"search_{stored_function.load(run / 'tfcaf.json').key[:8]}"
    assert directory.name not in text_of(tmp_path)
    directory.mkdir()
    assert f"tfcaf report {directory}" in page_of(tmp_path).text
    (directory / "report.html").touch()
    assert f'href="{tmp_path.name}/{directory.name}/report.html"' in text_of(tmp_path)


def test_the_docstring_explains_a_function_without_a_model_answer(tmp_path: Path) -> None:
    source = 'def credit_assignment(agents_q, global_state):\n    """Equal credit."""\n    return agents_q.mean(1, keepdim=True)\n'
    run = make_run(tmp_path, run_config("tfcaf", 0, "climbing", "matrix"), 100.0, program=1)
    give_function(
        run,
        source=source,
        request={},
        key="",
        transcript=(),
        provenance={"model": "file mine.py", "procedure": "imported"},
        cost={},
    )
    assert report_functions.explanation(stored_function.load(run / "tfcaf.json")) == "Equal credit."
    page = page_of(tmp_path)
    assert "Imported from file mine.py." in page.text and "price unknown" not in page.text.partition("Cost")[0]
    give_function(run, source="not python (", transcript=())
    assert "There is no explanation besides the comments" in page_of(tmp_path).text


def test_an_edited_function_is_reported_and_the_rest_of_the_page_is_complete(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("tfcaf"), 0.5, program=1)
    page = page_of(tmp_path)
    assert "Its file cannot be used: TFCAF" in page.text and [f"lbf/{TASK}", "0.500 (n=1)"] in page.rows


def test_the_credit_is_drawn_on_the_task_of_the_run(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path, run_config("tfcaf", 0, "climbing", "matrix"), "failed")
    give_function(run)
    text = text_of(tmp_path, credit=True)
    page = Page(text)
    (figure,) = page.all("svg")
    assert "matrix/climbing: Credit of each agent along an episode of a team that acts at random" in str(
        figure["aria-label"]
    )
    assert "uniformly random actions" in page.text and "IGM gate off" in page.text and "choose action" in page.text


def test_a_crashing_simulator_does_not_affect_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits_env.py").write_text(
        "import os\nfrom dataclasses import dataclass\nfrom qllm_exp.envs import matrix\n"
        "from qllm_exp.envs.matrix import check, tasks\n"
        "@dataclass\nclass Config(matrix.Config):\n    name: str = 'exits_env'\n"
        "def make(config, num_envs, seed, device):\n    print('not for the command line')\n    os._exit(7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = make_unfinished_run(tmp_path / "runs", run_config("tfcaf", 0, "climbing", "matrix"), "failed")
    config = (run / "config.yaml").read_text().replace("name: matrix", "name: exits_env")
    (run / "config.yaml").write_text(config)
    give_function(run)
    message = "No credit figure: the process that plays the episode ended with exit code 7."
    assert message in Page(text_of(tmp_path / "runs", credit=True)).text


def test_football_without_its_engine_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qllm_exp.envs.grf.env._gfootball_folder", lambda: None)
    task = "academy_3_vs_1_with_keeper"
    run = make_unfinished_run(tmp_path / "runs", run_config("tfcaf", 0, task, "grf"), "failed")
    give_function(run, "grf", task)
    with pytest.raises(UserError, match="needs the football engine, which is not installed"):
        report_credit._draw(run, False)


def test_a_credit_figure_that_cannot_be_drawn_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_unfinished_run(tmp_path, run_config("tfcaf", 0, "penalty-100", "matrix"), "failed")
    give_function(run, "lbf", TASK)
    with pytest.raises(UserError, match="is for 2 agents and a state of 14 columns"):
        credit_figure(run, trained=False)
    monkeypatch.setattr("qllm_exp.results.report.credit.TIMEOUT_S", 0.01)
    with pytest.raises(UserError, match="took more than 0 s"):
        credit_figure(run, trained=False)


# The page


HOSTILE = "</pre></script><img src=x onerror=alert(1)><b>&amp;\x01\u202e$\\frac$"


def test_nothing_from_a_run_becomes_markup(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for seed in range(2):
        hostile = run_config("tfcaf", seed, "climbing", "matrix", sweep=schema.SweepConfig(tags=[HOSTILE]))
        hostile.env.task = HOSTILE
        run = make_run(folder, hostile, 1.0 + seed, program=1)
        give_function(
            run,
            source=f'def credit_assignment(q, s):\n    """{HOSTILE}"""\n    # {HOSTILE}\n',
            provenance={"model": HOSTILE, "date": HOSTILE, HOSTILE: HOSTILE},
            verdict=HOSTILE,
            transcript=(),
        )
        (run / "versions.json").write_text(json.dumps({"commit": HOSTILE, HOSTILE: HOSTILE}))
        run.rename(folder / f"<i onclick=x>{seed}")
    make_run(
        folder,
        run_config("vdn", 0, "climbing", "matrix", train=schema.TrainConfig(name=HOSTILE, optimiser=HOSTILE)),
        1.0,
    )
    make_run(folder, run_config("vdn", 0, "climbing", "matrix", train=schema.TrainConfig(name="b", optimiser="b")), 1.0)
    make_unfinished_run(folder, run_config("vdn", 7), "failed", HOSTILE).rename(folder / "<i onclick=y>")
    names = sorted(path.name for path in folder.iterdir())
    text = text_of(make_sweep(folder / "<u>", [*names, "<s>"], HOSTILE))
    page = Page(text)
    kinds = {kind for kind, _ in page.elements}
    assert not kinds & {"img", "b", "i", "u", "s", "iframe", "object", "link", "base"} and len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    allowed = re.compile(r"#|[\w%.-]+(/[\w%.-]+)*$")
    assert all(allowed.match(str(link["href"])) for link in page.all("a"))
    assert page.text.count("<img src=x onerror=alert(1)>") > 12, "shown as text everywhere"
    assert not {"\x01", "\u202e"} & set(text) and page.text.count("\\x01\\u202e") > 12


def test_a_stored_function_with_values_of_other_types_is_not_used(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", run_config("tfcaf", 0, "climbing", "matrix"), 1.0, program=1)
    give_function(run, cost={"calls": HOSTILE, "usd": HOSTILE, "tokens_in": HOSTILE}, transcript=())
    assert "Its file cannot be used: TFCAF" in page_of(tmp_path / "runs").text


def test_the_page_needs_no_other_file_and_lets_nothing_else_run(runs: Path) -> None:
    page = page_of(runs)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none';") and "'unsafe-inline'; img" in policy
    assert all(
        kind not in ("link", "iframe", "source") and "src" not in attributes for kind, attributes in page.elements
    )
    assert all(
        str(attributes.get("xlink:href", "#")).startswith("#") for kind, attributes in page.elements if kind == "use"
    )


def test_ids_are_unique_and_all_references_resolve(runs: Path) -> None:
    text = text_of(runs)
    page = Page(text)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1} and {
        "sweep",
        "comparison",
        "figures",
        "runs",
        "cost",
        "versions",
        "reproduce",
    } <= set(ids)
    referred = [
        str(attributes[key])[1:]
        for _, attributes in page.elements
        for key in ("href", "xlink:href")
        if str(attributes.get(key, "")).startswith("#")
    ]
    referred += re.findall(r"url\(#([^)]+)\)", text)
    assert len(referred) > 50 and set(referred) <= set(ids)


def test_headings_are_nested_and_tables_and_figures_have_names(runs: Path) -> None:
    page = page_of(runs)
    levels = [int(kind[1]) for kind, _ in page.elements if re.fullmatch("h[1-6]", kind)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption")) and all(
        figure.get("aria-label") for figure in page.all("svg")
    )


def test_a_hundred_runs_are_a_small_page(tmp_path: Path) -> None:
    steps = tuple(range(0, 2_000_001, 50_000))
    for task in (TASK, OTHER):
        for mixer in ("qmix", "vdn"):
            for seed in range(25):
                make_run(tmp_path, run_config(mixer, seed, task), 0.5 + seed / 100, steps=steps)
    text = text_of(tmp_path)
    assert "100 of 100 runs finished" in Page(text).text and len(text.encode()) < 1_000_000


# Elements


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<i>", tag("b", "&"), class_='a"b', data_v=1, hidden=True, open=False) == (
        '<p class="a&quot;b" data-v="1" hidden>&lt;i&gt;<b>&amp;</b></p>'
    )
    assert concat(["<", Html("<br>")], " & ") == "&lt; &amp; <br>"


def test_python_is_highlighted() -> None:
    assert highlight("def f(x):  # why\n    return 'a' + 1\n") == (
        '<span class="k">def</span> <span class="d">f</span>(x):  <span class="c"># why</span>\n'
        '    <span class="k">return</span> <span class="s">&#x27;a&#x27;</span> + <span class="n">1</span>\n'
    )


@given(st.text(alphabet=st.sampled_from("def f(x):\n\t #'\"\\1.e+é<&>return\r\f"), max_size=60))
def test_highlighting_preserves_the_source(source: str) -> None:
    assert html.unescape(re.sub(r"</?span[^>]*>", "", highlight(source))) == inert_lines(source)


def test_plain_markdown_becomes_paragraphs_and_lists() -> None:
    assert prose("One\nline, **bold** `x<y`.\n\nBefore:\n- a\n  more\n* b\n\n<i>*c*") == (
        "<p>One line, <strong>bold</strong> <code>x&lt;y</code>.</p><p>Before:</p><ul><li>a more</li><li>b</li></ul>"
        "<p>&lt;i&gt;*c*</p>"
    )


# The command


def test_the_page_is_written_to_the_directory_of_the_sweep(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    for arguments, expected in (
        (["runs/first"], "runs/first/report.html"),
        (["runs"], "report.html"),
        (["runs/first", "runs"], "report.html"),
        (["runs", "-o", "deep/r.html"], "deep/r.html"),
    ):
        assert main(["report", *arguments, "--no-credit"]) == 0
        assert capsys.readouterr().out == f"{expected}\n"
        page = Page(Path(expected).read_text(encoding="utf-8"))
        links = [str(link["href"]) for link in page.all("a") if not str(link["href"]).startswith("#")]
        assert len(links) == 9 and all((Path(expected).parent / link).is_dir() for link in links)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["RUNS", "-o", "r.pdf"], "r.pdf: a report is a .html file. Give e.g. -o r.html."),
        (["RUNS", "-o", "RUNS/x/r.html"], "cannot be written"),
    ],
)
def test_errors_are_one_clear_line(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "x").write_text("a file, where a folder would have to be")
    assert main(["report", *(argument.replace("RUNS", str(runs)) for argument in arguments), "--no-credit"]) == 2
    assert message in capsys.readouterr().err
