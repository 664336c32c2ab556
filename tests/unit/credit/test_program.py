"""Tensor programs: they return what their source returns, and invalid programs are refused."""

import copy
import json
import pickle

import pytest
import torch
from tfcaf_functions import ALL, GRF, LOOPED, MATRIX, SPREAD, VDN, Written

from qllm_exp.credit.program import Program
from qllm_exp.credit.refused import Refused
from qllm_exp.generation.tracing import trace

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
_TRACED: dict[str, Program] = {}


def program_of(written: Written) -> Program:
    """Traced in this process (the sources are this test's own), once each, and read back from its JSON text."""
    if written.name not in _TRACED:
        states = written.states(7)
        program = trace(written.source, states, written.n_agents).program(states)
        _TRACED[written.name] = Program.from_json(json.loads(json.dumps(program.to_json())))
    return _TRACED[written.name]


@pytest.mark.parametrize("written", ALL, ids=lambda written: written.name)
@pytest.mark.parametrize("batch", [1, 2, 7, 800])
@pytest.mark.parametrize("device", DEVICES)
def test_equals_its_source_in_values_and_gradients(written: Written, batch: int, device: str) -> None:
    program, function, states = program_of(written), written.function(), written.states(batch, seed=batch).to(device)
    q = 5 * torch.randn(batch, written.n_agents, generator=torch.Generator().manual_seed(batch)).to(device)
    outcomes = []
    for evaluate in (function, program):
        leaf = q.clone().requires_grad_()
        value = evaluate(leaf, states.clone())
        (value * torch.arange(1.0, batch + 1, device=device).unsqueeze(1)).sum().backward()
        outcomes.append((value.detach(), leaf.grad))
    (expected, expected_grad), (value, grad) = outcomes
    assert value.shape == (batch, 1) and value.isfinite().all()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_accepts_rows_that_do_not_lie_together_in_memory() -> None:
    program = program_of(SPREAD)
    states, q = SPREAD.states(10), torch.randn(10, 3)
    expected = program(q, states)
    torch.testing.assert_close(program(q.t().contiguous().t(), states.t().contiguous().t()), expected)


def test_leaves_inputs_alone_and_repeats_itself_also_where_the_source_assigns_in_place() -> None:
    program = program_of(LOOPED)
    states, q = LOOPED.states(6), torch.randn(6, 4)
    before = states.clone(), q.clone()
    first = program(q, states)
    assert torch.equal(program(q, states), first)
    assert torch.equal(states, before[0]) and torch.equal(q, before[1])


def test_first_call_in_inference_mode_leaves_training_possible() -> None:
    program = Program(program_of(GRF).to_json())
    q, states = torch.randn(4, 4), GRF.states(4)
    with torch.inference_mode():
        program(q, states)
    q.requires_grad_()
    program(q, states).sum().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0


def test_refuses_inputs_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"agents_q \[B, 3\].*got \[5, 4\]"):
        program_of(SPREAD)(torch.zeros(5, 4), torch.zeros(5, 18))
    with pytest.raises(ValueError, match=r"global_state \[B, 18\]"):
        program_of(SPREAD)(torch.zeros(5, 3), torch.zeros(4, 18))


def test_hash_copy_and_pickle_keep_the_program() -> None:
    program = program_of(SPREAD)
    assert Program.from_json(program.to_json()).hash == program.hash and len(program.hash) == 64
    assert pickle.loads(pickle.dumps(program)) == program == copy.deepcopy(program)
    assert program != program_of(VDN)


@pytest.mark.parametrize("written", ALL, ids=lambda written: written.name)
def test_tells_affine_from_not_affine(written: Written) -> None:
    assert program_of(written).is_affine(written.states(64)) is written.affine


@pytest.mark.parametrize("written", [written for written in ALL if written.affine], ids=lambda written: written.name)
def test_weights_and_bias_rebuild_an_affine_function(written: Written) -> None:
    states = written.states(50, seed=3)
    weights, bias = program_of(written).weights_and_bias(states)
    q = torch.randn(50, written.n_agents, requires_grad=True)
    value = written.function()(q, states)
    gradient = torch.autograd.grad(value.sum(), q)[0]  # of an affine function: its weights
    assert weights.shape == (50, written.n_agents) and bias.shape == (50, 1)
    torch.testing.assert_close(weights, gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value.detach(), (weights * q).sum(1, keepdim=True) + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "operations",
    [
        [["abs.default", [{"ref": 0}], {}]],
        [["clamp.default", [{"ref": 0}, -500, 500], {}]],
        [["mul.Tensor", [{"ref": 0}, {"ref": 0}], {}], ["mul.Tensor", [{"ref": 3}, 1e-3], {}],
         ["add.Tensor", [{"ref": 4}, {"ref": 0}], {}]],
        [["sqrt.default", [{"ref": 0}], {}]],
    ],
    ids=["kink at zero", "kink far away", "slightly curved", "nan for negative q"],
)  # fmt: skip
def test_finds_small_departures_from_affine(operations: list) -> None:
    assert small_program(operations, n_agents=1).is_affine(torch.zeros(32, 2)) is False


def test_affine_holds_beside_a_large_bias() -> None:
    weighted = [["mul.Tensor", [{"ref": 0}, 0.25], {}], ["add.Tensor", [{"ref": 3}, 1000.0], {}]]
    assert small_program(weighted, n_agents=1).is_affine(torch.zeros(32, 2)) is True


def small_program(operations: list, n_agents: int = 3, constants: list | None = None) -> Program:
    """A program whose result is its last operation."""
    last = 2 + len(constants or []) + len(operations)
    return Program(
        {
            "version": 1,
            "n_agents": n_agents,
            "state_dim": 2,
            "constants": constants or [],
            "operations": operations,
            "output": last,
        }
    )


MEAN = ["mean.dim", [{"ref": 0}, [1], True], {}]
GROWN = [["unsqueeze.default", [{"ref": 0}, 1], {}]]


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ([["system.default", [{"ref": 0}], {}]], "'system.default' is not allowed"),
        ([["rand_like.default", [{"ref": 0}], {}]], "'rand_like.default' is not allowed"),
        ([["as_strided.default", [{"ref": 0}, [10**6, 1], [1, 1]], {}]], "not allowed"),
        ([["set_.source_Tensor", [{"ref": 0}, {"ref": 1}], {}]], "not allowed"),
        ([["add.out", [{"ref": 0}, {"ref": 0}], {"out": None}]], "not allowed"),
        ([["mul.nothing", [{"ref": 0}, 2], {}]], "not allowed"),
        ([["__class__", [{"ref": 0}], {}]], "not allowed"),
        ([[["mul"], [{"ref": 0}, 2], {}]], "not allowed"),
        ([["mul.Tensor", [{"ref": 3}, 2], {}]], "reference must be an integer from 0 to 2, got 3"),
        ([["mul.Tensor", [{"ref": -1}, 2], {}]], "reference must be an integer"),
        ([["mul.Tensor", [{"ref": True}, 2], {}]], "reference must be an integer"),
        ([["mul.Tensor", [{"ref": 0, "dtype": "bool"}, 2], {}]], "not a ref, a dtype or a float"),
        ([["mul.Tensor", [{"call": "os.system"}, 2], {}]], "not a ref, a dtype or a float"),
        ([["mul.Tensor", [{}, 2], {}]], "not a ref, a dtype or a float"),
        ([["to.dtype", [{"ref": 0}, {"dtype": "complex64"}], {}]], "complex64"),
        ([["mul.Tensor", [{"ref": 0}, {"float": "1e9"}], {}]], "float '1e9'"),
        ([["mul.Tensor", [{"ref": 0}, 10**30], {}]], "does not fit 64 bits"),
        ([["mul.Tensor", [{"ref": 0}, [[[[[1]]]]]], {}]], "nested deeper"),
        ([["cat.default", [[{"ref": 0}] * 2000, 1], {}]], "longer than 1024"),
        ([["einsum.default", ["a" * 100, [{"ref": 0}]], {}]], "100 characters"),
        ([["zeros.default", [[1, 1]], {"device": "cuda:7"}]], "no keyword argument"),
        ([["zeros.default", [[1, 1]], {"dtype": {"ref": 0}}]], "reference must be"),
        ([["mul.Tensor", [{"ref": 0}], {}]], "failed:"),
        ([["mul.Tensor", "ab", {}]], "needs a list of arguments"),
        ([["mul.Tensor"]], "name, arguments, keyword arguments"),
        ([["zeros.default", [[10**12]], {}], MEAN], "more than 4096 elements per row"),
        ([["zeros.default", [[10**9, 10**9, 10**9]], {}], MEAN], "failed:"),
        ([["arange.default", [10**13], {}], MEAN], "more than 4096 elements"),
        ([["repeat.default", [{"ref": 0}, [1, 10**9]], {}], MEAN], "more than 4096 elements"),
        ([["constant_pad_nd.default", [{"ref": 0}, [0, 10**9]], {}], MEAN], "more than 4096 elements"),
        ([["int_mul", [{"ref": 2}, 10**6], {}], ["zeros.default", [[{"ref": 3}]], {}], MEAN], "more than 4096 elements"),
        ([["int_mul", [[1, 2], 10**12], {}], MEAN], "sizes must be integers"),
        ([["int_floordiv", [{"ref": 2}, 0], {}], MEAN], "failed:"),
        ([["mm.default", [{"ref": 0}, {"ref": 4}], {}]], "reference must be"),
        ([["t.default", [{"ref": 0}], {}], ["mm.default", [{"ref": 0}, {"ref": 3}], {}], MEAN], "faster than the batch"),
        ([["index.Tensor", [{"ref": 0}, [{"ref": 0}]], {}], MEAN], "failed:"),
        ([["gt.Scalar", [{"ref": 0}, 0], {}], ["index.Tensor", [{"ref": 0}, [{"ref": 3}]], {}], MEAN], "failed:"),
        ([["add_.Tensor", [{"ref": 0}, 1], {}], MEAN], "in place"),
        ([["select.int", [{"ref": 1}, 1, 0], {}], ["fill_.Scalar", [{"ref": 3}, 1], {}], MEAN], "in place"),
        ([["sum.dim_IntList", [{"ref": 0}, [1]], {}]], r"must be torch.float32 \[64, 1\], it is torch.float32 \[64\]"),
        ([["to.dtype", [{"ref": 0}, {"dtype": "float64"}], {}], ["mean.dim", [{"ref": 3}, [1], True], {}]], "float64"),
        ([["size", [{"ref": 0}, 1], {}]], "it is int"),
        ([["view.dtype", [{"ref": 0}, {"dtype": "int32"}], {}]], "must be torch.float32"),
        ([["squeeze.default", [{"ref": 0}], {}], MEAN, ["squeeze.default", [{"ref": 4}], {}]], r"it is torch.float32 \[64\]"),
        ([["mul.Tensor", [{"ref": 0}, 2], {}]] * 2001, "at most 2000"),
    ],
)  # fmt: skip
def test_refuses_operations_that_break_a_rule(operations: list, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        small_program(operations)
    assert refused.value.stage == "program"


@pytest.mark.parametrize(
    ("constant", "reason"),
    [
        ({"dtype": "float32", "shape": [2], "data": [1.0]}, "has 1 elements"),
        ({"dtype": "float32", "shape": [10**9], "data": []}, "from 0 to 16384"),
        ({"dtype": "float16", "shape": [], "data": [1.0]}, "float16"),
        ({"dtype": "float32", "shape": [1], "data": ["x"]}, "not a number"),
        ({"dtype": "int64", "shape": [1], "data": [0.5]}, "int64 constant contains 0.5"),
        ({"dtype": "bool", "shape": [1], "data": [2]}, "bool constant contains 2"),
        ({"dtype": "float32", "shape": [1]}, "exactly the keys"),
        ({"dtype": "float32", "shape": [20_000], "data": [0.0] * 20_000}, "from 0 to 16384"),
        ({"dtype": "float32", "shape": [2, 8200], "data": [0.0] * 16_400}, "more than 16384 elements"),
    ],
)
def test_refuses_constants_that_break_a_rule(constant: dict, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        small_program([MEAN], constants=[constant])


def test_a_constant_may_not_change_from_call_to_call() -> None:
    constant = {"dtype": "float32", "shape": [], "data": [1.0]}
    with pytest.raises(Refused, match="in place"):
        small_program([["add_.Tensor", [{"ref": 3}, 1], {}], MEAN], constants=[constant])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2 is unknown"),
        ({"extra": 1}, "exactly the keys"),
        ({"output": 99}, "output must be an integer"),
        ({"n_agents": 0}, "n_agents must be"),
        ({"n_agents": 3.0}, "n_agents must be"),
        ({"state_dim": "18"}, "state_dim must be"),
        ({"operations": {}}, "operations must be a list"),
        ({"constants": None}, "constants must be a list"),
        ({"output": float("nan")}, "not plain JSON"),
        ({"n_agents": 4}, "failed:"),
    ],
)
def test_refuses_changed_headers(change: dict, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        Program({**program_of(SPREAD).to_json(), **change})


@pytest.mark.parametrize("data", [None, [], "x", 3, {}, object()])
def test_refuses_what_is_not_a_program(data: object) -> None:
    with pytest.raises(Refused):
        Program(data)


def test_an_equal_program_is_not_checked_again_and_a_refused_one_stays_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sizes = program_of(SPREAD).to_json(), Program._sizes
    checked: list[int] = []
    monkeypatch.setattr(Program, "_sizes", lambda self, batch: (checked.append(batch), sizes(self, batch))[1])
    assert Program.from_json(data) == program_of(SPREAD) and not checked
    for _ in range(2):
        with pytest.raises(Refused, match="more than 4096 elements per row"):
            small_program([["zeros.default", [[10**12]], {}], MEAN])
    assert len(checked) == 4


@pytest.mark.parametrize(
    ("operations", "checked_again"),
    [
        ([["expand.default", [{"ref": 3}, [{"ref": 2}, 3]], {}], ["mean.dim", [{"ref": 4}, [1], True], {}]], []),
        ([["slice.Tensor", [{"ref": 0}, 0, 0, {"ref": 2}, 1], {}], ["mean.dim", [{"ref": 4}, [1], True], {}]], [9, 2000]),
        ([["size", [{"ref": 0}, 0], {}], ["expand.default", [{"ref": 3}, [{"ref": 4}, 3]], {}],
          ["mean.dim", [{"ref": 5}, [1], True], {}]], [9, 2000]),
    ],
    ids=["as a dimension", "as a bound", "read from a tensor"],
)  # fmt: skip
def test_only_a_program_that_calculates_with_sizes_is_checked_for_every_batch_size(
    operations: list, checked_again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = [{"dtype": "float32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]
    program, sizes = small_program(operations, constants=constants), Program._sizes
    checked: list[int] = []
    monkeypatch.setattr(Program, "_sizes", lambda self, batch: (checked.append(batch), sizes(self, batch))[1])
    for batch in (9, 2000, 5000):
        assert program(torch.zeros(batch, 3), torch.zeros(batch, 2)).shape == (batch, 1)
    assert checked == [*checked_again, 5000], "a batch that is larger than those that were checked at first, always"


def test_a_changed_number_changes_the_hash() -> None:
    data = program_of(MATRIX).to_json()
    text = json.dumps(data)
    assert text.count("0.05") == 1
    assert Program(json.loads(text.replace("0.05", "0.06"))).hash != program_of(MATRIX).hash


def test_non_finite_numbers_survive_the_json() -> None:
    constants = [{"dtype": "float32", "shape": [3], "data": [{"float": "inf"}, {"float": "-inf"}, 2.5]}]
    program = small_program([["add.Tensor", [{"ref": 0}, {"ref": 3}], {}], ["sum.dim_IntList", [{"ref": 4}, [1], True], {}],
                             ["nan_to_num.default", [{"ref": 5}, 7.0], {}]], constants=constants)  # fmt: skip
    restored = Program(json.loads(json.dumps(program.to_json())))
    assert restored(torch.zeros(2, 3), torch.zeros(2, 2)).tolist() == [[7.0], [7.0]]
