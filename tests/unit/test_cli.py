"""Ranges, combinations, and the errors of a mistyped command line."""

import pytest

from qllm_exp.config.overrides import arrange, combinations, expand_ranges, grids
from qllm_exp.errors import UserError


@pytest.mark.parametrize(
    ("given", "expanded"),
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
    ],
)
def test_ranges_of_whole_numbers_are_expanded_and_nothing_else(given, expanded):
    assert expand_ranges(given) == expanded


def test_a_backward_range_is_refused_with_what_to_type():
    with pytest.raises(UserError, match="seed=2-5"):
        expand_ranges("seed=5-2")


def test_the_switch_for_several_runs_may_stand_anywhere():
    assert arrange(["env=lbf", "-m", "seed=0,1"]) == ["-m", "env=lbf", "seed=0,1"]
    assert arrange(["env=lbf", "seed=0"]) == ["env=lbf", "seed=0"]


def test_options_of_the_simulator_need_no_plus():
    assert arrange(["env=mpe", "env.options.n_agents=5"]) == ["env=mpe", "++env.options.n_agents=5"]


def test_an_option_of_a_choice_that_is_swept_is_a_list_of_one():
    typed = ["-m", "algorithm=lica,riit", "algorithm.evaluation=greedy", "train.gamma=0.9", "algorithm.entropy=0.1,0.2"]
    arranged = arrange(typed)
    assert arranged == [*typed[:2], "algorithm.evaluation=choice(greedy)", *typed[3:]]
    assert (
        "algorithm=riit",
        "algorithm.evaluation=greedy",
        "train.gamma=0.9",
        "algorithm.entropy=0.2",
    ) in combinations(arranged[1:])
    for alone in (typed[1:], ["-m", "algorithm=lica", "algorithm.evaluation=greedy", "seed=0,1"]):
        assert arrange(alone) == alone
    narrowed = grids(arrange(["-m", "env=mpe,lbf", "env.task=spread"])[1:], {}, [{"env": "lbf", "env.task": "spread"}])
    assert [combinations(grid) for grid in narrowed] == [[("env=lbf", "env.task=spread")]]


def test_combinations_are_the_product_of_all_lists():
    got = combinations(["env=lbf,mpe", "mixer=tfcaf", "seed=0-2"])
    assert len(got) == 6 and ("env=mpe", "mixer=tfcaf", "seed=2") in got and len(set(got)) == 6


CASES = [
    {"env": "lbf", "env.task": ["small", "large"], "algorithm": "q_learning", "mixer": ["tfcaf", "qmix"]},
    {"env": "lbf", "env.task": ["small"], "algorithm": ["coma", "ippo"], "mixer": "none"},
    {"env": "mpe", "env.task": ["spread"], "algorithm": ["ippo", "riit"], "mixer": "qmix", "train.total_steps": 9},
]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], [0, 1, 2]),
        (["env=lbf"], [0, 1]),
        (["mixer=qmix"], [0, 2]),
        (["algorithm=ippo,q_learning"], [0, 1, 2]),
        (["algorithm=riit", "env.task=tag"], [2]),  # any task may be asked for, where the experiment lists them
        (["env.task=spread"], [2]),  # one that only some cases have leaves the others out
        (["env.task=small"], [0, 1]),
        (["env.task=large", "train.total_steps=9"], [0]),  # a number of steps leaves nothing out
    ],
)
def test_the_command_line_narrows_an_experiments_cases(typed, expected):
    found = grids([*typed, "train.gamma=0.9"], {"seed": [0, 1]}, CASES)
    assert len(found) == len(expected)
    asked = {key: value.split(",") for key, _, value in (one.partition("=") for one in typed)}
    for grid, index in zip(found, expected, strict=True):
        said = {key: value.split(",") for key, _, value in (one.partition("=") for one in grid)}
        assert said.pop("seed") == ["0", "1"] and said.pop("train.gamma") == ["0.9"]
        assert said.keys() == CASES[index].keys() | asked.keys()
        for key, values in said.items():
            case = CASES[index].get(key)
            known = case if isinstance(case, list) else [str(case)]
            free = key in asked and asked[key][0] in ("tag", "9")
            assert values == (asked[key] if free else [one for one in asked.get(key, known) if one in known])


def test_a_command_line_that_no_case_goes_with_is_refused():
    with pytest.raises(UserError, match=r"None of the experiment's cases goes with algorithm=maser\."):
        grids(["algorithm=maser"], {"seed": [0]}, CASES)
