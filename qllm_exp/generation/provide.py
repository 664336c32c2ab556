"""From a run's configuration to its credit-assignment function: the file given, the bundled one, a stored one, or a new one."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qllm_exp import llm
from qllm_exp.config import registry, schema
from qllm_exp.config.load import identity_of
from qllm_exp.credit import stored_function
from qllm_exp.credit.program_json import canonical
from qllm_exp.credit.stored_function import StoredFunction
from qllm_exp.envs import make_env
from qllm_exp.envs.base import TeamEnv
from qllm_exp.errors import UserError
from qllm_exp.generation import coder_evaluator
from qllm_exp.generation.coder_evaluator import Ranker
from qllm_exp.generation.ledger import Ledger
from qllm_exp.generation.prompt_rendering import Prompts, render
from qllm_exp.generation.store import Store
from qllm_exp.generation.verify import Accepted, verify_all
from qllm_exp.utils.files import cache_folder
from qllm_exp.utils.text import count

log = logging.getLogger(__name__)

VERSION = 1  # of what a key covers


@dataclass(frozen=True)
class Source:
    """Where a run's function is, or will be. `key`: what it is generated under; '' where it is not generated."""

    path: Path
    key: str = ""

    @property
    def is_there(self) -> bool:
        return self.path.exists()


def locate(run: schema.RunConfig) -> Source:
    """Where the function of a run is, or will be once it is generated. LanguageModel nobody.

    Raises:
        UserError: llm=bundled has none for the task, or none like that; mixer.file names no stored function.
    """
    mixer = run.mixer
    assert isinstance(mixer, schema.FunctionMixerConfig)
    if mixer.file:
        return Source(_given(mixer.file, store_of(run)))
    if not hasattr(run.llm, "backend"):
        changed = [
            name
            for name, value in identity_of(run.tfcaf).items()
            if value != identity_of(schema.GenerationConfig())[name]
        ]
        if changed:
            words = ", ".join(f"tfcaf.{name}" for name in changed)
            raise UserError(
                f"llm={run.llm.name} has one function per task, and changing {words} asks for another one: choose an llm that can "
                f"be asked ({', '.join(name for name in registry.choices('llm') if name != 'bundled')})."
            )
        return Source(stored_function.bundled(run.env.name, run.env.task))
    key = key_of(run)
    return Source(store_of(run).path(key), key)


def check_can_ask(run: schema.RunConfig) -> None:
    """UserError where the run's llm cannot be asked, e.g. for want of a key. LanguageModel nobody."""
    llm.make_backend(run.llm).check()


def store_of(run: schema.RunConfig) -> Store:
    """The folder of generated functions that a run uses."""
    return Store(Path(run.tfcaf.cache).expanduser() if run.tfcaf.cache else cache_folder())


def _given(file: str, store: Store) -> Path:
    """mixer.file: a path, or the first digits of a stored function's key."""
    if not Path(file).exists() and len(file) >= 6 and all(c in "0123456789abcdef" for c in file):
        return store.find(file)
    return Path(file)


def enforced(run: schema.RunConfig, env: TeamEnv) -> bool:
    """Whether the run has the IGM gate on."""
    if not isinstance(run.mixer, schema.FunctionMixerConfig):
        raise UserError(f"mixer={run.mixer.name} is no written function. Leave it out, or say mixer=tfcaf.")
    return run.mixer.igm == "enforce" or (run.mixer.igm == "auto" and env.task.monotonic)


@contextmanager
def environment(run: schema.RunConfig) -> Iterator[TeamEnv]:
    """The run's environment in a few copies, to describe it and to play in."""
    small: Any = replace(run.env, num_envs=8)
    if hasattr(small, "workers"):  # its simulators are processes
        small = replace(small, num_envs=2, workers=1)
    env = make_env(small, int(small.num_envs), 0)
    try:
        yield env
    finally:
        env.close()


_PROMPTS: dict[str, Prompts] = {}


def prompts_of(run: schema.RunConfig) -> Prompts:
    """The prompts for a run. An environment is built once for all runs of its kind."""
    kept = canonical([identity_of(run.env), identity_of(run.mixer).get("igm"), run.tfcaf.state_description])
    if kept not in _PROMPTS:
        with environment(run) as env:
            _PROMPTS[kept] = render(env, enforced(run, env), run.tfcaf.state_description)
    return _PROMPTS[kept]


def request_of(run: schema.RunConfig) -> dict[str, Any]:
    """All that shapes the answer: prompts, procedure, sample, model and sampling settings; no key, no address."""
    procedure = identity_of(run.tfcaf)
    if run.tfcaf.selection != "probe":
        del procedure["probe"]
    model = {name: value for name, value in identity_of(run.llm).items() if name != "name"}
    return {"version": VERSION, "prompts": prompts_of(run).hash, "procedure": procedure, "llm": model}


def key_of(run: schema.RunConfig) -> str:
    """What the function of a run is stored under: SHA-256 of `request_of`, 64 hex digits."""
    return hashlib.sha256(canonical(request_of(run)).encode()).hexdigest()


def provide(run: schema.RunConfig, rank: Ranker | None = None) -> Path:
    """The file of the run's function. It is generated when it is not there; of many processes that ask, one generates.

    Args:
        rank: for tfcaf.selection=probe: the return of a short training with each candidate.
    """
    source = locate(run)
    if source.is_there or not source.key:
        return source.path
    what = f"{run.env.name}/{run.env.task}"
    store = store_of(run)

    def waiting(owner: str) -> None:
        log.info("%s: waiting for %s, which is generating the credit-assignment function", what, owner)

    store.obtain(source.key, lambda: _generated(run, source.key, store, rank), waiting)
    return source.path


def _generated(run: schema.RunConfig, key: str, store: Store, rank: Ranker | None) -> StoredFunction:
    options, prompts = run.tfcaf, prompts_of(run)
    procedure = in_words(options)
    log.info(
        "%s/%s: llm=%s writes the credit-assignment function (%s)", run.env.name, run.env.task, run.llm.name, procedure
    )
    begin = time.monotonic()
    ledger = Ledger(llm.make_backend(run.llm), store.journal(key), options.budget_usd)
    with environment(run) as env:
        gate = enforced(run, env)
        try:
            outcome = coder_evaluator.generate(
                prompts, options, ledger, lambda sources: verify_all(sources, env, gate), rank
            )
        except coder_evaluator.NoneAccepted:
            store.journal(key).unlink(missing_ok=True)  # the same command again asks afresh
            raise
        made = _entry(run, key, prompts, outcome, env)
    spent = "no price known" if made.cost["usd"] is None else f"{made.cost['usd']:.4f} USD"
    tokens = made.cost["tokens_in"] + made.cost["tokens_out"]
    log.info(
        "  %s: %s, %s tokens, %s, %.0f s",
        key[:12],
        count(made.cost["calls"], "call"),
        f"{tokens:,}",
        spent,
        time.monotonic() - begin,
    )
    return made


def _entry(
    run: schema.RunConfig, key: str, prompts: Prompts, outcome: coder_evaluator.Outcome, env: TeamEnv
) -> StoredFunction:
    rows = outcome.transcript
    prices = [row["cost_usd"] for row in rows if row["answer"]]
    models = sorted({row["model"] for row in rows if row["answer"]})
    return StoredFunction(
        **_function(outcome.accepted, env),
        prompt_hash=prompts.hash,
        key=key,
        request=request_of(run),
        provenance=_provenance(", ".join(models), in_words(run.tfcaf)),
        prompts={"coder": prompts.coder_system, "evaluator": prompts.evaluator_system},
        transcript=rows,
        cost={
            "calls": len(rows),
            "tokens_in": sum(row["tokens_in"] for row in rows),
            "tokens_out": sum(row["tokens_out"] for row in rows),
            "usd": None if None in prices else sum(prices),
        },
        verdict="; ".join([outcome.verdict, *outcome.accepted.notes]),
    )


def imported(accepted: Accepted, env: TeamEnv, origin: str) -> StoredFunction:
    """The entry of a function that no prompt asked for. `origin`: where it comes from, in words."""
    text = canonical([accepted.source, env.task.env, env.task.task, env.n_agents, env.state_dim])
    return StoredFunction(
        **_function(accepted, env),
        key=hashlib.sha256(text.encode()).hexdigest(),
        provenance=_provenance(origin, "imported"),
        verdict="; ".join(accepted.notes),
    )


def _function(accepted: Accepted, env: TeamEnv) -> dict[str, Any]:
    named = {"source": accepted.source, "function": accepted.function, "program": accepted.program}
    return {"env": env.task.env, "task": env.task.task, **named}


def _provenance(model: str, procedure: str) -> dict[str, str]:
    return {"model": model, "date": time.strftime("%Y-%m-%d"), "procedure": procedure, "qllm_exp": version("qllm_exp")}


def in_words(options: schema.GenerationConfig) -> str:
    """The procedure in a few words."""
    rounds, candidates = options.rounds, options.candidates
    words = [f"{count(rounds, 'round')} of {count(candidates, 'candidate')}"]
    words += ["chosen by short training"] * (options.selection == "probe")
    words += ["no evaluator"] * (not options.evaluator)
    words += ["errors not told"] * (not options.error_feedback)
    words += ["state not described"] * (not options.state_description)
    words += [f"sample {options.sample}"] * (options.sample > 0)
    return ", ".join(words)
