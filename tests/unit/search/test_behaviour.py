"""Equal functions are recognised by what they compute on probe states, however they are written."""

import pytest
import torch

from qllm_exp.config.load import config_class
from qllm_exp.credit.program import Program
from qllm_exp.envs import make_env
from qllm_exp.generation.sandbox import export_all
from qllm_exp.search.behaviour import Behaviours, distance

BODIES = {
    "sum": "return agents_q.mean(dim=1, keepdim=True)",
    "also the sum": "return 0.25 * (2 * agents_q[:, :1] + agents_q[:, 1:] + agents_q[:, 1:])",
    "first": "return 0.75 * agents_q[:, :1] + 0.25 * agents_q[:, 1:]",
    "first by a tensor": "return agents_q @ torch.tensor([[0.75], [0.25]])",
    "nearly first": "return 0.7502 * agents_q[:, :1] + 0.2498 * agents_q[:, 1:]",
    "with a bias": "return 0.75 * agents_q[:, :1] + 0.25 * agents_q[:, 1:] + 0.01 * global_state[:, :1]",
    "muted": "return 0.75 * agents_q[:, :1] - 0.25 * agents_q[:, 1:]",
    "more muted": "return 0.75 * agents_q[:, :1] - 0.5 * agents_q[:, 1:]",
    "product": "return 0.1 * agents_q[:, :1] * agents_q[:, 1:]",
}


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    head = "import torch\n\ndef credit_assignment(agents_q, global_state):\n    "
    env = make_env(config_class("env", "lbf")(task="5x5-2p-1f"), 4, 0)
    exported = export_all(
        [head + body for body in BODIES.values()], 2, env.state_dim, 60, torch.zeros(4, env.state_dim)
    )
    return {name: function.program for name, function in zip(BODIES, exported, strict=True)}  # type: ignore[union-attr]


def behaviours(enforce: bool = True) -> Behaviours:
    return Behaviours(make_env(config_class("env", "lbf")(task="5x5-2p-1f"), 4, 0), enforce, 1e-4)


def test_functions_that_compute_the_same_are_equal_and_others_are_not(programs: dict[str, Program]) -> None:
    probe = behaviours()
    of = {name: probe.of(program, True) for name, program in programs.items() if name != "product"}
    assert probe.are_equal(of["sum"], of["also the sum"]) and probe.are_equal(of["sum"], probe.plain_sum())
    assert probe.are_equal(of["first"], of["first by a tensor"])
    for name in ("sum", "nearly first", "with a bias", "muted"):
        assert not probe.are_equal(of["first"], of[name]), name
    assert probe.are_equal(of["muted"], of["more muted"]), "the gate sets both weights to 0"
    free = behaviours(enforce=False)
    assert not free.are_equal(free.of(programs["muted"], True), free.of(programs["more muted"], True))


def test_the_distance_is_the_mean_difference_of_the_credit(programs: dict[str, Program]) -> None:
    probe = behaviours()
    first, bias = probe.of(programs["first"], True), probe.of(programs["with a bias"], True)
    assert distance(probe.plain_sum(), first) == pytest.approx(0.5) and distance(first, bias) == pytest.approx(
        0, abs=1e-6
    )


def test_the_fields_that_a_function_reads_are_those_that_change_what_it_computes(programs: dict[str, Program]) -> None:
    probe = behaviours()
    assert probe.fields_read(programs["first"], True) == []
    assert probe.fields_read(programs["with a bias"], True) == ["agent position"], "column 0"
    assert behaviours(enforce=False).fields_read(programs["product"], False) == []


def test_a_function_that_is_not_affine_is_compared_by_its_values_and_slopes(programs: dict[str, Program]) -> None:
    probe = behaviours(enforce=False)
    assert not probe.is_affine(programs["product"]) and probe.is_affine(programs["first"])
    product = probe.of(programs["product"], False)
    assert probe.are_equal(product, product) and not probe.are_equal(product, probe.plain_sum())


def test_probe_states_are_the_same_in_every_process(programs: dict[str, Program]) -> None:
    assert torch.equal(behaviours().of(programs["with a bias"], True), behaviours().of(programs["with a bias"], True))
