"""The search with a scripted model: what is asked, trained, logged and stored, and that nothing is paid for twice."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from searches import Launcher, Model, Searches, answer, searches, share_of, shares, source

from qllm_exp.config.compose import compose_run
from qllm_exp.credit import stored_function
from qllm_exp.credit.program import Program
from qllm_exp.errors import UserError
from qllm_exp.generation import provide
from qllm_exp.generation.verify import Accepted
from qllm_exp.llm import CallFailed, Reply, Request
from qllm_exp.runs.run_directory import RunDirectory
from qllm_exp.runs.sweep_directory import run_folders
from qllm_exp.search import procedure, trainings
from qllm_exp.search.archive import Archive
from qllm_exp.search.reflection import Reflection
from qllm_exp.search.search_directory import SearchDirectory
from qllm_exp.utils.files import strict_json

__all__ = ["searches"]  # a fixture


def test_the_best_return_is_stored_under_the_key_with_all_that_the_search_cost(searches: Searches) -> None:
    launcher = Launcher()
    directory = searches.run(launcher=launcher)
    run = searches.config()
    function = stored_function.load(provide.locate(run).path)
    assert function.source == source(0.72), "candidate 3 of generation 3 gives agent 0 the largest share"
    assert function.key == provide.key_for(run) and function.request["procedure"]["search.method"] == "evolve"
    assert [row["call"] for row in function.transcript] == [
        f"generation-{g}-candidate-{k}" for g in (1, 2, 3) for k in (1, 2, 3)
    ]
    # Per generation 3 candidates in stage 1, 2 of them with 2 seeds in stage 2; the baselines once per stage and seed.
    trainings = 3 * (3 + 2 * 2) + 2 * (1 + 2)
    assert len(launcher.started) == len(set(launcher.started)) == trainings == len(directory.of_kind("training"))
    steps = 3 * (3 * 100 + 4 * 200) + 2 * (100 + 2 * 200)
    assert function.cost == {
        **{"calls": 9, "tokens_in": 900, "tokens_out": 90, "usd": pytest.approx(0.09)},
        **{"trainings": trainings, "env_steps": steps, "core_hours": pytest.approx(trainings * 0.01)},
    }
    assert "chosen: generation-3-candidate-3, improved from" in function.verdict
    assert "best return 0.648 after 200 steps (vdn 0.450, qmix 0.450), mean of 2 seeds" in function.verdict


def test_successive_halving_trains_the_better_part_longer(searches: Searches) -> None:
    directory = searches.run("tfcaf.search.generations=1", "tfcaf.search.kept=0.3")
    keys = {row["name"][-1]: row["key"] for row in directory.of_kind("candidate")}
    late = {row["function"] for row in directory.of_kind("training", stage=1)}
    assert late == {keys["3"], "vdn", "qmix"}
    assert {row["function"] for row in directory.of_kind("training", stage=0)} == {*keys.values(), "vdn", "qmix"}


def test_runs_of_a_search_are_marked_have_seeds_of_their_own_and_are_in_no_table(searches: Searches) -> None:
    directory = searches.run("tfcaf.search.generations=1", "tfcaf.sample=2")
    configs = [directory.run(row["run"]).read_config() for row in directory.of_kind("training")]
    assert {config.seed for config in configs} == {1_002_000, 1_002_001}
    key = provide.key_for(searches.config("tfcaf.search.generations=1", "tfcaf.sample=2"))
    assert {config.sweep.search for config in configs} == {key}
    with pytest.raises(UserError, match="holds no runs and no sweeps"):
        run_folders(directory.path.parent)
    assert len(run_folders(directory.runs)) == len(configs), "a folder that is named is read"


def test_a_search_is_found_again_without_a_call_or_a_training(searches: Searches) -> None:
    searches.run("tfcaf.search.generations=1")
    model, launcher = Model(), Launcher()
    searches.run("tfcaf.search.generations=1", model=model, launcher=launcher)
    assert not model.calls and not launcher.started


class Killed(BaseException):
    """The process ends here."""


class Step:
    """Counts the steps of a search at which a process can be killed, and ends it at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.number = at, 0

    def __call__(self) -> None:
        self.number += 1
        if self.number == self.at:
            raise Killed


KILLED_OPTIONS = [
    "tfcaf.search.generations=2",
    "tfcaf.candidates=2",
    "tfcaf.search.tune=gradient",
    "tfcaf.search.seeds=[1,1]",
    "tfcaf.search.reflection.baselines=false",
]


@dataclass
class Undisturbed:
    """A search that was not killed, and what a kill at each of its steps would have left behind.

    Attributes:
        folder: its cache and runs.
        log: its log.
        copies: copies of the folder before each step, and the names of the runs that were started until then.
    """

    folder: Path
    log: str
    copies: list[tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The steps: each line of the log, each end of a run and each batch of answers, before it is on the disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model, launcher = Model(), Launcher()
    append, end = SearchDirectory.append, Launcher.end
    copies: list[tuple[Path, list[str]]] = []

    def copy_folder() -> None:
        left = tmp_path_factory.mktemp("killed") / "left"
        shutil.copytree(
            folder, left, ignore=shutil.ignore_patterns("*.claim.*")
        )  # the claim of an ended process is void
        copies.append((left, list(launcher.started)))

    def copied_append(self: SearchDirectory, rows: Any) -> None:
        copy_folder()
        append(self, rows)

    def copied_end(self: Launcher, directory: RunDirectory) -> None:
        copy_folder()
        end(self, directory)

    def copied_answer(request: Request) -> str:
        if model.calls[-1] == request.name:  # after the other answers of the batch
            copy_folder()
        return shares(request)

    model.script = copied_answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SearchDirectory, "append", copied_append)
        patch.setattr(Launcher, "end", copied_end)
        directory = Searches(folder, patch).run(*KILLED_OPTIONS, model=model, launcher=launcher)
    return Undisturbed(folder, directory.log.read_text(), copies)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_a_search_killed_at_any_step_ends_with_the_same_log(
    undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    assert len(undisturbed.copies) > 20
    for left, started in undisturbed.copies[part::4]:
        shutil.rmtree(undisturbed.folder)
        shutil.copytree(left, undisturbed.folder)
        launcher = Launcher()
        directory = Searches(undisturbed.folder, monkeypatch).run(*KILLED_OPTIONS, launcher=launcher)
        assert directory.log.read_text() == undisturbed.log, left
        assert len({*started} & {*launcher.started}) <= 1, "only the run that was in progress starts again"


def test_no_call_is_paid_twice_after_a_kill(searches: Searches, monkeypatch: pytest.MonkeyPatch) -> None:
    step, append = Step(2), SearchDirectory.append  # the first generation is logged, trained, and the second is asked

    def killed_append(self: SearchDirectory, rows: Any) -> None:
        if rows[0]["kind"] == "call":
            step()
        append(self, rows)

    monkeypatch.setattr(SearchDirectory, "append", killed_append)
    model = Model()
    options = ["tfcaf.search.generations=3", "tfcaf.search.seeds=[1,1]"]
    with pytest.raises(Killed):
        searches.run(*options, model=model)
    first_calls = list(model.calls)
    searches.run(*options, model=model)
    assert len(first_calls) == 6 and len(model.calls) == len(set(model.calls)) == 9


def test_a_torn_line_of_the_log_is_dropped(searches: Searches) -> None:
    directory = searches.run("tfcaf.search.generations=1")
    expected = directory.log.read_bytes()
    directory.log.write_bytes(expected[:-20])
    provide.locate(searches.config("tfcaf.search.generations=1")).path.unlink()
    model, launcher = Model(), Launcher()
    again = searches.run("tfcaf.search.generations=1", model=model, launcher=launcher)
    assert again.log.read_bytes() == expected and not launcher.started and not model.calls


def test_a_function_that_computes_the_same_is_refused_before_it_is_trained_and_the_coder_is_told(
    searches: Searches,
) -> None:
    head = "import torch\n\ndef credit_assignment(agents_q, global_state):\n"
    same = f"{head}    return agents_q @ torch.tensor([[0.65], [0.35]])\n"

    def script(request: Request) -> str:
        if request.name == "generation-1-candidate-2":
            return answer(source(0.65))
        if request.name == "generation-1-candidate-3":
            return answer(same)
        return answer(source(0.5)) if request.name == "generation-1-candidate-3-attempt-2" else answer(source(0.8))

    model, launcher = Model(script), Launcher()
    directory = searches.run("tfcaf.search.generations=1", model=model, launcher=launcher)
    repair = model.requests["generation-1-candidate-3-attempt-2"].messages[-1]["content"]
    assert (
        "it computes the same as another function of this generation: Q_tot and the credit of every agent agree"
        in repair
    )
    refused = next(row for row in directory.of_kind("candidate") if row["name"] == "generation-1-candidate-3")
    assert refused["key"] == "" and "the sum of the individual values (VDN)" in refused["reason"]
    assert len({row["function"] for row in directory.of_kind("training")}) == 2 + 2


def test_best_of_asks_the_first_question_every_time(searches: Searches) -> None:
    model = Model()
    directory = searches.run("tfcaf.search.method=best_of", model=model)
    assert all(
        request.messages == model.requests["generation-1-candidate-1"].messages for request in model.requests.values()
    )
    assert not any(row["parents"] for row in directory.of_kind("candidate"))


def test_evolve_shows_earlier_functions_of_the_island_in_a_fresh_conversation(searches: Searches) -> None:
    model = Model()
    directory = searches.run("tfcaf.search.migration=0", model=model)
    by_key = {row["key"]: row for row in directory.of_kind("candidate")}
    for row in directory.of_kind("candidate"):
        assert bool(row["parents"]) == (row["generation"] > 1)
        assert all(
            by_key[key]["island"] == row["island"] and by_key[key]["generation"] < row["generation"]
            for key in row["parents"]
        )
        messages = model.requests[row["name"]].messages
        assert [message["role"] for message in messages] == ["system", "user"]
        assert all(directory.function(key).source.strip() in messages[1]["content"] for key in row["parents"])


def test_equal_answers_give_equal_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["tfcaf.search.generations=2", "tfcaf.search.migration=1"]
    logs = [Searches(tmp_path / name, monkeypatch).run(*options).log.read_text() for name in "ab"]
    assert logs[0] == logs[1]


def test_a_diverged_training_counts_as_the_worst_and_is_told(searches: Searches) -> None:
    model = Model()
    launcher = Launcher(lambda directory: None if abs(share_of(directory) - 0.66) < 1e-4 else share_of(directory))
    directory = searches.run(
        "tfcaf.search.generations=2", "tfcaf.search.parents=3", "tfcaf.search.islands=1", model=model, launcher=launcher
    )
    (row,) = [row for row in directory.of_kind("training") if row["return"] is None]
    assert row["stage"] == 0 and row["curve"] == []
    assert "1 of 1 training diverged" in model.requests["generation-2-candidate-1"].messages[1]["content"]


def test_constants_are_tuned_into_a_function_of_its_own_with_its_parent(searches: Searches) -> None:
    directory = searches.run("tfcaf.search.generations=1", "tfcaf.search.tune=gradient")
    (row,) = directory.of_kind("candidate", tuned=True)
    tuned, parent = directory.function(row["key"]), directory.function(row["parents"][0])
    assert tuned.source == parent.source == source(0.66) and tuned.provenance["parent"] == parent.key
    before, after = (function.program.with_literals_as_constants(0.0).constants for function in (parent, tuned))
    ratios = [float(after[number] / before[number]) for number in before]
    assert ratios == pytest.approx([1.10517, 1.0], rel=1e-4), (
        "theta = 0.1 and 0, and c = c_0 exp(theta) with the gate on"
    )
    assert [entry["stage"] for entry in directory.of_kind("training", function=tuned.key)] == [1, 1]
    stored = stored_function.load(
        provide.locate(searches.config("tfcaf.search.generations=1", "tfcaf.search.tune=gradient")).path
    )
    assert stored.program == tuned.program and "0.66 is 0.7294" in stored.verdict


@pytest.mark.parametrize(
    ("overrides", "script", "value", "message"),
    [
        (
            ["tfcaf.budget_usd=0.02"],
            shares,
            share_of,
            r"stops before it could exceed tfcaf\.budget_usd=0\.02: 0\.0000 USD is spent",
        ),
        (
            [],
            shares,
            lambda directory: 0.0,
            r"has received any reward, neither with a candidate nor with the plain sum \(VDN\) or QMIX, so that",
        ),
        (
            ["tfcaf.search.reflection.baselines=false"],
            shares,
            lambda directory: 0.0,
            r"No training of 100 environment steps on lbf/5x5-2p-1f has received any reward, so that .* another search",
        ),
        (
            [],
            shares,
            lambda directory: None,
            r"All trainings of 100 environment steps on lbf/5x5-2p-1f diverged\. Lower train\.learning_rate\.",
        ),
        (
            ["tfcaf.search.generations=1"],
            shares,
            lambda directory: None if directory.tfcaf.exists() else 0.5,
            r"All functions of the search diverged in training\. Lower train\.learning_rate, or raise tfcaf\.search\.generations",
        ),
        ([], shares, lambda directory: 1.0, r"All 5 functions have the return 0\.900 after 100 environment steps"),
        (
            [],
            lambda request: answer(source(0.8)),
            share_of,
            "All 3 candidates of the first generation compute the same function",
        ),
        ([], lambda request: "no code", share_of, "No credit-assignment function was accepted"),
        (["tfcaf.search.steps=[200,100]"], shares, share_of, r"tfcaf\.search\.steps=\[200, 100\] is not allowed"),
        (["tfcaf.search.seeds=[1]"], shares, share_of, r"tfcaf\.search\.seeds=\[1\] is not allowed"),
    ],
)
def test_bad_input_is_one_error_that_says_what_to_change(
    searches: Searches, overrides: list[str], script: Any, value: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        searches.run(*overrides, model=Model(script), launcher=Launcher(value))


def test_a_function_that_diverged_is_not_trained_further_and_is_not_the_result(searches: Searches) -> None:
    """Candidate 1 diverges in the first stage, candidate 3 in the last one."""
    launcher = Launcher()

    def value(directory: RunDirectory) -> float | None:
        share, steps = share_of(directory), launcher.configs[directory.path].train.total_steps
        return None if abs(share - 0.64) < 1e-4 or (steps == 200 and abs(share - 0.66) < 1e-4) else share

    launcher.value = value
    directory = searches.run("tfcaf.search.generations=1", "tfcaf.search.kept=1", launcher=launcher)
    keys = {row["name"][-1]: row["key"] for row in directory.of_kind("candidate")}
    assert {row["function"] for row in directory.of_kind("training", stage=0)} == {*keys.values(), "vdn", "qmix"}
    assert {row["function"] for row in directory.of_kind("training", stage=1)} == {keys["2"], keys["3"], "vdn", "qmix"}
    function = stored_function.load(
        provide.locate(searches.config("tfcaf.search.generations=1", "tfcaf.search.kept=1")).path
    )
    assert function.source == source(0.65)


def test_candidates_are_trained_as_written_and_one_search_serves_runs_with_trained_constants(
    searches: Searches,
) -> None:
    options = ["tfcaf.search.generations=1", "mixer.trainable_constants=true"]
    assert provide.key_for(searches.config(*options)) == provide.key_for(searches.config(options[0]))
    launcher = Launcher()
    searches.run(*options, launcher=launcher)
    assert launcher.configs
    assert not any(getattr(config.mixer, "trainable_constants", False) for config in launcher.configs.values())


class LongRollouts(Launcher):
    """Each rollout passes two points of the curve, which have one evaluation."""

    def end(self, directory: RunDirectory) -> None:
        super().end(directory)
        rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
        later = [row for row in rows if row["kind"] == "evaluation" and row["env_step"]][1::2]
        for row in rows:
            if row["kind"] == "evaluation" and row["env_step"]:
                same = next(other for other in later if other["env_step"] >= row["env_step"])
                row |= {"env_step_exact": same["env_step"], "return_mean": same["return_mean"]}
        directory.metrics.write_text("".join(strict_json(row) + "\n" for row in rows))


def test_an_evaluation_that_several_points_share_counts_once_and_the_coder_is_told(searches: Searches) -> None:
    model = Model()
    directory = searches.run("tfcaf.search.generations=2", model=model, launcher=LongRollouts())
    row = directory.of_kind("training")[0]
    assert len(row["curve"]) == 10 and row["evaluations"] == 5
    assert row["return"] == pytest.approx(0.64 * (0.6 + 0.8 + 1.0) / 3)
    assert (
        "neighbours can be one evaluation: 5 are different"
        in model.requests["generation-2-candidate-1"].messages[1]["content"]
    )


class Outage(Model):
    """Does not answer while it is out."""

    out = False

    def ask(self, requests: Sequence[Request]) -> list[Reply | CallFailed]:
        return [CallFailed("the server is down.") for _ in requests] if self.out else super().ask(requests)


def test_a_generation_without_any_answer_is_requested_again_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches, model = Searches(tmp_path / "a b", monkeypatch), Outage()
    train = trainings.Trainings.train

    def train_and_go_out(self: trainings.Trainings, functions: Sequence[str], stage: int) -> None:
        train(self, functions, stage)
        model.out = True

    with monkeypatch.context() as patch:
        patch.setattr(trainings.Trainings, "train", train_and_go_out)
        with pytest.raises(UserError, match=r"No request of generation 2 was answered: .*the server is down") as error:
            searches.run("tfcaf.search.generations=2", model=model)
    path = procedure.search_path(searches.config("tfcaf.search.generations=2"))
    assert str(error.value).endswith(f"search --resume '{path}'")
    model.out = False
    directory = searches.run("tfcaf.search.generations=2", model=model)
    assert all(row["key"] for row in directory.of_kind("candidate")) and len(model.calls) == len(set(model.calls)) == 6


@pytest.mark.parametrize(
    ("option", "is_told"),
    [
        ("tfcaf.search.parents=1", True),
        ("tfcaf.search.method=best_of", False),
        ("tfcaf.search.reflection.returns=false", False),
    ],
)
def test_a_return_is_in_no_message_to_the_coder_where_requests_have_none(
    searches: Searches, option: str, is_told: bool
) -> None:
    def script(request: Request) -> str:
        repeats = request.name == "generation-2-candidate-1"
        return answer(source(0.64)) if repeats else shares(request)

    model = Model(script)
    directory = searches.run("tfcaf.search.generations=2", option, model=model)
    refusal = model.requests["generation-2-candidate-1-attempt-2"].messages[-1]["content"]
    assert "it computes the same as an earlier function" in refusal
    assert ("whose return is 0.576 after 100 steps" in refusal) == is_told
    texts = [message["content"] for request in model.requests.values() for message in request.messages[1:]]
    assert any("return of the search so far is" in text for text in texts) == is_told
    assert bool(directory.of_kind("training", function="qmix")) == ("reflection.returns" not in option)


def test_candidate_10_does_not_stand_for_candidate_1(searches: Searches) -> None:
    """Candidate 1 has no code, and candidates 3 to 10 repeat candidate 2: the generation has not only one function."""
    model = Model(lambda request: "no code" if "candidate-1-" in f"{request.name}-" else answer(source(0.8)))
    directory = searches.run("tfcaf.search.generations=1", "tfcaf.candidates=10", "tfcaf.retries=0", model=model)
    assert [row["name"][-1] for row in directory.of_kind("candidate") if row["key"]] == ["2"]


def test_a_function_whose_constants_no_gradient_reaches_is_not_tuned(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def larger_one(source: str, env: Any) -> Program:
        operations = [
            ["slice.Tensor", [{"ref": 0}, 1, 0, 1], {}],
            ["slice.Tensor", [{"ref": 0}, 1, 1, 2], {}],
            ["sub.Tensor", [{"ref": 3}, float(re.findall(r"\d+\.\d+", source)[0])], {}],
            ["gt.Scalar", [{"ref": 5}, 0.0], {}],
            ["where.self", [{"ref": 6}, {"ref": 3}, {"ref": 4}], {}],
        ]
        sizes = {"n_agents": 2, "state_dim": env.state_dim}
        return Program({"version": 1, **sizes, "constants": [], "operations": operations, "output": 7})

    def accept(sources: Sequence[str], env: Any, enforce: bool) -> list[Accepted]:
        return [Accepted(text, "credit_assignment", larger_one(text, env), False, ()) for text in sources]

    monkeypatch.setattr(procedure, "verify_all", accept)
    options = [
        "tfcaf.search.generations=1",
        "tfcaf.search.tune=gradient",
        "mixer.igm=relax",
        "tfcaf.search.tolerance=0",
    ]
    directory = searches.run(*options)
    (row,) = directory.of_kind("candidate", tuned=True)
    assert row["key"] == "" and "cannot be differentiated" in row["reason"]


def test_wrong_options_of_a_search_are_found_before_any_call(searches: Searches) -> None:
    with pytest.raises(UserError, match=r"tfcaf\.search\.steps=\[200, 100\] is not allowed"):
        provide.check_backend(searches.config("tfcaf.search.steps=[200,100]"))
    provide.check_backend(searches.config("tfcaf.search.steps=[200,100]", "tfcaf.search.method=none"))


def test_a_run_that_needs_a_search_names_the_command(searches: Searches) -> None:
    with pytest.raises(UserError, match=r"python -m qllm_exp\.tfcaf search env=lbf env\.task=5x5-2p-1f"):
        provide.provide(searches.config())


def test_the_key_of_a_search_depends_on_what_it_trains_and_that_of_a_generation_does_not(searches: Searches) -> None:
    run = searches.config()
    other = replace(run, train=replace(run.train, gamma=0.5))
    assert provide.key_for(run) != provide.key_for(other)
    assert provide.key_for(run) == provide.key_for(replace(run, seed=3, train=replace(run.train, total_steps=7)))
    none = [
        searches.config("tfcaf.search.method=none", option) for option in ("train.gamma=0.5", "tfcaf.search.kept=0.1")
    ]
    assert len({provide.key_for(config) for config in none}) == 1
    assert provide.request_for(none[0])["procedure"].keys() == {
        *(
            "candidates",
            "rounds",
            "evaluator",
            "selection",
            "error_feedback",
            "state_description",
            "retries",
            "memory",
            "sample",
        )
    }, "as before searches, so that functions keep their keys"


def test_the_sweep_of_the_guide_uses_the_function_of_its_search() -> None:
    guide = Path(__file__).parents[3] / "docs/pages/guide/credit-assignment-functions.md"
    text = re.sub(r"\\\n *", "", guide.read_text().partition("\n## Search\n")[2].partition("\n## ")[0])
    (search,) = re.findall(r"^qllm-exp tfcaf search (env=.+)$", text, re.MULTILINE)
    (sweep,) = re.findall(r"^qllm-exp -m (env=.+) seed=0-4$", text, re.MULTILINE)
    runs = [compose_run(["mixer=tfcaf", "tfcaf.search.method=evolve", *words.split()]) for words in (search, sweep)]
    assert len({provide.key_for(run) for run in runs}) == 1


def test_the_request_to_improve_has_every_part_of_the_reflection_unless_it_is_switched_off(searches: Searches) -> None:
    parts = {
        "returns": "Return after each tenth",
        "baselines": "QMIX  ",
        "q_tot": "Q_tot against the return that followed",
        "credit": "Share of the credit",
        "columns": "no agent's credit depends on",
        "gradients": "Norm of the gradient in training",
        "gate": "Negative weights before the IGM gate",
    }
    model = Model()
    directory = searches.run("tfcaf.search.generations=2", model=model)
    (question,) = directory.of_kind("question", name="generation-2-candidate-1")
    run = searches.config("tfcaf.search.generations=2")
    archive = Archive(directory.rows, run.tfcaf.search)
    parents = [member for member in archive.members if member.key in question["parents"]]

    def request(**parts: bool) -> str:
        """Return the request with parts of the reflection switched on or off."""
        search = replace(run.tfcaf.search, reflection=replace(run.tfcaf.search.reflection, **parts))
        config = replace(run, tfcaf=replace(run.tfcaf, search=search))
        with provide.small_environment(run) as env:
            enforce = provide.igm_enforced(run, env)
            written = Reflection(config, provide.prompts_for(run), directory, env, enforce)
            return written.request(parents, archive)

    def missing(text: str) -> set[str]:
        return {part for part, words in parts.items() if not re.search(re.escape(words), text)}

    assert missing(model.requests["generation-2-candidate-1"].messages[1]["content"]) == set()
    for name in parts:
        assert missing(request(**{name: False})) == {name} | ({"baselines"} if name == "returns" else set())
