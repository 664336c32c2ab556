"""Functions on another task than their own: said explicitly, same columns, verified again."""

from dataclasses import replace
from pathlib import Path

import pytest

from qllm_exp.config.compose import compose_run
from qllm_exp.config.schema import RunConfig
from qllm_exp.credit import stored_function
from qllm_exp.credit.program import Program
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.layout import StateField, StateLayout
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.transfer import differing_columns
from qllm_exp.sweep.prepare import check

OWN = "lbf/10x10-3p-3f-2s"


def configured(file: Path, task: str, *overrides: str, env: str = "lbf") -> RunConfig:
    return compose_run(
        [f"env={env}", f"env.task={task}", "mixer=tfcaf", f"mixer.file={file}", "device=cpu", *overrides]
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The bundled function of 10x10-3p-3f-2s."""
    path = tmp_path / "function.json"
    stored_function.load(stored_function.bundled_path("lbf", "10x10-3p-3f-2s")).save(path)
    return path


def test_a_function_is_used_on_a_larger_board_only_if_the_user_says_so(file: Path) -> None:
    with pytest.raises(
        UserError, match=rf"not for lbf/15x15-3p-3f-2s\. To use it there all the same, add mixer\.written_for={OWN}"
    ):
        check(configured(file, "15x15-3p-3f-2s"))
    checked = check(configured(file, "15x15-3p-3f-2s", f"mixer.written_for={OWN}"))
    assert checked.env.task == "15x15-3p-3f-2s"
    check(configured(file, "10x10-3p-3f-2s", f"mixer.written_for={OWN}"))  # one value for both tasks of a sweep
    by_name = check(configured(Path(OWN), "15x15-3p-3f-2s", f"mixer.written_for={OWN}"))
    assert by_name.env == checked.env, "by the name of the bundled function"
    with pytest.raises(UserError, match=rf"mixer\.written_for=lbf/8x8.*was written for {OWN}"):
        check(configured(file, "15x15-3p-3f-2s", "mixer.written_for=lbf/8x8-2p-2f-coop-2s"))


def test_the_message_names_the_columns_that_differ(file: Path) -> None:
    with pytest.raises(UserError) as raised:
        check(configured(file, "10x10-3p-4f-2s", f"mixer.written_for={OWN}"))
    assert "column 18: agent 0 last_action action there, food 3 position x here" in str(raised.value)
    assert "column 21: nothing there, agent 0 last_action action here" in str(raised.value)
    with pytest.raises(UserError, match=r"3 agents there, 2 here\n  column \d+: "):
        check(configured(file, "10x10-2p-4f-2s", f"mixer.written_for={OWN}"))
    with pytest.raises(UserError, match="is for 3 agents and a state of 21 columns"):
        check(configured(file, "10x10-3p-4f-2s"))  # not declared: what does not fit at all has no use for the option


def test_the_tensor_program_is_verified_on_the_states_of_the_new_task(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stored_function.load(file)
    data = original.program.to_json()
    # Divide by 12 - row of agent 0, which is 3 or more on a board of 10 x 10, and 0 on one of 15 x 15.
    first = 3 + len(data["constants"])
    data["operations"] = [
        ["slice.Tensor", [{"ref": 1}, 1, 0, 1], {}],
        ["rsub.Scalar", [{"ref": first}, 12.0], {}],
        ["sum.dim_IntList", [{"ref": 0}, [1], True], {}],
        ["div.Tensor", [{"ref": first + 2}, {"ref": first + 1}], {}],
    ]
    data["output"] = first + 3
    divided: StoredFunction = replace(
        original, program=Program(data), source="def credit_assignment(q, s): ...", request={}, key="", prompt_hash=""
    )
    divided.save(tmp_path / "divided.json")
    with pytest.raises(
        UserError, match=rf"The function of {OWN} does not pass the verification on lbf/15x15-3p-3f-2s: "
    ):
        check(configured(tmp_path / "divided.json", "15x15-3p-3f-2s", f"mixer.written_for={OWN}"))


def test_the_option_needs_a_file() -> None:
    run = compose_run(["env=lbf", "mixer=tfcaf", f"mixer.written_for={OWN}"])
    with pytest.raises(UserError, match=r"mixer\.written_for=.* needs mixer\.file"):
        provide.locate(run)


def test_a_transfer_changes_no_name_of_a_run(file: Path) -> None:
    from qllm_exp.config.load import identity

    run = configured(file, "10x10-3p-3f-2s")
    assert isinstance(run.mixer.written_for, str)  # type: ignore[attr-defined]  # of its Config
    explicit = configured(file, "10x10-3p-3f-2s", f"mixer.written_for={OWN}")
    assert identity(run, "hash") == identity(explicit, "hash")


def layout(**changes: object) -> StateLayout:
    field = StateField("agent", 0, "position", ("x", "y"), 0.0, 9.0, "cells", {-1.0: "absent"})
    return StateLayout.from_fields([replace(field, **changes)])  # type: ignore[arg-type]


def test_columns_differ_by_name_and_meaning_but_not_by_their_ranges() -> None:
    assert differing_columns(layout(), layout(high=14.0)) == []
    assert differing_columns(layout(), layout(unit="metres")) == [
        f"column {number}: agent 0 position {axis} (cells, -1: absent) there, agent 0 position {axis} (metres, -1: absent) here"
        for number, axis in enumerate("xy")
    ]
    assert len(differing_columns(layout(), layout(special={}))) == 2
    assert len(differing_columns(layout(), layout(one_hot=True))) == 2
    assert differing_columns(layout(), layout(components=("x",))) == [
        "column 1: agent 0 position y there, nothing here"
    ]
