"""The public Python API, as a notebook uses it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from matplotlib.figure import Figure
from run_folders import make_run, make_unfinished_run, run_config

import qllm_exp
from qllm_exp import UserError
from qllm_exp.api import runs as api_runs
from qllm_exp.config import schema
from qllm_exp.results.records.collect import collect
from qllm_exp.results.tables.table import ablation, comparison

TINY = ["env=matrix", "train=quick", "train.total_steps=2000", "train.evaluation.every=1000", "device=cpu"]
FUNCTIONS = [name for name in qllm_exp.__all__ if name[0].islower()]
MEAN = "def credit_assignment(agents_q, global_state):\n    return agents_q.mean(dim=1, keepdim=True)\n"


@pytest.fixture(scope="module", autouse=True)
def forked_commands() -> Iterator[None]:
    """Commands are forked, which spares them to import torch; test_notebooks.py starts them as a user's Python does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api_runs, "subprocess", commands.Subprocess())
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two trained runs, from `run_sweep`."""
    folder = tmp_path_factory.mktemp("runs")
    runs = qllm_exp.run_sweep([*TINY, "mixer=tfcaf,vdn", f"dir={folder}"])
    assert list(runs.state) == ["finished"] * 2
    return folder


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with runs of three learning rates, three seeds each, that were never trained."""
    folder = tmp_path_factory.mktemp("rates")
    for rate, final in ((0.0005, 0.4), (0.001, 0.6), (0.002, 0.3)):
        for seed in range(3):
            run = run_config("qmix", seed, train=schema.TrainConfig(learning_rate=rate))
            make_run(folder, run, final + 0.03 * seed)
    return folder


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.process_time(); import qllm_exp; seconds = time.process_time() - start\n"
        "print(seconds, *[name for name in ('torch', 'numpy', 'hydra', 'pandas', 'argparse') if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):  # other processes may delay some of them
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        time, *modules = process.stdout.split()
        assert not modules
        seconds.append(float(time))
    assert min(seconds) < 0.1


def test_each_name_is_documented_and_no_name_is_that_of_a_module() -> None:
    assert set(qllm_exp.__all__) <= set(dir(qllm_exp))
    package = Path(qllm_exp.__file__).parent
    for name in FUNCTIONS:
        text = getattr(qllm_exp, name).__doc__
        assert all(f"{part}:" in text for part in ("Args", "Returns", "Examples")), name
        assert f"qllm_exp.{name}(" in text.partition("Examples:")[2], name
        assert not (package / name).exists() and not (package / f"{name}.py").exists(), f"the module would hide {name}"
    assert issubclass(qllm_exp.RunFailed, UserError)
    with pytest.raises(AttributeError, match="no attribute 'load_run'"):
        _ = qllm_exp.load_run


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_is_on_the_page_of_the_api(name: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "pages" / "reference" / "python-api.md"
    assert f"| `{name}(" in page.read_text()


# Configurations and runs


def test_compose_returns_the_configuration_of_the_command() -> None:
    config = qllm_exp.compose(["env=matrix", "env.task=climbing", "mixer=qmix", "train.gamma=0.5"])
    assert (config.env.task, config.mixer.name, config.train.gamma) == ("climbing", "qmix", 0.5)
    assert qllm_exp.compose().env.name == "lbf"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixer", "is not of the form KEY=VALUE"),
        ("mixer=qmx", r"mixer=qmx is unknown. Did you mean 'qmix'\?"),
        ("train.gama=0.5", r"Did you mean 'train.gamma'\?"),
        ("train.gamma=2", "out of bounds"),
    ],
)
def test_compose_rejects_what_the_command_rejects(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        qllm_exp.compose([override])


def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    (path,) = qllm_exp.load_runs(folder, only="mixer=vdn").path
    before = (path / "metrics.jsonl").stat().st_mtime_ns
    result = qllm_exp.run([*TINY, "mixer=vdn", f"dir={folder}"])
    assert result.path == path and (path / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="Did you mean 'learning_rate'"):
        qllm_exp.run([*TINY, "+train.learning_rat=1e-3"])


def test_a_sweep_that_cannot_start_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="The sweep cannot start"):
        qllm_exp.run_sweep(["env=matrix", "mixer=qmx", f"dir={tmp_path}"])
    with pytest.raises(UserError, match=r"sweep.name=\$\{env.name\}: run_sweep reads the results there"):
        qllm_exp.run_sweep(["env=matrix", "sweep.name=${env.name}", f"dir={tmp_path}"])
    assert "Did you mean 'qmix'" in capfd.readouterr().err


# Results


def test_runs_are_a_frame_with_a_row_per_run(folder: Path) -> None:
    runs = qllm_exp.load_runs(folder)
    assert isinstance(runs, pandas.DataFrame) and len(runs) == 2
    assert set(runs["mixer.name"]) == set(runs.method) == {"tfcaf", "vdn"}
    assert {"env", "task", "seed", "final_return", "absolute_return", "train.learning_rate"} <= set(runs)
    assert (runs.env.unique(), runs.task.unique()) == (["matrix"], ["climbing"])
    assert len(qllm_exp.load_runs(folder, only=["mixer=vdn"])) == len(qllm_exp.load_runs(folder, only="mixer=vdn")) == 1


def test_unfinished_runs_are_rows_with_their_state(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix"), 0.5)
    make_unfinished_run(tmp_path, run_config("vdn"), "failed", "no memory")
    runs = qllm_exp.load_runs(tmp_path).set_index("method")
    assert list(runs.state) == ["finished", "failed"] and "no memory" in runs.reason["vdn"]
    assert np.isnan(runs.final_return["vdn"])


def test_curves_are_a_frame_with_a_row_per_evaluation(folder: Path) -> None:
    curves = qllm_exp.load_curves(folder)
    last = curves[curves.method == "vdn"].iloc[-1]
    runs = qllm_exp.load_runs(folder, only="mixer=vdn")
    assert last.return_mean == runs.final_return[0] and list(curves.env_step[:3]) == [0, 1000, 2000]
    assert len(qllm_exp.load_curves(folder, kind="absolute")) == 2
    with pytest.raises(UserError, match="kind='absolut' is unknown"):
        qllm_exp.load_curves(folder, kind="absolut")


def test_tables_are_those_of_the_command(rates: Path) -> None:
    collection = collect([rates])
    assert str(qllm_exp.table(rates)) == str(comparison(collection)[0])
    assert str(qllm_exp.table(rates, rows="task", cols="train.learning_rate", stat="iqm")) == str(
        comparison(collection, ["task"], ["train.learning_rate"], stat="iqm")[0]
    )
    assert str(qllm_exp.ablation(rates, axis="train.learning_rate")) == str(
        ablation(collection, ["train.learning_rate"])[0]
    )


def test_a_comparison_agrees_with_the_tests_of_scipy(rates: Path) -> None:
    returns = {rate: final + 0.03 * np.arange(3) for rate, final in ((0.0005, 0.4), (0.001, 0.6), (0.002, 0.3))}
    pairs = qllm_exp.compare(rates, by="train.learning_rate")
    assert list(zip(pairs.method, pairs.against, strict=True)) == [
        ("learning_rate=0.0005", "learning_rate=0.001"),
        ("learning_rate=0.0005", "learning_rate=0.002"),
        ("learning_rate=0.001", "learning_rate=0.002"),
    ]
    for row in pairs.itertuples():
        x, y = (returns[float(name.partition("=")[2])] for name in (row.method, row.against))
        assert row.difference == pytest.approx(x.mean() - y.mean())
        welch = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval()
        assert (row.welch_low, row.welch_high) == pytest.approx(tuple(welch))
        exact = scipy.stats.permutation_test((x, y), lambda a, b: a.mean() - b.mean(), n_resamples=np.inf)
        assert row.p == pytest.approx(exact.pvalue) and row.smallest_p == 2 / 20
        assert row.bootstrap_low < row.difference < row.bootstrap_high and (row.n, row.tasks) == (3, 1)


def test_a_comparison_over_tasks_normalises_and_uses_the_tasks_of_all_methods(tmp_path: Path) -> None:
    for mixer, shift in (("qmix", 0.0), ("vdn", 0.2)):
        for seed in range(2):
            make_run(tmp_path, run_config(mixer, seed), 0.1 + shift)
            make_run(tmp_path, run_config(mixer, seed, "simple_spread", "mpe"), -100 * (1 - shift) - seed)
    make_run(tmp_path, run_config("vdn", 0, "10x10-3p-3f-2s"), 0.9)
    (pair,) = qllm_exp.compare(tmp_path, against="qmix").itertuples()
    assert (pair.method, pair.against, pair.n, pair.tasks) == ("vdn", "qmix", 2, 2)
    foraging, spread = 0.2, 20 / 101  # 1 is the known bound; 101 lies between the lowest return and the highest, 0
    assert pair.difference == pytest.approx((foraging + spread) / 2)
    (pair,) = qllm_exp.compare(tmp_path, only="env=mpe").itertuples()
    assert (pair.method, pair.tasks) == ("qmix", 1) and pair.difference == pytest.approx(-20), "returns of one task"


def test_what_cannot_be_compared_is_an_error(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix"), 0.5)
    with pytest.raises(UserError, match="Only qmix found; a comparison needs two methods"):
        qllm_exp.compare(tmp_path)
    make_run(tmp_path, run_config("vdn", 0, "10x10-3p-3f-2s"), 0.5)
    with pytest.raises(UserError, match=r"no task in common: qmix: lbf/8x8-2p-2f-coop-2s; vdn: lbf/10x10-3p-3f-2s"):
        qllm_exp.compare(tmp_path)


def test_a_return_that_is_not_a_number_makes_no_p_value(tmp_path: Path) -> None:
    for mixer, final in (("qmix", 0.5), ("vdn", float("nan"))):
        for seed in range(2):
            make_run(tmp_path, run_config(mixer, seed), final)
    (pair,) = qllm_exp.compare(tmp_path).itertuples()
    assert np.isnan([pair.difference, pair.welch_low, pair.p]).all() and pair.n == 2


# Figures


@pytest.mark.parametrize(
    ("plot", "options"),
    [
        (qllm_exp.plot_curves, {}),
        (qllm_exp.plot_curves, {"normalise": True}),
        (qllm_exp.plot_bars, {"metric": "absolute"}),
        (qllm_exp.plot_profiles, {"by": "train.learning_rate"}),
        (qllm_exp.plot_improvement, {"against": "qmix learning_rate=0.001"}),
        (qllm_exp.plot_ablation, {"axis": "train.learning_rate"}),
    ],
)
def test_figures_are_returned_and_written_only_on_request(
    plot, options, rates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    figure = plot(rates, **options)
    assert isinstance(figure, Figure) and figure.axes and not list(tmp_path.iterdir())
    plot(rates, output="figures/figure.svg", **options)
    assert "<svg" in (tmp_path / "figures" / "figure.svg").read_text()
    with pytest.raises(UserError, match=r"figure\.jpg: a figure is written as \.png, \.pdf, \.svg"):
        plot(rates, output="figure.jpg", **options)


def test_a_figure_names_the_runs_that_are_missing(tmp_path: Path) -> None:
    make_run(tmp_path, run_config("qmix"), 0.5)
    make_unfinished_run(tmp_path, run_config("vdn"), "failed")
    for plot in (qllm_exp.plot_curves, qllm_exp.plot_bars):
        assert "Missing: vdn on lbf/8x8-2p-2f-coop-2s: 1 failed" in plot(tmp_path).get_supxlabel()


def test_the_figure_of_an_ablation_shows_the_differences_with_their_intervals(rates: Path) -> None:
    figure = qllm_exp.plot_ablation(rates, axis="train.learning_rate")
    (axis,) = figure.axes
    assert axis.get_title() == "lbf/8x8-2p-2f-coop-2s"
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["train.learning_rate=0.001 (n=3)", "train.learning_rate=0.002 (n=3)"]
    points = [container.lines[0].get_xdata()[0] for container in axis.containers]
    assert np.allclose(points, [0.2, -0.1]), "less the default, 0.0005"
    ends = [container.lines[2][0].get_segments()[0][:, 0] for container in axis.containers]
    pairs = qllm_exp.compare(rates, by="train.learning_rate", against="learning_rate=0.0005")
    assert np.allclose(ends, pairs[["welch_low", "welch_high"]])
    assert "Default: train.learning_rate=0.0005" in figure.get_supxlabel() and "Fewer than 5" in figure.get_supxlabel()


def test_the_figure_of_an_ablation_has_a_panel_per_task(tmp_path: Path) -> None:
    for task in ("8x8-2p-2f-coop-2s", "10x10-3p-3f-2s"):
        for rate in (0.0005, 0.001):
            for seed in range(2):
                run = run_config("qmix", seed, task, train=schema.TrainConfig(learning_rate=rate))
                make_run(tmp_path, run, rate * 100 + 0.01 * seed)
    figure = qllm_exp.plot_ablation(tmp_path, axis="train.learning_rate")
    assert {axis.get_title() for axis in figure.axes} == {"lbf/8x8-2p-2f-coop-2s", "lbf/10x10-3p-3f-2s"}


# Environments and teams


def test_environments_are_made_by_name_and_their_options_checked() -> None:
    env = qllm_exp.make_env("lbf", "10x10-3p-3f-2s", num_envs=3, episode_limit=7)
    assert env.reset().obs.shape[:2] == (3, 3) and env.episode_limit == 7
    with pytest.raises(UserError, match="Did you mean 'task'"):
        qllm_exp.make_env("lbf", taks="8x8-2p-2f-coop-2s")
    with pytest.raises(UserError, match=r"env='lfb' is unknown\. Did you mean 'lbf'"):
        qllm_exp.make_env("lfb")


def test_a_policy_plays_in_the_environment_of_its_run(folder: Path) -> None:
    (path,) = qllm_exp.load_runs(folder, only="mixer=tfcaf").path
    policy = qllm_exp.load_policy(path)
    first = policy.env.reset()
    actions = policy(first.obs, first.state, first.available_actions)
    assert actions.shape == (1, 2) and actions.dtype == torch.int64
    with pytest.raises(UserError, match="parameters='first' is unknown"):
        qllm_exp.load_policy(path, parameters="first")


def test_the_last_policy_earns_the_return_of_the_last_evaluation(folder: Path) -> None:
    for run in qllm_exp.load_runs(folder).itertuples():
        policy = qllm_exp.load_policy(run.path, parameters="last")
        steps = qllm_exp.play(policy.env, policy, episodes=2)
        assert list(steps.groupby("episode").reward.sum()) == [run.final_return] * 2, "game and team are deterministic"


def test_a_row_of_play_has_the_action_its_reward_and_the_state_before_it() -> None:
    env = qllm_exp.make_env("matrix", "climbing", episode_limit=4)
    steps = qllm_exp.play(env, episodes=3, seed=1)
    assert list(steps.episode.unique()) == [1, 2, 3] and list(steps.step) == [0, 1, 2, 3] * 3
    payoff = np.array([[11, -30, 0], [-30, 7, 0], [0, 6, 5]])
    assert np.array_equal(steps.reward, payoff[steps.action_0, steps.action_1])
    last_actions = steps.groupby("episode")[["action_0", "action_1"]].shift(fill_value=-1)
    assert np.array_equal(steps[["agent 0 last_action", "agent 1 last_action"]], last_actions)


def test_equal_seeds_play_equal_episodes() -> None:
    env = qllm_exp.make_env("lbf")
    first, second, other = (qllm_exp.play(env, episodes=2, seed=seed) for seed in (3, 3, 4))
    assert first.equals(second) and not first.equals(other)
    assert {"agent 0 position x", "agent 0 level", "food 1 position y"} <= set(first)


# Credit-assignment functions


def test_stored_functions_are_loaded_by_task_and_by_file(folder: Path) -> None:
    bundled = qllm_exp.load_function("matrix/climbing")
    (path,) = qllm_exp.load_runs(folder, only="mixer=tfcaf").path
    assert qllm_exp.load_function(path / "tfcaf.json").program.hash == bundled.program.hash


def test_generate_returns_the_bundled_function_without_a_language_model() -> None:
    function = qllm_exp.generate(["env=matrix", "env.task=climbing"])
    assert function.program.hash == qllm_exp.load_function("matrix/climbing").program.hash
    with pytest.raises(UserError, match="has fixed functions for each task"):
        qllm_exp.generate(["env=matrix", "tfcaf.rounds=2"])


def test_a_verified_source_is_a_function_to_train_with(tmp_path: Path) -> None:
    env = qllm_exp.make_env("matrix")
    function = qllm_exp.verify(MEAN, env)
    function.save(tmp_path / "mean.json")
    assert qllm_exp.load_function(tmp_path / "mean.json") == function
    assert (qllm_exp.assign_credit(function, env, qllm_exp.play(env)) == 1).all(axis=None), "VDN"
    with pytest.raises(UserError, match=r"^refused \(static\): .*'import os'"):
        qllm_exp.verify("import os\n" + MEAN, env)
    with pytest.raises(UserError, match="igm='on' is unknown"):
        qllm_exp.verify(MEAN, env, igm="on")


def test_credit_is_the_gradient_of_q_tot() -> None:
    env = qllm_exp.make_env("lbf")
    function = qllm_exp.load_function("lbf/8x8-2p-2f-coop-2s")
    steps = qllm_exp.play(env)
    credit = qllm_exp.assign_credit(function, env, steps[steps.step > 10])
    assert list(credit) == ["agent 0", "agent 1"] and credit.index[0] == 11
    states = torch.tensor(steps.iloc[11:, -env.state_dim :].to_numpy(), dtype=torch.float32)
    q = torch.rand(len(states), 2, requires_grad=True)
    (2 * function.program(q, states)).sum().backward()
    assert np.allclose(credit, q.grad, atol=1e-5)
    assert np.array_equal(qllm_exp.assign_credit(function, env, states), credit)
    shuffled = steps[steps.step > 10].sample(frac=1, axis=1, random_state=0)
    assert qllm_exp.assign_credit(function, env, shuffled).equals(credit), "columns are read by name"


def test_credit_of_a_function_that_is_not_affine_depends_on_q() -> None:
    env = qllm_exp.make_env("matrix", "climbing")
    function = qllm_exp.load_function("matrix/climbing")
    state = env.reset().state
    equal, unequal = (qllm_exp.assign_credit(function, env, state, q=[q]).iloc[0] for q in ((0.0, 0.0), (1.0, 0.0)))
    assert not equal.equals(unequal)
    with pytest.raises(UserError, match=r"mixer\.igm=enforce needs"):
        qllm_exp.assign_credit(function, env, state, igm="enforce")
    with pytest.raises(UserError, match="The states have no column 'agent 0 last_action'"):
        qllm_exp.assign_credit(function, env, pandas.DataFrame({"reward": [1.0]}))


def test_the_figure_of_credit_shows_the_first_episode_with_rewards(tmp_path: Path) -> None:
    env = qllm_exp.make_env("matrix", "penalty-0")
    function = qllm_exp.load_function("matrix/penalty-0")
    figure = qllm_exp.plot_credit(function, env, seed=2, output=tmp_path / "credit.png")
    assert (tmp_path / "credit.png").read_bytes().startswith(b"\x89PNG")
    assert "episode 1 of seed 2" in figure.get_suptitle()
    rewards = [bar.get_height() for bar in figure.axes[1].patches]
    assert rewards == list(qllm_exp.play(env, seed=2).reward)
