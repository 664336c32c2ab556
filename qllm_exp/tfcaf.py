"""The command `python -m qllm_exp.tfcaf`: generate, search, list, show, explain, verify and import credit-assignment functions."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qllm_exp.config import schema
from qllm_exp.config.compose import compose_run
from qllm_exp.config.device import resolve_device
from qllm_exp.config.load import with_num_envs
from qllm_exp.config.overrides import search_path_override
from qllm_exp.errors import UserError
from qllm_exp.utils.command_line import parse_subcommand
from qllm_exp.utils.text import inert, inert_lines

if TYPE_CHECKING:  # torch is imported only when a command needs it
    from qllm_exp.credit.stored_function import StoredFunction
    from qllm_exp.envs.base import TeamEnv

_DESCRIPTION = """\
Training-free credit-assignment functions (TFCAFs): Python functions that a language model writes and that take the place
of a trained mixing network. This command generates and searches, lists, shows, explains, verifies and imports them.
"""
_EPILOG = """\
examples:
  %(prog)s generate env=lbf llm=openai --dry-run       prompts and cost estimate, without a call
  %(prog)s generate env=lbf llm=openai                 generate the function, or find the stored one
  %(prog)s search env=lbf llm=openai                   generations of functions, chosen and improved by their returns
  %(prog)s report runs/search_1a2b3c4d                 the page of a search: family tree, best function, costs
  %(prog)s list                                        keys of all stored and bundled functions
  %(prog)s show lbf/8x8-2p-2f-coop-2s --transcript     the calls that led to a bundled function
  %(prog)s explain 3f9a2c --output figures             figures and tables of its credit
  %(prog)s import my_function.py env=lbf               verify and store a function of your own

To train with a stored function: python -m qllm_exp env=lbf mixer=tfcaf mixer.file=KEY

exit codes: 0 done, 1 refused by verification, 2 invalid command or no function, 3 interrupted
"""
_BUDGET = "tfcaf.budget_usd="  # the option that a search may be resumed with
_COMMANDS = {
    "generate": "generate the function of a task with a language model, or find the stored one; print its file",
    "search": "search for a function by the returns of trainings, or continue a search; print the file of the best function",
    "report": "write the page of a search: family tree, best function, costs; print its file",
    "list": "list all stored and bundled functions",
    "show": "print the source of a function and its origin",
    "explain": "write figures and tables of the credit that a function assigns",
    "verify": "verify a Python file with a function",
    "import": "verify a Python file with a function and store it; print its key for mixer.file=KEY",
}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="qllm-exp tfcaf",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {
        name: subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        for name, text in _COMMANDS.items()
    }
    for name in ("show", "explain"):
        commands[name].add_argument(
            "function",
            metavar="HASH",
            help="the first digits of the function's key, a file, or ENV/TASK of a bundled function",
        )
    commands["report"].add_argument("folder", metavar="FOLDER", type=Path, help="directory of a search")
    commands["report"].add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=".html; default: report.html in the directory of the search"
    )
    commands["report"].add_argument(
        "--no-credit", action="store_true", help="skip the credit figure of the best function, which takes seconds"
    )
    for name in ("verify", "import"):
        commands[name].add_argument("file", metavar="FILE", type=Path, help="Python file with a single function")
    commands["generate"].add_argument(
        "--dry-run", action="store_true", help="print the prompts and the estimated cost; make no call"
    )
    commands["generate"].add_argument(
        "--output", type=Path, metavar="FILE", help="also write the stored function to this file"
    )
    commands["show"].add_argument("--prompt", action="store_true", help="print the prompts instead")
    commands["search"].add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="continue the search of this directory, e.g. runs/search_1a2b3c4d; options of the search need not be repeated; "
        "tfcaf.budget_usd=... may raise its budget",
    )
    commands["show"].add_argument(
        "--transcript", action="store_true", help="print every call with its answer and its outcome instead"
    )
    commands["explain"].add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder to write to (default: explain/ in the run folder that --policy or the function's file is in)",
    )
    commands["explain"].add_argument(
        "--policy",
        type=Path,
        metavar="RUN_FOLDER",
        help="play with the policy of this finished run (default: random actions)",
    )
    commands["report"].set_defaults(config_dir=[])  # the search has its whole configuration in its directory
    for name, command in commands.items():
        if name == "report":
            continue
        command.add_argument(
            "--config-dir",
            metavar="FOLDER",
            action="append",
            default=[],
            help="folder with YAML files of your own, as for python -m qllm_exp",
        )
        command.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="KEY=VALUE",
            help="configuration overrides, e.g. env=lbf env.task=10x10-3p-3f-2s llm=openai tfcaf.rounds=1",
        )
    return parse_subcommand(parser, subparsers, arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: the command line, without the name of the program.

    Returns:
        The exit code: 0 done, 1 refused by verification, 2 invalid command or no function, 3 interrupted by Ctrl-C.
    """
    parsed_args = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "generate": _generate,
        "search": _search,
        "report": _report,
        "list": _list,
        "show": _show,
        "explain": _explain,
        "verify": _verify,
        "import": _import,
    }
    try:
        if parsed_args.config_dir:
            parsed_args.overrides = [search_path_override(parsed_args.config_dir), *parsed_args.overrides]
        return commands[parsed_args.command](parsed_args)
    except UserError as error:
        print(f"error: {inert_lines(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the answers so far", file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader, e.g. head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(overrides: Sequence[str]) -> schema.RunConfig:
    """Compose and check the configuration of these overrides with mixer=tfcaf."""
    return compose_run(["mixer=tfcaf", *overrides])


def _generate(parsed_args: argparse.Namespace) -> int:
    """Generate the function of a task, or find the stored one."""
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide
    from qllm_exp.sweep.prepare import check, prepare

    run = _run(parsed_args.overrides)
    if parsed_args.dry_run:
        return _dry_run(run)
    prepared = prepare(check(run))
    path = provide.locate(prepared.config).path
    function = stored_function.load(path)
    if parsed_args.output:
        function.save(parsed_args.output)
    print(parsed_args.output or path)
    return 0


def _search(parsed_args: argparse.Namespace) -> int:
    """Search for the function of a task, or find the stored one."""
    from qllm_exp.config.compose import compose_launcher
    from qllm_exp.generation import provide
    from qllm_exp.search import search
    from qllm_exp.search.procedure import search_path
    from qllm_exp.search.search_directory import SearchDirectory
    from qllm_exp.sweep.launch import make_launcher
    from qllm_exp.sweep.prepare import check

    options = compose_launcher(parsed_args.overrides)
    launcher = make_launcher(options | {"wait": True} if options["name"] == "slurm" else options)
    if parsed_args.resume is None:
        run = _run(["tfcaf.search.method=evolve", *parsed_args.overrides])
    else:
        allowed = ("hydra/launcher=", "hydra.launcher.", _BUDGET)
        others = [text for text in parsed_args.overrides if not text.startswith(allowed)]
        if others:
            raise UserError(
                f"--resume continues a search with its own options, so {others[0]} cannot change it. Remove the override (allowed: "
                f"hydra/launcher=... and its options, {_BUDGET}...), or start another search without --resume."
            )
        run = SearchDirectory(parsed_args.resume).read_config()
        run = replace(run, dir=str(parsed_args.resume.resolve().parent))
        budgets = [text for text in parsed_args.overrides if text.startswith(_BUDGET)]
        if budgets:
            run = replace(run, tfcaf=replace(run.tfcaf, budget_usd=_run(budgets).tfcaf.budget_usd))
    run = check(run, launcher.device_resolver(), launcher.memory)
    if parsed_args.resume is not None and not provide.locate(run).exists:
        path = search_path(run)
        if path.resolve() != parsed_args.resume.resolve():
            raise UserError(
                f"{parsed_args.resume} cannot be resumed: its configuration now belongs to {path}. The folder was renamed, or this "
                "version of the package has other prompts or options. Restore the name, or install the version that began it."
            )
    print(provide.provide(run, lambda checked: search(checked, launcher)))
    return 0


def _report(parsed_args: argparse.Namespace) -> int:
    """Write the page of a search, and print its path."""
    from qllm_exp.results.commands import page_path, write_file
    from qllm_exp.search.report import search_report  # matplotlib is slow to import

    path = page_path(parsed_args.output, parsed_args.folder)
    write_file(path, search_report(parsed_args.folder, not parsed_args.no_credit))
    print(path)
    return 0


def _dry_run(run: schema.RunConfig) -> int:
    """Print the prompts and the cost estimate of a generation."""
    from qllm_exp.generation import provide
    from qllm_exp.generation.cost_estimate import describe_cost

    device = resolve_device(run.device)
    run = with_num_envs(replace(run, device=device), device.partition(":")[0])  # the key of a search depends on it
    prompts = provide.prompts_for(run)
    for title, text in (
        ("coder, system", prompts.coder_system),
        ("coder, first message", prompts.coder_request),
        ("evaluator, system", prompts.evaluator_system),
    ):
        print(f"--- {title} ---\n{text}")
    if not hasattr(run.llm, "backend"):
        print(f"llm={run.llm.name} makes no calls.")
        return 0
    file = provide.locate(run)
    print(f"key {file.key}\n{provide.describe_procedure(run.tfcaf)}; {describe_cost(prompts, run.tfcaf, run.llm)}")
    if file.exists:
        print(f"already stored, so no call would be made: {file.path}")
    return 0


def _list(parsed_args: argparse.Namespace) -> int:
    """List all stored and bundled functions."""
    from qllm_exp.credit import stored_function
    from qllm_exp.generation import provide

    store = provide.function_store(_run(parsed_args.overrides))
    rows: list[tuple[str, ...]] = [("key", "env/task", "model", "date", "procedure", "USD")]
    for path in store.paths():
        rows.append(_row(inert(path.stem[:12]), path))
    for path in sorted(stored_function.BUNDLED.glob("*/*.json")):
        rows.append(_row("bundled", path))
    complete = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in complete) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    return 0


def _row(key: str, path: Path) -> tuple[str, ...]:
    """Return the row of a stored function in the list; key and fault alone if its file is not valid."""
    from qllm_exp.credit import stored_function

    try:
        function = stored_function.load(path)
    except UserError as error:
        return key, f"not valid: {inert(error)}"
    usd = function.cost.get("usd")
    return (
        key,
        f"{function.env}/{function.task}",
        *(inert(function.provenance.get(name, "")) for name in ("model", "date", "procedure")),
        "" if usd is None else f"{usd:.4f}",
    )


def _show(parsed_args: argparse.Namespace) -> int:
    """Print a stored function, its prompts or its transcript."""
    from qllm_exp.generation.provide import find_function

    function = find_function(parsed_args.function, _run(parsed_args.overrides))
    if parsed_args.prompt:
        for title, text in function.prompts.items():
            print(f"--- {inert(title)} ---\n{inert_lines(text)}")
        first_message = function.transcript[0]["messages"][-1]["content"] if function.transcript else ""
        print(f"--- first message ---\n{inert_lines(first_message)}")
    elif parsed_args.transcript:
        for row in function.transcript:
            title = f"{inert(row['call'])}: {inert_lines(row['outcome'])}"
            texts = f"{inert_lines(row['messages'][-1]['content'])}\n\n{inert_lines(row['answer'])}"
            print(f"--- {title} ---\n{texts}\n")
    else:
        _print_source(function)
    return 0


def _print_source(function: "StoredFunction") -> None:
    """Print where a function comes from, as comments, and its source."""
    details = {
        "env/task": f"{function.env}/{function.task}",
        **function.provenance,
        "key": function.key,
        "calls": function.cost.get("calls", 0),
        "cost": json.dumps(function.cost),
        "verdict": function.verdict,
        "file": function.path,
    }
    for name, value in details.items():
        print(f"# {inert(name)}: {inert(value)}")
    print(f"\n{inert_lines(function.source)}", end="")


def _explain(parsed_args: argparse.Namespace) -> int:
    """Write figures and tables of the credit that a function assigns; print their files."""
    from qllm_exp.config import registry
    from qllm_exp.envs import imports_task
    from qllm_exp.explain.explain import explain
    from qllm_exp.explain.policy import load_policy
    from qllm_exp.generation import provide

    run = _run(parsed_args.overrides)
    function = provide.find_function(parsed_args.function, run)
    overridden_keys = [override.partition("=")[0] for override in parsed_args.overrides]
    if "env" not in overridden_keys and "env.name" not in overridden_keys:
        if not parsed_args.config_dir and function.env not in registry.choices("env"):
            raise UserError(
                f"{inert(parsed_args.function)} is for env {function.env!r}, which is not an environment of this package. To "
                "open it, name it: add env.name=MODULE env.task=TASK, or --config-dir FOLDER with its YAML file."
            )
        if "env.task" not in overridden_keys and imports_task(function.env, function.task):
            raise UserError(
                f"{inert(parsed_args.function)} is for the task {function.task!r}, a Python module that is not a known task of "
                f"env={function.env}. If you trust that module, add env={function.env} env.task={function.task}."
            )
        # Of what a file says, only this exact word becomes part of a command.
        state = ["env.state=observations"] if function.state_kind == "observations" else []
        run = _run([f"env={function.env}", f"env.task='{function.task}'", *state, *parsed_args.overrides])
    folder = parsed_args.output or _explain_folder(parsed_args.policy, function.path, parsed_args.function)
    with provide.small_environment(run) as env:
        function.check_fits(env)
        policy = load_policy(parsed_args.policy, env) if parsed_args.policy else None
        for path in explain(function, env, folder, provide.igm_enforced(run, env), policy):
            print(inert(path))
    return 0


def _explain_folder(run: Path | None, file: Path | None, name: str) -> Path:
    """Return the folder for figures where none is named: inside the run that they are about.

    Args:
        run: directory of the run whose policy plays.
        file: file of the function.
        name: the function, as typed.

    Raises:
        UserError: they are not about a run.
    """
    from qllm_exp.runs.run_directory import CONFIG

    if run is None and file is not None and (file.parent / CONFIG).exists():
        run = file.parent
    if run is None:
        raise UserError(
            f"{inert(name)} is not in a run folder, so name a folder for the figures: add --output FOLDER "
            "(or --policy RUN_FOLDER, to see the team of a finished run; they are then written into that folder)."
        )
    return run / "explain"


def _verify(parsed_args: argparse.Namespace) -> int:
    """Verify a Python file."""
    return _verify_file(parsed_args, store=False)


def _import(parsed_args: argparse.Namespace) -> int:
    """Verify a Python file and store its function."""
    return _verify_file(parsed_args, store=True)


def _verify_file(parsed_args: argparse.Namespace, store: bool) -> int:
    """Verify a Python file, print the verdict, and store the function if `store` is true and it is accepted."""
    from qllm_exp.credit.refused import Refused
    from qllm_exp.generation import provide
    from qllm_exp.generation.verify import verify

    run = _run(parsed_args.overrides)
    with provide.small_environment(run) as env:
        enforce = provide.igm_enforced(run, env)
        try:
            accepted = verify(_read_source(parsed_args.file), env, enforce)
        except Refused as refused:
            print(f"refused ({refused.stage}): {inert_lines(refused.reason)}", file=sys.stderr)
            if refused.stage == "run":
                print(f"  {_state_sizes(env)}", file=sys.stderr)
            return 1
        gate = "on" if enforce else "off"
        affine = "affine" if accepted.affine else "not affine"
        print(f"accepted for {run.env.name}/{run.env.task}, IGM gate {gate}: {affine} in the agents' Qs")
        for note in accepted.notes:
            print(f"  {inert_lines(note)}")
        if store:
            function = provide.import_function(accepted, env, f"file {parsed_args.file.name}")
            path = provide.function_store(run).add(function.key, function)
            print(f"stored: {path}\nuse it with: mixer=tfcaf mixer.file={function.key[:12]}")
    return 0


def _state_sizes(env: "TeamEnv") -> str:
    """Say how wide the states of an environment are: a function that was written for the other one usually fails."""
    observed = f"{env.n_agents * env.obs_dim} columns with env.state=observations, {env.obs_dim} for each of {env.n_agents} agents"
    if env.state_kind == "observations":
        return f"global_state has {observed}"
    return f"global_state has {env.state_dim} columns with env.state={env.state_kind}; it has {observed}"


def _read_source(path: Path) -> str:
    """Read a Python file of the user; raises a UserError if that fails."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
