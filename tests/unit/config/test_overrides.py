"""Ranges, combinations, and errors for a mistyped command line."""

import pytest
from hydra import compose, initialize_config_dir

from qllm_exp.config.compose import compose_run
from qllm_exp.config.overrides import combinations, expand_ranges, grids, to_hydra_arguments
from qllm_exp.config.registry import CONF
from qllm_exp.errors import UserError


def hydra_composed(overrides):
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", overrides)


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("seed=0-4", "seed=0,1,2,3,4"),
        ("seed=0-2,7", "seed=0,1,2,7"),
        ("seed=7,0-1,1-2", "seed=7,0,1,2"),
        ("seed=3", "seed=3"),
        ("env=lbf,mpe", "env=lbf,mpe"),
        ("env.task=15x15-4p-3f", "env.task=15x15-4p-3f"),
        ("env.task=penalty-25", "env.task=penalty-25"),
        ("train.learning_rate=1e-4", "train.learning_rate=1e-4"),
        ("seed=-1", "seed=-1"),
        ("sweep.name=1-12", "sweep.name=1-12"),
        ("tracking.project=2026-11", "tracking.project=2026-11"),
        ("mixer.file=12-34", "mixer.file=12-34"),
        ("dir=2-1", "dir=2-1"),
    ],
)
def test_only_ranges_of_whole_numbers_are_expanded(argument, expanded):
    assert expand_ranges(argument) == expanded


def test_a_backward_range_is_rejected_with_what_to_type():
    with pytest.raises(UserError, match="seed=2-5"):
        expand_ranges("seed=5-2")


def test_the_multirun_switch_may_stand_anywhere():
    assert to_hydra_arguments(["env=lbf", "-m", "seed=0,1"]) == ["-m", "env=lbf", "seed=0,1"]
    assert to_hydra_arguments(["env=lbf", "seed=0"]) == ["env=lbf", "seed=0"]


def test_options_of_the_simulator_need_no_plus():
    assert to_hydra_arguments(["env=mpe", "env.options.n_agents=5"]) == ["env=mpe", "++env.options.n_agents=5"]
    for options in ("{N: 4}", "{N:4,local_ratio:0.5}"):
        assert compose_run(["env=pettingzoo", f"env.options={options}"]).env.options["N"] == 4


@pytest.mark.parametrize(
    "typed", [["--config-dir", "{0}", "-cd={1}"], ["hydra.searchpath=[file://{0}]", "--config-dir={1}"]]
)
def test_every_folder_of_the_users_own_counts(tmp_path, typed):
    for name in ("first", "second"):
        (tmp_path / name / "mixer").mkdir(parents=True)
        (tmp_path / name / f"mixer/{name}.yaml").write_text("name: vdn\n")
    folders = [argument.format(tmp_path / "first", tmp_path / "second") for argument in typed]
    for name in ("first", "second"):
        composed = hydra_composed(to_hydra_arguments([*folders, f"mixer={name}"]))
        assert composed.mixer == {"name": "vdn"}


def test_options_of_hydra_may_stand_anywhere_and_its_primary_file_is_found(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "second/mine.yaml").touch()
    folders = [f"--config-dir={tmp_path / name}" for name in ("first", "second")]
    path = f"hydra.searchpath=['file://{tmp_path / 'first'}','file://{tmp_path / 'second'}']"
    for typed in (["--config-name", "mine"], ["--config-name=mine"], ["-cn", "mine"]):
        arguments = to_hydra_arguments(["seed=1", *folders, *typed, "-m"])
        assert arguments == ["-m", *typed, folders[1], "seed=1", path]


def test_a_missing_folder_is_named_whichever_it_is(tmp_path):
    with pytest.raises(UserError, match="--config-dir /nowhere: this folder does not exist"):
        to_hydra_arguments(["--config-dir", str(tmp_path), "--config-dir", "/nowhere"])


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("mixer=null", "To have none, type mixer=none"),
        ("mixer=qmix,null", "To have none, type mixer=none"),
        ("~mixer", "To have none, type mixer=none"),
        ("tracking=null", "type tracking=local"),
        ("llm=", "type llm=bundled"),
        ("env=null", "Allowed: grf, lbf, "),
    ],
)
def test_a_group_without_a_choice_is_rejected(typed, hint):
    with pytest.raises(UserError, match=hint):
        to_hydra_arguments([typed])
    assert to_hydra_arguments(["experiment=null"]) == ["experiment=null"]


def test_an_option_of_a_swept_choice_becomes_a_list_of_one():
    typed = ["-m", "algorithm=lica,riit", "algorithm.evaluation=greedy", "train.gamma=0.9", "algorithm.entropy=0.1,0.2"]
    arguments = to_hydra_arguments(typed)
    assert arguments == [*typed[:2], "algorithm.evaluation=choice(greedy)", *typed[3:]]
    assert (
        "algorithm=riit",
        "algorithm.evaluation=greedy",
        "train.gamma=0.9",
        "algorithm.entropy=0.2",
    ) in combinations(arguments[1:])
    for unchanged in (typed[1:], ["-m", "algorithm=lica", "algorithm.evaluation=greedy", "seed=0,1"]):
        assert to_hydra_arguments(unchanged) == unchanged
    narrowed = grids(
        to_hydra_arguments(["-m", "env=mpe,lbf", "env.task=spread"])[1:], {}, [{"env": "lbf", "env.task": "spread"}]
    )
    assert [combinations(grid) for grid in narrowed] == [[("env=lbf", "env.task=spread")]]


def test_combinations_are_the_product_of_all_lists():
    result = combinations(["env=lbf,mpe", "mixer=tfcaf", "seed=0-2"])
    assert len(result) == 6 and ("env=mpe", "mixer=tfcaf", "seed=2") in result and len(set(result)) == 6


CASES = [
    {"env": "lbf", "env.task": ["small", "large"], "algorithm": "q_learning", "mixer": ["tfcaf", "qmix"]},
    {"env": "lbf", "env.task": ["small"], "algorithm": ["coma", "ippo"], "mixer": "none"},
    {"env": "mpe", "env.task": ["spread"], "algorithm": ["ippo", "riit"], "mixer": "qmix", "train.total_steps": 9},
]


def values_by_key(overrides):
    """Values of overrides such as 'seed=0,1'."""
    return {key: value.split(",") for key, _, value in (override.partition("=") for override in overrides)}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], [0, 1, 2]),
        (["env=lbf"], [0, 1]),
        (["mixer=qmix"], [0, 2]),
        (["algorithm=ippo,q_learning"], [0, 1, 2]),
        (["algorithm=riit", "env.task=tag"], [2]),  # a list of tasks may be replaced by any task
        (["env.task=spread"], [2]),  # a task that only some cases have leaves out the others
        (["env.task=small"], [0, 1]),
        (["env.task=large", "train.total_steps=9"], [0]),  # a single number is replaced, and leaves out no case
    ],
)
def test_the_command_line_narrows_an_experiments_cases(typed, expected):
    result = grids([*typed, "train.gamma=0.9"], {"seed": [0, 1]}, CASES)
    assert len(result) == len(expected)
    requested = values_by_key(typed)
    for grid, index in zip(result, expected, strict=True):
        axes = values_by_key(grid)
        assert axes.pop("seed") == ["0", "1"] and axes.pop("train.gamma") == ["0.9"]
        assert axes.keys() == CASES[index].keys() | requested.keys()
        for key, values in axes.items():
            case = CASES[index].get(key)
            case_values = case if isinstance(case, list) else [str(case)]
            if key in requested and requested[key][0] in ("tag", "9"):
                assert values == requested[key]
            else:
                assert values == [value for value in requested.get(key, case_values) if value in case_values]


@pytest.mark.parametrize(("typed", "samples"), [("1", "1"), ("0-1", "0-1"), ("7", "7"), ("", "0-2")])
def test_a_range_of_numbers_in_a_case_is_replaced_and_leaves_out_no_case(typed, samples):
    cases = [{"mixer": ["tfcaf"], "tfcaf.sample": "0-2"}, {"mixer": ["vdn", "qmix"]}]
    result = grids([f"tfcaf.sample={typed}"] if typed else [], {"seed": "0-4"}, cases)
    assert len(result) == 2
    axes = dict(override.split("=") for override in result[0])
    assert axes["tfcaf.sample"] == samples and axes["mixer"] == "tfcaf" and axes["seed"] == "0-4"


def test_null_in_a_preset_is_null():
    assert grids([], {"llm.temperature": [None, 0.5], "tfcaf.budget_usd": None}, [{}]) == [
        ["llm.temperature=null,0.5", "tfcaf.budget_usd=null"]
    ]


def test_a_command_line_that_matches_no_case_is_rejected():
    with pytest.raises(UserError, match=r"No case of the experiment matches algorithm=maser\."):
        grids(["algorithm=maser"], {"seed": [0]}, CASES)


def test_an_option_whose_value_may_be_left_out_is_last():
    assert to_hydra_arguments(["--info", "env=matrix", "--resolve"]) == ["--resolve", "env=matrix", "--info"]


@pytest.mark.parametrize("value", ["null", "pkg://nope"])
def test_a_search_path_is_a_list(value):
    with pytest.raises(UserError, match="write a list of folders or packages"):
        to_hydra_arguments([f"hydra.searchpath={value}"])


def test_text_of_a_users_own_choice_is_no_range(tmp_path, monkeypatch):
    (tmp_path / "own_env_with_a_label.py").write_text(
        "from dataclasses import dataclass\nfrom qllm_exp.config.schema import EnvConfig\n"
        "@dataclass\nclass Config(EnvConfig):\n    label: str = ''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["env=own_env_with_a_label", "env.label=2026-11"]
    assert [expand_ranges(argument, arguments) for argument in arguments] == arguments
