"""`python -m qllm_exp.tfcaf`: generate, list, show, explain, verify and import credit-assignment functions."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.config.overrides import search_in
from qllm_exp.errors import UserError

_COMMANDS = {
    "generate": "ask a language model for the function of a task, or find the one it wrote before",
    "list": "all stored functions",
    "show": "a stored function: source and where it comes from",
    "explain": "pictures and tables of the credit that a function gives",
    "verify": "put a Python file with a function through the verifier",
    "import": "verify a Python file and store its function, for mixer.file=KEY",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qllm_exp.tfcaf", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in _COMMANDS.items()
    }
    for name in ("show", "explain"):
        of[name].add_argument(
            "function", metavar="HASH", help="first digits of its key, or a file, or ENV/TASK of a bundled one"
        )
    for name in ("verify", "import"):
        of[name].add_argument("file", metavar="FILE", type=Path, help="Python file with the one function")
    of["generate"].add_argument("--dry-run", action="store_true", help="print prompts and the estimated cost; no call")
    of["generate"].add_argument(
        "--output", type=Path, metavar="FILE", help="also write the stored function to this file"
    )
    of["show"].add_argument("--prompt", action="store_true", help="the prompts")
    of["show"].add_argument(
        "--transcript", action="store_true", help="every call with its answer and what became of it"
    )
    of["explain"].add_argument("--output", type=Path, metavar="FOLDER", help="where to write; default: tfcaf_KEY")
    of["explain"].add_argument(
        "--policy", type=Path, metavar="RUN_FOLDER", help="act as this finished run; default: at random"
    )
    overrides = "KEY=VALUE of the configuration, e.g. env=lbf env.task=10x10-3p-3f-2s llm=openai tfcaf.rounds=1"
    for one in of.values():
        one.add_argument(
            "--config-dir", metavar="FOLDER", help="YAML files of your own, as python -m qllm_exp takes them"
        )
        one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Exit codes: 0 done, 1 refused by the verifier, 2 wrong call or no function, 3 stopped by Ctrl-C."""
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command = {
        "generate": _generate,
        "list": _list,
        "show": _show,
        "explain": _explain,
        "verify": _verify,
        "import": _import,
    }
    try:
        if given.config_dir is not None:
            given.overrides.insert(0, search_in(given.config_dir))
        return command[given.command](given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the answers so far", file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader has seen enough, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(overrides: Sequence[str]) -> schema.RunConfig:
    """The checked configuration for these overrides, with mixer=tfcaf."""
    return compose_run(["mixer=tfcaf", *overrides])


def _generate(given: argparse.Namespace) -> int:
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide
    from qllm_exp.sweep.prepare import check, prepare

    run = _run(given.overrides)
    if given.dry_run:
        return _dry_run(run)
    ready = prepare(check(run))
    path = provide.locate(ready.run).path
    stored = stored_function.load(path)
    if given.output:
        stored.save(given.output)
    print(given.output or path)
    return 0


def _dry_run(run: Any) -> int:
    from qllm_exp.generation import provide
    from qllm_exp.generation.cost_estimate import estimate

    prompts = provide.prompts_of(run)
    for title, text in (
        ("coder, system", prompts.coder_system),
        ("coder, first message", prompts.coder_request),
        ("evaluator, system", prompts.evaluator_system),
    ):
        print(f"--- {title} ---\n{text}")
    if not hasattr(run.llm, "backend"):
        print(f"llm={run.llm.name} asks nobody.")
        return 0
    source = provide.locate(run)
    print(f"key {source.key}\n{provide.in_words(run.tfcaf)}; {estimate(prompts, run.tfcaf, run.llm)}")
    if source.is_there:
        print(f"stored already, so no call would be made: {source.path}")
    return 0


def _list(given: argparse.Namespace) -> int:
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide

    store = provide.store_of(_run(given.overrides))
    rows: list[tuple[str, ...]] = [("key", "env/task", "model", "date", "procedure", "USD")]
    for path in store.paths():
        rows.append(_row(path.stem[:12], path))
    for path in sorted(stored_function.BUNDLED.glob("*/*.json")):
        rows.append(_row("bundled", path))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(key: str, path: Path) -> tuple[str, ...]:
    from qllm_exp.credit import stored_function

    try:
        one = stored_function.load(path)
    except UserError as error:
        return key, f"not valid: {error}", "", "", "", ""
    usd = one.cost.get("usd")
    of = one.provenance
    words = (of.get("model", ""), of.get("date", ""), of.get("procedure", ""), "" if usd is None else f"{usd:.4f}")
    return (key, f"{one.env}/{one.task}", *words)


def _found(name: str, run: Any) -> Any:
    """The stored function that a user means: a file, a bundled task, or the first digits of a key."""
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide

    if Path(name).is_file():
        return stored_function.load(name)
    env, _, task = name.partition("/")
    if task:
        return stored_function.load(stored_function.bundled(env, task))
    return stored_function.load(provide.store_of(run).find(name))


def _show(given: argparse.Namespace) -> int:
    one = _found(given.function, _run(given.overrides))
    if given.prompt:
        first = next((row["messages"][-1]["content"] for row in one.transcript), "")
        for title, text in (*one.prompts.items(), ("first message", first)):
            print(f"--- {title} ---\n{text}")
        return 0
    if given.transcript:
        for row in one.transcript:
            print(f"--- {row['call']}: {row['outcome']} ---\n{row['messages'][-1]['content']}\n\n{row['answer']}\n")
        return 0
    facts = {"env/task": f"{one.env}/{one.task}", **one.provenance, "key": one.key, "calls": one.cost.get("calls", 0)}
    facts |= {"cost": json.dumps(one.cost), "verdict": one.verdict, "file": one.path}
    for name, value in facts.items():
        print(f"# {name}: {value}")
    print(f"\n{one.source}", end="")
    return 0


def _explain(given: argparse.Namespace) -> int:
    from qllm_exp.explain.explain import explain
    from qllm_exp.explain.policy import load_policy
    from qllm_exp.generation import provide

    run = _run(given.overrides)
    one = _found(given.function, run)
    if not any(word.partition("=")[0] in ("env", "env.name") for word in given.overrides):
        run = _run([f"env={one.env}", f"env.task={one.task}", *given.overrides])
    folder = given.output or Path(f"tfcaf_{one.key[:12]}")
    with provide.environment(run) as env:
        one.check_fits(env)
        act = load_policy(given.policy, env) if given.policy else None
        for path in explain(one, env, folder, provide.enforced(run, env), act):
            print(path)
    return 0


def _accepted(given: argparse.Namespace, env: Any, enforce: bool) -> Any:
    from qllm_exp.generation.verify import verify

    try:
        source = given.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given.file} cannot be read: {error}.") from None
    return verify(source, env, enforce)


def _verify(given: argparse.Namespace) -> int:
    return _judge(given, keep=False)


def _import(given: argparse.Namespace) -> int:
    return _judge(given, keep=True)


def _judge(given: argparse.Namespace, keep: bool) -> int:
    from qllm_exp.credit.refused import Refused
    from qllm_exp.generation import provide

    run = _run(given.overrides)
    with provide.environment(run) as env:
        gate = provide.enforced(run, env)
        try:
            accepted = _accepted(given, env, gate)
        except Refused as refused:
            print(f"refused ({refused.stage}): {refused.reason}", file=sys.stderr)
            return 1
        affine = "affine in the agents' Qs" if accepted.affine else "not affine in the agents' Qs"
        print(f"accepted for {run.env.name}/{run.env.task}, IGM gate {'on' if gate else 'off'}: {affine}")
        for note in accepted.notes:
            print(f"  {note}")
        if keep:
            made = provide.imported(accepted, env, f"file {given.file.name}")
            path = provide.store_of(run).add(made.key, made)
            print(f"stored: {path}\nuse it with: mixer=tfcaf mixer.file={made.key[:12]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
