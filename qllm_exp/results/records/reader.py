"""One run folder to one record, fast enough for tens of thousands of folders."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qllm_exp.config.load import method_name
from qllm_exp.errors import UserError
from qllm_exp.runs.metrics import read_rows
from qllm_exp.runs.run_directory import NOT_IDENTITY

EVERY = "train.evaluation.every"


# Settings that do not say what a method is: the task, the seed, names that stand for other settings, and where and how it ran.
_NOT_A_METHOD = (
    *(
        "seed",
        "env.name",
        "env.task",
        "mixer.file",
        "train.name",
        "train.source",
        EVERY,
        "llm.backend",
        "train.checkpoint.",
    ),
    *("tfcaf.budget_usd", "tfcaf.cache", "tracking.", "sweep.", "device", "dir"),
)
# What the first line of config.yaml says since version 0.2 of the choices' own options; for runs that have no such line.
_UNMARKED = (
    *("env.workers", "algorithm.num_envs", "llm.api_base", "llm.key_env", "llm.timeout_s", "llm.attempts"),
    *("llm.concurrency", "llm.usd_per_million_in", "llm.usd_per_million_out", "llm.path"),
)
_OF_THE_FUNCTION = ("llm.", "tfcaf.")  # how a credit-assignment function came about: nothing to a mixer that uses none
FUNCTION = "mixer.function"  # the setting that stands for the credit-assignment function: digits of its program's hash
SAMPLE = "tfcaf.sample"  # the number of an independent function by the same procedure
_OF_ONE_RUN = re.compile(r"(seed|dir|device|tracking|sweep):")  # blocks that do not say what a method is
_BLOCK = re.compile(r"^(?=\w)", re.MULTILINE)


@dataclass(frozen=True)
class Record:
    """A finished run: what it was, its evaluations and its final figures. Its mappings are shared between records.

    Attributes:
        task: 'lbf/8x8-2p-2f-coop-2s'.
        method: 'tfcaf', 'qmix', 'riit+tfcaf', 'qmix learning_rate=0.001': the fewest settings that tell it from others; the same
            for all samples of one procedure that writes functions (`units` says how these count).
        settings: dotted key to value, of what defines the method; 'mixer.function' stands for a function.
        steps: environment steps of the evaluations, increasing. returns: mean episode return of each.
        result: the run's result.json.
        differs: the settings, all of them, in which the method differs from others of the same mixer on this task.
        final, absolute: the last evaluation row and the row of the absolute metric ({} where a run has none).
        cost, provenance: of the credit-assignment function ({} for a mixer that has none).
        versions: the run's versions.json.
    """

    path: Path
    task: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    steps: tuple[int, ...]
    returns: tuple[float, ...]
    result: Mapping[str, Any]
    differs: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    absolute: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parameters(self) -> int:
        """Trained parameters, agents and mixer together."""
        return sum(self.result.get("parameters", {}).values())

    @property
    def wall_s(self) -> float:
        """Seconds of training, evaluation included; nan where the run does not say."""
        return float(self.result.get("wall_s", math.nan))


class Method(NamedTuple):
    """What a configuration and a function are, whatever the seed. Equal ones are one object within a `Reader`.

    Attributes:
        base: 'qmix', 'riit+tfcaf'. settings: as `Record.settings`.
        identity: what runs of one method have in common. labels: what may name it beside the settings: preset, model.
        every: environment steps between evaluations, which do not change what is learnt.
    """

    task: str
    base: str
    settings: Mapping[str, Any]
    identity: str
    labels: Mapping[str, Any]
    every: Any


class _Function(NamedTuple):
    digits: str
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]


_NO_FUNCTION = _Function("", {}, {})


class Reader:
    """Reads run folders. What is equal in many of them (parts of configurations, functions, versions) is parsed once."""

    def __init__(self) -> None:
        self._blocks: dict[str, dict[str, Any]] = {}
        self._methods: dict[tuple[str, ...], Method] = {}
        self._functions: dict[bytes, _Function] = {}
        self._versions: dict[bytes, Mapping[str, Any]] = {}

    def finished(self, path: Path) -> tuple[Record, Method] | None:
        """The record of a finished run, named by algorithm and mixer alone; None for a run that is not finished.

        Raises:
            UserError: for a finished run whose files are missing or cannot be read.
        """
        found = _bytes(path / "result.json")
        if found is None:
            return None
        result = _json(path / "result.json", found)
        function = self._function(path / "tfcaf.json")
        method, seed = self.method(path, function)
        steps, returns, final, absolute = _evaluations(path / "metrics.jsonl")
        versions = self._parsed_once(path / "versions.json", self._versions, dict)
        record = Record(
            *(path, method.task, method.base, seed, method.settings, steps, returns, result),
            final=final,
            absolute=absolute,
            cost=function.cost,
            provenance=function.provenance,
            versions=versions or {},
        )
        return record, method

    def method(self, path: Path, function: _Function = _NO_FUNCTION) -> tuple[Method, int]:
        """Method and seed from a folder's config.yaml; UserError where there is none."""
        raw = _bytes(path / "config.yaml")
        if raw is None:
            raise UserError(f"{path} has no config.yaml: it is no run folder, or a part of one. Copy the whole folder.")
        blocks = [block for block in _BLOCK.split(raw.decode()) if block]
        own = [block for block in blocks if _OF_ONE_RUN.match(block)]
        key = (*(block for block in blocks if not _OF_ONE_RUN.match(block)), function.digits)
        try:
            if key not in self._methods:
                self._methods[key] = _method(
                    [self._block(block) for block in key[:-1]], _marked(key[0]), function.digits
                )
            seed = next(int(self._block(block)["seed"]) for block in own if block.startswith("seed:"))
        except (yaml.YAMLError, KeyError, TypeError, ValueError, StopIteration) as error:
            said = " ".join(str(error).split()) or "no seed"
            raise UserError(f"{path / 'config.yaml'} is not the configuration of a run: {said}.") from None
        return self._methods[key], seed

    def _block(self, text: str) -> dict[str, Any]:
        """A top-level key of a configuration with all below it. OmegaConf writes each at the start of a line."""
        if text not in self._blocks:
            self._blocks[text] = yaml.load(text, _Loader) or {}
        return self._blocks[text]

    def _function(self, path: Path) -> _Function:
        return self._parsed_once(path, self._functions, _function) or _NO_FUNCTION

    @staticmethod
    def _parsed_once(path: Path, known: dict[bytes, Any], make: Callable[[dict[str, Any]], Any]) -> Any:
        """`make` of a JSON file; None where there is no such file. Remembered by the hash of its text."""
        text = _bytes(path)
        if text is None:
            return None
        digest = hashlib.sha256(text).digest()
        if digest not in known:
            try:
                known[digest] = make(_json(path, text))
            except KeyError as error:
                raise UserError(f"{path} has no {error}. Copy the run's whole folder again.") from None
        return known[digest]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml with what OmegaConf adds to YAML 1.1: 1e-4 is a number, and a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _marked(block: str) -> tuple[str, ...]:
    """Keys that do not define the run, by the line that a configuration begins with."""
    return tuple(block.removeprefix(NOT_IDENTITY).split()) if block.startswith(NOT_IDENTITY) else _UNMARKED


def _method(blocks: list[dict[str, Any]], not_identity: tuple[str, ...], function: str) -> Method:
    config: dict[str, Any] = {}
    for block in blocks:
        config |= block
    algorithm, mixer, env = config["algorithm"]["name"], config["mixer"]["name"], config["env"]
    left_out = _NOT_A_METHOD + not_identity + (() if mixer == "tfcaf" else _OF_THE_FUNCTION)
    settings = {key: value for key, value in _flat(config).items() if not key.startswith(left_out)}
    identity = settings
    if function:  # then the function itself counts, and not who wrote it or how
        settings[FUNCTION] = function
        identity = {key: value for key, value in settings.items() if not key.startswith(_OF_THE_FUNCTION)}
    labels = {key: value for key, value in settings.items() if key not in identity}
    return Method(
        task=f"{env['name']}/{env['task']}",
        base=method_name(algorithm, mixer),
        settings=settings,
        identity=json.dumps(identity, sort_keys=True, default=str),
        labels=labels | {"train.name": config["train"].get("name", "")},
        every=config["train"].get("evaluation", {}).get("every"),
    )


def _flat(node: dict[Any, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat


def _function(entry: dict[str, Any]) -> _Function:
    digits = hashlib.sha256(json.dumps(entry["program"], sort_keys=True).encode()).hexdigest()[:8]
    return _Function(digits, entry.get("cost", {}), entry.get("provenance", {}))


def _evaluations(path: Path) -> tuple[tuple[int, ...], tuple[float, ...], dict[str, Any], dict[str, Any]]:
    """Steps and returns of the evaluations, the last of their rows, and the row of the absolute metric."""
    rows = read_rows(path, "evaluation", "absolute")
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    absolute = [row for row in rows if row["kind"] == "absolute"]
    try:
        steps = tuple(row["env_step"] for row in evaluations)
        returns = tuple(row["return_mean"] for row in evaluations)
    except KeyError as error:
        raise UserError(f"{path} has an evaluation without {error}. Copy the run's folder again.") from None
    if not steps or any(a >= b for a, b in itertools.pairwise(steps)):
        what = "its evaluations are not in the order of their steps" if steps else "it has no evaluation"
        raise UserError(f"{path} is not that of a finished run: {what}. Copy the run's folder again, or leave it out.")
    return steps, returns, evaluations[-1], absolute[-1] if absolute else {}


def _bytes(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not whole: {error}. Copy the run's folder again, or leave it out.") from None
    if not isinstance(read, dict):
        raise UserError(f"{path} holds no JSON object. Copy the run's folder again, or leave it out.")
    return read
