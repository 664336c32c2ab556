"""Provides the credit-assignment function of a run: a file of the user, a bundled, a stored or a newly generated function."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qllm_exp import llm
from qllm_exp.config import registry, schema
from qllm_exp.config.compose import compose_run
from qllm_exp.config.load import identifying_options, identity, unused_in
from qllm_exp.credit import stored_function
from qllm_exp.credit.program_json import canonical_json
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs import make_env
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError, nearest
from qllm_exp.generation import coder_evaluator
from qllm_exp.generation.coder import NoCandidateAccepted
from qllm_exp.generation.ledger import Ledger
from qllm_exp.generation.prompt_rendering import SEARCH_TEMPLATES, Prompts, render, template_hash
from qllm_exp.generation.search_options import check_search_options
from qllm_exp.generation.store import Store
from qllm_exp.generation.verify import Accepted, verify_all
from qllm_exp.runs.dotted_keys import flatten
from qllm_exp.utils.files import cache_folder, nearest_path
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

VERSION = 1  # of the request that a key is computed from

Search = Callable[[schema.RunConfig], StoredFunction]  # a configuration to the function that a search finds for it


@dataclass(frozen=True)
class FunctionFile:
    """The file of a run's function, which may not exist yet.

    Attributes:
        path: the JSON file.
        key: key of the generated function; '' for a function that is not generated.
    """

    path: Path
    key: str = ""

    @property
    def exists(self) -> bool:
        """Whether the function is there already."""
        return os.path.lexists(self.path)  # a broken link is an error, not a reason to pay for the function again


def locate(run: schema.RunConfig) -> FunctionFile:
    """Return the file of a run's function, which may not be generated yet. Does not call the language model.

    Args:
        run: the configuration of the run, with mixer=tfcaf.

    Raises:
        UserError: llm=bundled has no function for the task or its options, or the generation options are changed with
            llm=bundled, or mixer.file is not the key of a stored function, or mixer.written_for has no mixer.file.
    """
    mixer = run.mixer
    assert isinstance(mixer, schema.FunctionMixerConfig)
    if mixer.file:
        return FunctionFile(_resolve_file(mixer.file, function_store(run)))
    if mixer.written_for:
        raise UserError(
            f"mixer.written_for={mixer.written_for} needs mixer.file=..., the function of that task. Add it, or remove "
            "the override."
        )
    if not hasattr(run.llm, "backend"):
        defaults = identifying_options(schema.GenerationConfig())
        options = identifying_options(run.tfcaf)
        changed = [name for name, value in options.items() if value != defaults[name] and name != "sample"]
        if changed:
            keys = ", ".join(f"tfcaf.{name}" for name in changed)
            models = ", ".join(name for name in registry.choices("llm") if name != "bundled")
            raise UserError(
                f"llm={run.llm.name} has fixed functions for each task and does not support {keys}. Remove the override, "
                f"or choose a language model that generates functions: {models}."
            )
        path = _bundled_path(run.env, run.tfcaf.sample)
        if run.env.state != TeamEnv.state_kind:
            raise UserError(
                f"llm={run.llm.name}: the bundled functions read env.state={TeamEnv.state_kind}, not env.state={run.env.state}. "
                "Type llm=openai or another language model to generate a function for this state, mixer.file=... for one of "
                f"your own, or leave out env.state={run.env.state}."
            )
        return FunctionFile(path)
    key = key_for(run)
    return FunctionFile(function_store(run).path(key), key)


def _bundled_path(env: schema.EnvConfig, sample: int) -> Path:
    """Return the file of the function that ships with the package for a task. UserError if it is for other options than `env`'s."""
    path = stored_function.bundled_path(env.name, env.task, sample)
    for name, value in env.bundled_for.items():
        if getattr(env, name) != value:
            raise UserError(
                f"env.{name}={getattr(env, name)}: the bundled TFCAF for {env.name}/{env.task} was written for env.{name}={value}. "
                f"Choose a language model that can write another (llm=openai, ...), or another mixer. To use it all the same: "
                f"mixer.file={path}"
            )
    return path


def find_function(name: str, run: schema.RunConfig) -> StoredFunction:
    """Load a stored function by a name that a user types.

    Args:
        name: a file, ENV/TASK of a bundled function, or the first digits of the key of a stored one.
        run: a configuration; its `tfcaf.cache` is searched for keys.

    Raises:
        UserError: there is no such function, or its file is not valid.
    """
    if os.path.lexists(name) and not os.path.isdir(name):  # `load` explains a broken link or a pipe
        return stored_function.load(name)
    env, _, task = name.partition("/")
    if task:
        return stored_function.load(stored_function.bundled_path(env, task))
    if not set(name) <= set("0123456789abcdef"):
        hint = nearest_path(Path(name)) or nearest(name, stored_function.bundled_names())
        raise UserError(
            f"{name!r} is not a file, nor ENV/TASK of a bundled function, nor the beginning of a key, which has digits and "
            f"letters from a to f.{hint} To list all functions: python -m qllm_exp.tfcaf list"
        )
    return stored_function.load(function_store(run).find(name))


def check_backend(run: schema.RunConfig) -> None:
    """Raise a UserError if the run's llm cannot be called, e.g. because a key is missing, or its search has wrong options.

    Makes no call.
    """
    if run.tfcaf.search.method != "none":
        check_search_options(run.tfcaf.search)
    for config in (run.llm, *further_models(run).values()):
        llm.make_backend(config).check()


def function_store(run: schema.RunConfig) -> Store:
    """Return the folder of generated functions that a run uses."""
    return Store(Path(run.tfcaf.cache).expanduser() if run.tfcaf.cache else cache_folder())


def _resolve_file(file: str, store: Store) -> Path:
    """Resolve mixer.file, which is a path, ENV/TASK of a bundled function, or the first digits of a stored function's key."""
    if not Path(file).exists() and file in stored_function.bundled_names():
        env, _, task = file.partition("/")
        return stored_function.bundled_path(env, task)
    if not Path(file).exists() and len(file) >= 6 and all(c in "0123456789abcdef" for c in file):
        return store.find(file)
    return Path(file)


def igm_enforced(run: schema.RunConfig, env: TeamEnv) -> bool:
    """Whether the IGM gate of a run is on.

    Args:
        run: the configuration of the run.
        env: its environment, whose task decides for mixer.igm=auto.

    Raises:
        UserError: the mixer does not use a credit-assignment function.
    """
    if not isinstance(run.mixer, schema.FunctionMixerConfig):
        raise UserError(
            f"mixer={run.mixer.name} does not use a credit-assignment function. Remove the override or set mixer=tfcaf."
        )
    return run.mixer.igm == "enforce" or (run.mixer.igm == "auto" and env.task.monotonic)


@contextmanager
def small_environment(run: schema.RunConfig) -> Iterator[TeamEnv]:
    """Open the run's environment with only a few copies, to describe it and to sample states."""
    config: Any = replace(run.env, num_envs=8)
    if hasattr(config, "workers"):  # its simulators are processes
        config = replace(config, num_envs=2, workers=1)
    env = make_env(config, int(config.num_envs), 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the tensors are small: other threads would only wait for work, and take time of the processor
    try:
        yield env
    finally:
        torch.set_num_threads(threads)
        env.close()


_PROMPTS: dict[str, Prompts] = {}


def prompts_for(run: schema.RunConfig) -> Prompts:
    """Render the prompts of a run. Runs of the same environment share them, so that it is built only once."""
    igm = identifying_options(run.mixer).get("igm")
    cache_key = canonical_json([identifying_options(run.env), igm, run.tfcaf.state_description])
    if cache_key not in _PROMPTS:
        with small_environment(run) as env:
            _PROMPTS[cache_key] = render(env, igm_enforced(run, env), run.tfcaf.state_description)
    return _PROMPTS[cache_key]


def request_for(run: schema.RunConfig) -> dict[str, Any]:
    """Return everything that shapes the answer: prompts, procedure, sample, model and sampling settings.

    API keys and addresses are not part of it.
    """
    procedure = identifying_options(run.tfcaf)
    request: dict[str, Any] = {"version": VERSION, "prompts": prompts_for(run).hash}
    if run.tfcaf.search.method == "none":
        del procedure["search"]
        procedure["selection"] = "evaluator"  # as before searches: functions keep their keys
    else:
        unused = unused_in(run)
        procedure = {name: value for name, value in flatten(procedure).items() if f"tfcaf.{name}" not in unused}
        request["training"] = _training(run)
        request["templates"] = template_hash(SEARCH_TEMPLATES)
        if run.tfcaf.search.models:
            request["models"] = {name: _model(config) for name, config in further_models(run).items()}
    return request | {"procedure": procedure, "llm": _model(run.llm)}


def _model(config: schema.LlmConfig) -> dict[str, Any]:
    """Return what defines a language model and how it is asked."""
    return {name: value for name, value in identifying_options(config).items() if name != "name"}


def further_models(run: schema.RunConfig) -> dict[str, schema.LlmConfig]:
    """Return the configurations of `tfcaf.search.models` by name, with the options of their YAML files; {} without a search.

    Raises:
        UserError: a name is not a choice of llm that can be called, or is named twice.
    """
    names = run.tfcaf.search.models if run.tfcaf.search.method != "none" else []
    callable_names = [name for name in registry.choices("llm") if name not in ("bundled", run.llm.name)]
    for name in names:
        if name not in callable_names or names.count(name) > 1:
            raise UserError(
                f"tfcaf.search.models={names}: {name!r} is not allowed.{nearest(name, callable_names)} Allowed, each once, beside "
                f"llm={run.llm.name}: {', '.join(callable_names)}."
            )
    return {name: compose_run([f"llm={name}"]).llm for name in names}


def _training(run: schema.RunConfig) -> dict[str, Any]:
    """Return what defines the trainings of a search, whose lengths, evaluations and seeds are its own.

    A search trains its candidates as they are written, whatever the runs that use its function do with the constants.
    """
    if isinstance(run.mixer, schema.FunctionMixerConfig):
        run = replace(run, mixer=replace(run.mixer, trainable_constants=False))
    training = identity(run, None)
    del training["seed"]
    for name in ("total_steps", "evaluation"):
        del training["train"][name]
    return training


def key_for(run: schema.RunConfig) -> str:
    """Return the key under which the function of a run is stored: SHA-256 of `request_for`, 64 hex digits."""
    return hashlib.sha256(canonical_json(request_for(run)).encode()).hexdigest()


def provide(run: schema.RunConfig, search: Search | None = None) -> Path:
    """Return the file of the run's function; generate the function, or search for it, if it does not exist.

    If several processes request the same function, one generates it and the others wait.

    Args:
        run: the configuration of the run, with mixer=tfcaf.
        search: searches for the function, with tfcaf.search.method=best_of or evolve. None: this command starts no search.

    Raises:
        UserError: the generation failed, in this process or in the one that it waited for; or a search would have to start.
    """
    file = locate(run)
    if file.exists or not file.key:
        return file.path
    store = function_store(run)

    def log_waiting(owner: str) -> None:
        log.info(
            "%s/%s: waiting for %s, which is generating the credit-assignment function",
            run.env.name,
            run.env.task,
            owner,
        )

    method = run.tfcaf.search.method
    if method != "none" and search is None:
        raise UserError(
            f"tfcaf.search.method={method}: the function of this search is not stored yet (key {file.key[:12]}). Search for it "
            f"first, with the same options: python -m qllm_exp.tfcaf search env={run.env.name} env.task={run.env.task} "
            f"llm={run.llm.name} tfcaf.search.method={method} ..."
        )

    def generate() -> StoredFunction:
        return _generate(run, file.key, store) if search is None or method == "none" else search(run)

    store.get_or_generate(file.key, generate, log_waiting)
    return file.path


def _generate(run: schema.RunConfig, key: str, store: Store) -> StoredFunction:
    """Run the coder-evaluator procedure for a run."""
    options, prompts = run.tfcaf, prompts_for(run)
    log.info(
        "%s/%s: llm=%s generates the credit-assignment function (%s)",
        run.env.name,
        run.env.task,
        run.llm.name,
        describe_procedure(options),
    )
    start = time.monotonic()
    ledger = Ledger(llm.make_backend(run.llm), store.journal(key), options.budget_usd)
    with small_environment(run) as env:
        enforce = igm_enforced(run, env)
        try:
            outcome = coder_evaluator.generate(
                prompts, options, ledger, lambda sources: verify_all(sources, env, enforce)
            )
        except NoCandidateAccepted:
            with suppress(OSError):
                store.journal(key).unlink(missing_ok=True)  # so that the same command starts a new generation
            raise
        function = _stored_function(run, key, prompts, outcome, env)
    cost = function.cost
    log.info(
        "  %s: %s, %s tokens, %s, %.0f s%s",
        key[:12],
        count(cost["calls"], "call"),
        f"{cost['tokens_in'] + cost['tokens_out']:,}",
        "price unknown" if cost["usd"] is None else f"{cost['usd']:.4f} USD",
        time.monotonic() - start,
        " (tokens and cost are estimates: the server reports none)" if "usage" in cost else "",
    )
    return function


def _stored_function(
    run: schema.RunConfig, key: str, prompts: Prompts, outcome: coder_evaluator.Outcome, env: TeamEnv
) -> StoredFunction:
    """Build the stored function from the outcome of the procedure."""
    return generated_function(
        run,
        key,
        env,
        _function_fields(outcome.accepted, env),
        {"coder": prompts.coder_system, "evaluator": prompts.evaluator_system},
        outcome.transcript,
        "; ".join([outcome.verdict, *outcome.accepted.notes]),
    )


def generated_function(
    run: schema.RunConfig,
    key: str,
    env: TeamEnv,
    function_fields: dict[str, Any],
    prompts: dict[str, str],
    transcript: Sequence[dict[str, Any]],
    verdict: str,
    cost: dict[str, Any] | None = None,
) -> StoredFunction:
    """Build the stored function of a procedure, with the cost of its calls.

    Args:
        run: the configuration that the function was generated for.
        key: its key.
        env: its task.
        function_fields: fields of the stored function that describe the function itself.
        prompts: system prompts by role.
        transcript: the calls.
        verdict: how the function was chosen.
        cost: further costs beside those of the calls.
    """
    answered = [row for row in transcript if row["answer"]]
    prices = [row["cost_usd"] for row in answered]
    models = sorted({row["model"] for row in answered})
    return StoredFunction(
        **function_fields,
        prompt_hash=prompts_for(run).hash,
        key=key,
        request=request_for(run),
        provenance=_provenance(", ".join(models), describe_procedure(run.tfcaf), env),
        prompts=prompts,
        transcript=tuple(transcript),
        cost={
            "calls": len(transcript),
            "tokens_in": sum(row["tokens_in"] for row in transcript),
            "tokens_out": sum(row["tokens_out"] for row in transcript),
            "usd": None if None in prices else sum(prices),
            **({"usage": "estimated"} if any("usage" in row for row in transcript) else {}),
            **(cost or {}),
        },
        verdict=verdict,
    )


def import_function(accepted: Accepted, env: TeamEnv, origin: str) -> StoredFunction:
    """Build the stored function of a source that no language model of this package wrote.

    Args:
        accepted: the verified function.
        env: the environment that it was verified for.
        origin: where it comes from, e.g. 'file mine.py'; recorded in the place of the model.
    """
    provenance = _provenance(origin, "imported", env)
    sizes = (env.n_agents, env.state_dim)
    text = canonical_json(
        stored_function.imported_content(accepted.source, env.task.env, env.task.task, *sizes, provenance)
    )
    return StoredFunction(
        **_function_fields(accepted, env),
        key=hashlib.sha256(text.encode()).hexdigest(),
        provenance=provenance,
        verdict="; ".join(accepted.notes),
    )


def _function_fields(accepted: Accepted, env: TeamEnv) -> dict[str, Any]:
    """Return the fields of a stored function that describe the function itself."""
    return {
        "env": env.task.env,
        "task": env.task.task,
        "source": accepted.source,
        "function": accepted.function,
        "program": accepted.program,
    }


def _provenance(model: str, procedure: str, env: TeamEnv) -> dict[str, str]:
    """Return the provenance of a function that was generated or imported today for `env`."""
    state = {} if env.state_kind == TeamEnv.state_kind else {stored_function.STATE_KIND: env.state_kind}
    date = time.strftime("%Y-%m-%d")
    return {"model": model, "date": date, "procedure": procedure, "qllm_exp": version("qllm_exp"), **state}


def describe_procedure(options: schema.GenerationConfig) -> str:
    """Describe the procedure briefly, e.g. '3 rounds of 3 candidates, no evaluator'."""
    search, candidates = options.search, count(options.candidates, "candidate")
    if search.method == "none":
        parts = [f"{count(options.rounds, 'round')} of {candidates}"]
    else:
        parts = [f"{search.method}, {count(search.generations, 'generation')} of {candidates}"]
        if search.tune != "none":
            parts.append(f"constants tuned by {search.tune}")
    if search.method == "none" and not options.evaluator:
        parts.append("no evaluator")
    if not options.error_feedback:
        parts.append("no error feedback")
    if not options.state_description:
        parts.append("no state description")
    if options.sample > 0:
        parts.append(f"sample {options.sample}")
    return ", ".join(parts)
