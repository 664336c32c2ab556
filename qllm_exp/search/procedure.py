"""A search that sees returns: generations of candidates, which are trained, and whose figures lead to the next ones.

In each generation, `tfcaf.candidates` functions are requested. With method=evolve, the coder is shown earlier functions of an
island with what training did with them (reflection.py); with method=best_of, every request is the first one again. A function
that computes the same as an earlier one is refused like any other fault, before it is trained. The others are trained stage by
stage (trainings.py). With tune=gradient, the constants of the best function of the generation are then trained along with the
agents, and the function with these constants is a candidate of its own. The function with the best return in the last stage is
the result, stored under the key of the configuration.

Related work: Eureka (arXiv 2310.12931), LERO (arXiv 2503.21807), FunSearch (Romera-Paredes et al. 2024), ShinkaEvolve (arXiv
2509.19349).
"""

import hashlib
import logging
import math
import random
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from qllm_exp import llm
from qllm_exp.config.schema import RunConfig
from qllm_exp.credit.program import Program
from qllm_exp.credit.program_json import canonical_json
from qllm_exp.credit.refused import Refused
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.explain.policy import load_algorithm
from qllm_exp.generation import provide
from qllm_exp.generation.coder import Coder, NoCandidateAccepted, message, no_candidate_message
from qllm_exp.generation.ledger import Ledger
from qllm_exp.generation.probes import Probe
from qllm_exp.generation.search_options import check_search_options
from qllm_exp.generation.verify import Accepted, verify_all
from qllm_exp.mixers.tfcaf import SMALLEST, TrainableTfcaf, make_from_function
from qllm_exp.runs.sweep_directory import search_name
from qllm_exp.search.archive import BASELINES, Archive, Member, stage_returns
from qllm_exp.search.behaviour import Behaviours, distance
from qllm_exp.search.models import Models, candidate_of, choose_models
from qllm_exp.search.progress import SearchProgress
from qllm_exp.search.reflection import BASELINE_NAMES, Reflection
from qllm_exp.search.search_directory import Row, SearchDirectory, cost_of
from qllm_exp.search.trainings import Trainings
from qllm_exp.sweep.launcher import Launcher
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

_TIMEOUT_S = 60.0  # processor seconds of the probes of a function with trained constants
_ANOTHER_SEARCH = "With another option it is another search, which requests its functions again."


def search_path(run: RunConfig) -> Path:
    """Return the directory of the search of a configuration."""
    return Path(run.dir) / search_name(provide.key_for(run))


def search(run: RunConfig, launcher: Launcher) -> StoredFunction:
    """Search for a credit-assignment function, or continue a search that was interrupted.

    Args:
        run: a checked configuration with tfcaf.search.method=best_of or evolve.
        launcher: where the trainings take place; it waits for them.

    Raises:
        UserError: an option is wrong, the budget does not allow a generation, no candidate was accepted, no request was answered,
            a training failed, all functions diverged, or the trainings do not tell functions apart.
    """
    check_search_options(run.tfcaf.search)
    return _Search(run, launcher).run()


class _Search:
    """The state of a search; arguments as for `search`."""

    def __init__(self, run: RunConfig, launcher: Launcher) -> None:
        self._run, self._options = run, run.tfcaf.search
        self._key = provide.key_for(run)
        self._directory = SearchDirectory(search_path(run))
        self._directory.create(run, self._key)
        self._journal = provide.function_store(run).journal(self._key)
        configs = {run.llm.name: run.llm} | provide.further_models(run)
        self._models = list(configs)
        backends = Models({name: llm.make_backend(config) for name, config in configs.items()}, self._model_of)
        self._ledger = Ledger(backends, self._journal, run.tfcaf.budget_usd)
        self._prompts = provide.prompts_for(run)
        self._progress = SearchProgress(self._directory, run.tfcaf, lambda: self._ledger.spent_usd)
        self._trainings = Trainings(run, self._key, self._directory, launcher, self._progress.show)
        with provide.small_environment(run) as env:
            self._enforce = provide.igm_enforced(run, env)
            self._behaviours = Behaviours(env, self._enforce, self._options.tolerance)
        self._known: dict[str, Tensor] = {}  # behaviours by key

    @property
    def _archive(self) -> Archive:
        return Archive(self._directory.rows, self._options)

    def run(self) -> StoredFunction:
        """Run all generations that the log does not have."""
        log.info("search %s: %s", self._directory.path, provide.describe_procedure(self._run.tfcaf))
        with self._progress.on_terminal():
            for generation in range(1, self._options.generations + 1):
                self._progress.generation = generation
                self._progress.show(f"requests for {count(self._run.tfcaf.candidates, 'candidate')}")
                self._write(generation)
                self._train(generation)
                if self._options.tune == "gradient":
                    self._tune(generation)
                new = sum(member.generation == generation for member in self._archive.members)
                self._progress.show(f"ended with {count(new, 'new function')}")
        log.info("the page of the search: python -m qllm_exp.tfcaf report %s", shlex.quote(str(self._directory.path)))
        return self._result()

    # Candidates

    def _write(self, generation: int) -> None:
        """Request the candidates of a generation, and log what became of them."""
        if self._directory.of_kind("candidate", generation=generation, tuned=False):
            return
        with provide.small_environment(self._run) as env:
            if not self._directory.of_kind("question", generation=generation):
                self._directory.append(self._questions(generation, env))
        questions = self._directory.of_kind("question", generation=generation)
        system = message("system", self._prompts.coder_system)
        conversations = {row["name"]: [system, message("user", row["text"])] for row in questions}
        # Opened again, so that the states of the verification do not depend on the episodes played for the questions.
        with provide.small_environment(self._run) as env:
            known = self._known_behaviours()

            def verify(sources: Sequence[str]) -> list[Accepted | Refused]:
                verdicts = verify_all(sources, env, self._enforce)
                return [self._unless_known(verdict, known) for verdict in verdicts]

            coder = Coder(self._prompts, self._run.tfcaf, self._ledger, verify)
            written, reasons = coder.write(conversations, f"generation {generation}")
            keys = {
                name: self._directory.add_function(
                    provide.import_function(new.accepted, env, f"search {self._key[:12]}")
                )
                for name, new in written.items()
            }
        if generation > 1 and not any(row["answer"] for row in coder.transcript):
            reason = next(iter(reasons.values())).rstrip(".")
            raise UserError(
                f"No request of generation {generation} was answered: {reason}. The search keeps all that it has. The same command "
                f"requests them again: {self._directory.resume_command}"
            )
        calls: list[Row] = [{"kind": "call", "generation": generation, **row} for row in coder.transcript]
        candidates = [
            _candidate_row(row, key=keys.get(row["name"], ""), reason=reasons.get(row["name"], "")) for row in questions
        ]
        if generation == 1:
            self._check_first_generation(coder.transcript, keys, reasons)
        self._directory.append([*calls, *candidates])

    def _questions(self, generation: int, env: TeamEnv) -> list[Row]:
        """Return the requests of a generation."""
        archive = self._archive
        reflection = Reflection(self._run, self._prompts, self._directory, env, self._enforce)
        distances: dict[tuple[str, str], float] = {}
        if self._options.method == "evolve" and generation > 1:
            behaviours = self._known_behaviours()
            keys = [member.key for member in archive.members]
            distances = {(a, b): distance(behaviours[a], behaviours[b]) for a in keys for b in keys}
        rows: list[Row] = []
        candidates, options = self._run.tfcaf.candidates, self._options
        models = choose_models(
            self._directory.rows, archive, self._models, candidates, options.exploration, options.dollar_weight
        )
        for k in range(1, candidates + 1):
            island, parents = (k - 1) % self._options.islands, list[Member]()
            if distances:
                rng = random.Random(f"{self._run.tfcaf.sample}/{generation}/{k}")
                parents = archive.choose_parents(island, generation, distances, rng)
            rows.append(
                {
                    "kind": "question",
                    "name": f"generation-{generation}-candidate-{k}",
                    "generation": generation,
                    "island": island,
                    "model": models[k - 1],
                    "parents": [parent.key for parent in parents],
                    "text": reflection.request(parents, archive),
                }
            )
        return rows

    def _model_of(self, call: str) -> str:
        """Return the name of the language model of a call."""
        (row,) = self._directory.of_kind("question", name=candidate_of(call))
        name: str = row["model"]
        return name

    def _known_behaviours(self) -> dict[str, Tensor]:
        """Return the behaviours of all functions of the archive, by key."""
        for member in self._archive.members:
            if member.key not in self._known:
                self._known[member.key] = self._behaviour(self._directory.function(member.key).program)
        return dict(self._known)

    def _behaviour(self, program: Program) -> Tensor:
        return self._behaviours.of(program, self._behaviours.is_affine(program))

    def _unless_known(self, verdict: Accepted | Refused, known: dict[str, Tensor]) -> Accepted | Refused:
        """Return a verdict, or the refusal of a function that computes the same as a known one.

        Args:
            verdict: of the verification.
            known: behaviours by key; that of a new function is added.
        """
        if isinstance(verdict, Refused):
            return verdict
        behaviour = self._behaviours.of(verdict.program, verdict.affine)
        equal = ""
        if self._behaviours.are_equal(behaviour, self._behaviours.plain_sum()):
            equal = "the sum of the individual values (VDN), the function to improve on"
        for key, other in known.items():
            if not equal and self._behaviours.are_equal(behaviour, other):
                equal = self._describe(key)
        if equal:
            return Refused(
                "novelty",
                f"it computes the same as {equal}: Q_tot and the credit of every agent agree in all {len(behaviour)} probe states. "
                "Write a function that differs in what it computes, not only in how it is written",
            )
        known[f"new {len(known)}"] = behaviour
        return verdict

    def _describe(self, key: str) -> str:
        """Return what a known function is, for a refusal, with its return only where requests have returns."""
        for member in self._archive.members:
            if member.key == key and member.returns:
                stage, value = member.score
                if self._options.method != "evolve" or not self._options.reflection.returns:
                    return "an earlier function"
                if value == -math.inf:
                    return f"an earlier function, whose training diverged within {self._options.steps[stage]:,} steps"
                return f"an earlier function, whose return is {value:.3f} after {self._options.steps[stage]:,} steps"
        return "another function of this generation"

    def _check_first_generation(self, transcript: Sequence[Row], keys: dict[str, str], reasons: dict[str, str]) -> None:
        """Raise UserError if the first generation leaves nothing to choose from."""
        candidates = self._run.tfcaf.candidates
        if not keys:
            with suppress(OSError):
                self._journal.unlink(missing_ok=True)  # so that the same command starts a new search
            self._directory.restart()
            listed = [f"candidate {name.rpartition('-')[2]}: {reason}" for name, reason in reasons.items()]
            raise NoCandidateAccepted(no_candidate_message(self._run.tfcaf, listed))
        repeated = {candidate_of(row["call"]) for row in transcript if row["outcome"].startswith("refused (novelty)")}
        if len(keys) == 1 and candidates > 1 and repeated.issuperset(reasons):
            raise UserError(
                f"All {candidates} candidates of the first generation compute the same function, so that there is nothing to "
                "choose from. Raise llm.temperature or tfcaf.retries, or choose another llm."
            )

    # Trainings

    def _train(self, generation: int) -> None:
        """Train the functions of a generation, and the baselines beside them."""
        functions = [
            row["key"] for row in self._directory.of_kind("candidate", generation=generation, tuned=False) if row["key"]
        ]
        if not functions:
            log.warning("generation %d: no new function; the reasons are in %s", generation, self._directory.log)
            return
        reflection = self._options.reflection
        baselines = BASELINES if reflection.baselines and reflection.returns else ()
        for stage in range(len(self._options.steps)):
            if not functions:
                log.warning("generation %d: all its functions diverged in training", generation)
                return
            self._trainings.train([*functions, *baselines], stage)
            if generation == 1 and stage == 0:
                self._check_told_apart()
            returns = {key: stage_returns(self._directory.rows, key)[stage] for key in functions}
            left = max(1, math.ceil(self._options.kept * len(functions)))
            best = sorted(functions, key=lambda key: returns[key], reverse=True)[:left]
            functions = [key for key in best if returns[key] > -math.inf]

    def _check_told_apart(self) -> None:
        """Raise UserError if the first trainings do not tell any functions apart."""
        rows = self._directory.of_kind("training", stage=0)
        steps, task = self._options.steps[0], f"{self._run.env.name}/{self._run.env.task}"
        if all(row["return"] is None for row in rows):
            raise UserError(
                f"All trainings of {steps:,} environment steps on {task} diverged. Lower train.learning_rate. {_ANOTHER_SEARCH}"
            )
        functions = {row["function"] for row in rows}
        values = {value for row in rows for value in row["curve"]}
        if values == {0.0}:
            baselines = [name for baseline, name in BASELINE_NAMES.items() if baseline in functions]
            neither = f", neither with a candidate nor with {' or '.join(baselines)}" if baselines else ""
            raise UserError(
                f"No training of {steps:,} environment steps on {task} has received any reward{neither}, so that returns choose "
                f"nothing. Raise the first of tfcaf.search.steps, or choose an easier task. {_ANOTHER_SEARCH}"
            )
        if len(functions) > 1 and len({row["return"] for row in rows}) == 1:
            raise UserError(
                f"All {len(functions)} functions have the return {rows[0]['return']:.3f} after {steps:,} environment steps on "
                f"{task}, so that returns choose nothing. Raise the first of tfcaf.search.steps, or, if this is the best possible "
                f"return, lower it or choose a harder task. {_ANOTHER_SEARCH}"
            )

    def _tune(self, generation: int) -> None:
        """Train the constants of the best function of a generation, and then the function with these constants."""
        members = [member for member in self._archive.members if member.generation == generation and not member.tuned]
        members = [member for member in members if member.score[1] > -math.inf]
        if not members:
            return
        best = max(members, key=lambda member: member.rank)
        if not self._directory.of_kind("candidate", generation=generation, tuned=True):
            name = f"generation-{generation}-tuned"
            key, reason = self._tuned(best)
            question: Row = {"name": name, "generation": generation, "island": best.island, "parents": [best.key]}
            self._directory.append([_candidate_row(question, key=key, reason=reason, tuned=True)])
        for row in self._directory.of_kind("candidate", generation=generation, tuned=True):
            if row["key"]:
                self._trainings.train([row["key"]], len(self._options.steps) - 1)

    def _tuned(self, parent: Member) -> tuple[str, str]:
        """Return the key of a function with trained constants, and '' or why there is none."""
        function = self._directory.function(parent.key)
        try:
            if not function.program.with_literals_as_constants(SMALLEST).constants:
                return "", "it has no number to train"
            with provide.small_environment(self._run) as env:
                try:
                    make_from_function(function, "enforce" if self._enforce else "relax", env, trainable_constants=True)
                except UserError as error:  # e.g. numbers that are only compared with: no gradient reaches them
                    return "", str(error)
            directory = self._trainings.train_constants(parent.key)
            if directory.result() is None:
                return "", "training with trainable constants diverged"
            with provide.small_environment(self._run) as env:
                mixer = load_algorithm(directory.path, env, "last").mixer
                assert isinstance(mixer, TrainableTfcaf)
                program = mixer.trained_program()
                affine, notes = Probe(env, self._enforce, _TIMEOUT_S).check(program)
            verdict = self._unless_known(Accepted("", "", program, affine, notes), self._known_behaviours())
            if isinstance(verdict, Refused):
                raise verdict
        except Refused as refused:
            return "", refused.reason
        return self._directory.add_function(tuned_function(function, program, directory.path.name, notes)), ""

    # Result

    def _cost(self) -> dict[str, Any]:
        """Return environment steps, trainings and core hours of all trainings."""
        return cost_of(self._directory.results().values())

    def _result(self) -> StoredFunction:
        """Build the stored function of the search: its best function, with all calls and costs."""
        archive = self._archive
        best = archive.best
        if best.score[1] == -math.inf:
            raise UserError(
                "All functions of the search diverged in training. Lower train.learning_rate, or raise "
                f"tfcaf.search.generations. {_ANOTHER_SEARCH}"
            )
        function = self._directory.function(best.key)
        candidates = self._directory.of_kind("candidate", tuned=False)
        refused = sum(not row["key"] for row in candidates)
        origin = f"{best.name}, improved from {best.parents[0][:12]}" if best.parents else best.name
        verdict = (
            f"{self._options.method}: {len(candidates)} candidates, {refused} refused; chosen: {origin}, {archive.compare(best)}, "
            f"mean of {count(self._options.seeds[best.score[0]], 'seed')}"
        )
        fields = {name: getattr(function, name) for name in ("env", "task", "source", "function", "program")}
        calls = [
            {name: value for name, value in row.items() if name not in ("kind", "generation")}
            for row in self._directory.of_kind("call")
        ]
        with provide.small_environment(self._run) as env:
            return provide.generated_function(
                self._run,
                self._key,
                env,
                fields,
                {"coder": self._prompts.coder_system},
                calls,
                "; ".join(filter(None, [verdict, function.verdict])),
                self._cost(),
            )


def tuned_function(parent: StoredFunction, program: Program, run: str, notes: Sequence[str]) -> StoredFunction:
    """Build the stored function of a program that has the source of its parent and other constants.

    Args:
        parent: the function whose constants were trained.
        program: the program with the trained constants.
        run: name of the run that trained them.
        notes: notes of the verification.
    """
    request = {"parent": parent.key, "program": program.hash}
    before = parent.program.with_literals_as_constants(SMALLEST).constants
    changes = [
        f"{old:.4g} is {new:.4g}"
        for number, tensor in program.constants.items()
        for old, new in zip(before[number].flatten().tolist(), tensor.flatten().tolist(), strict=True)
    ]
    remark = (
        f"its constants were trained in the run {run}; the source has those of its parent {parent.key[:12]}, and in order of their "
        f"use {', '.join(changes)}"
    )
    return StoredFunction(
        env=parent.env,
        task=parent.task,
        source=parent.source,
        function=parent.function,
        program=program,
        key=hashlib.sha256(canonical_json(request).encode()).hexdigest(),
        request=request,
        provenance=parent.provenance | {"procedure": "constants tuned by gradient", "parent": parent.key},
        cost={"calls": 0, "tokens_in": 0, "tokens_out": 0, "usd": 0.0},
        verdict="; ".join([remark, *notes]),
    )


def _candidate_row(row: Row, key: str, reason: str, tuned: bool = False) -> Row:
    """Return the row of a candidate for the log.

    Args:
        row: has its name, generation, island and parents, e.g. its question.
        key: of its function; '' if it was refused.
        reason: of the refusal.
        tuned: whether it is its parent with trained constants.
    """
    kept = {name: row[name] for name in ("name", "generation", "island", "parents")}
    return {"kind": "candidate", **kept, "key": key, "reason": reason, "tuned": tuned}
