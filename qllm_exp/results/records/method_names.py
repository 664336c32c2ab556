"""Names of methods: as short as they can be while runs of different settings keep different names."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from qllm_exp.results.records.reader import FUNCTION, SAMPLE, Method

_ABSENT = object()  # the value of a setting that a variant does not have

_TELLING = {"llm.name": 1, "llm.model": 2, "train.name": 3}  # settings that stand for others, by how much they say

Variant = Mapping[str, Any]  # dotted key to value, of all that may name it


def names(methods: Sequence[Method]) -> list[tuple[str, dict[str, Any]]]:
    """For each method its name, and all the settings in which it differs from others of its task and mixer.

    The name is of algorithm and mixer (`method_name`), followed by as few settings as tell apart the
    methods of one task. Among settings that do so equally well, digits of a function's hash are given up first, then
    settings that some methods do not have, then others, then a language model's provider, its model, and a training preset
    (train.name), which stand for many settings. The choice is one for all tasks; a task shows those of them that differ
    in it. A setting that a method does not have is not in its name. Settings of the environment that differ within a task
    make another task of it, whatever the mixer: they are in the name of each method that has them. Takes time linear in the
    number of methods.

    Functions that are samples of one procedure (equal in all but tfcaf.sample) have one name.
    """
    apart: dict[tuple[str, str], dict[str, Variant]] = defaultdict(dict)
    for (task, base, identity), variant in _variants(methods).items():
        apart[task, base][identity] = variant
    variants = {place: _without_samples(group) for place, group in apart.items()}
    of_task: dict[str, list[Variant]] = defaultdict(list)
    for (task, _), group in variants.items():
        of_task[task] += group.values()
    of_env = {task: _of_the_environment(group) for task, group in of_task.items()}
    named: dict[tuple[str, str, str], tuple[str, dict[str, Any]]] = {}
    for base in {base for _, base in variants}:
        tasks = {task: group for (task, of), group in variants.items() if of == base}
        differing = {task: _differing(list(group.values())) for task, group in tasks.items()}
        kept = fewest([_distinct(group) for group in tasks.values()])
        for task, group in tasks.items():
            shown = sorted({*of_env[task], *(key for key in kept if key in differing[task])})
            shorter = words(shown)
            for identity, variant in group.items():
                extra = "".join(f" {shorter[key]}={variant[key]}" for key in shown if key in variant)
                differs = {key: variant[key] for key in sorted({*of_env[task], *differing[task]}) if key in variant}
                named[task, base, identity] = (f"{base}{extra}", differs)
    return [named[_key(one)] for one in methods]


def _key(one: Method) -> tuple[str, str, str]:
    return one.task, one.base, one.identity


def _variants(methods: Sequence[Method]) -> dict[tuple[str, str, str], Variant]:
    """What may name each method: its settings, and the labels on which all of its runs agree."""
    found: dict[tuple[str, str, str], Variant] = {}
    for one in {id(method): method for method in methods}.values():
        every, known = {**one.settings, **one.labels}, found.get(_key(one))
        if known is not None:
            every = {key: value for key, value in known.items() if every.get(key, _ABSENT) == value}
        found[_key(one)] = every
    return found


def _without_samples(group: Mapping[str, Variant]) -> dict[str, Variant]:
    """What names each method of a task and mixer, samples of one procedure being one. By identity, as given."""
    procedures: dict[str, list[str]] = defaultdict(list)
    for identity, variant in group.items():
        if FUNCTION in variant:
            rest = {key: value for key, value in variant.items() if key not in (SAMPLE, FUNCTION)}
            procedures[repr(sorted(rest.items()))].append(identity)
    named = dict(group)
    for alike in procedures.values():
        if len(alike) == len({group[one].get(SAMPLE, _ABSENT) for one in alike}) > 1:
            pooled = {key: value for key, value in group[alike[0]].items() if key not in (SAMPLE, FUNCTION)}
            named |= dict.fromkeys(alike, pooled)
    return named


def _differing(variants: Sequence[Variant]) -> list[str]:
    """Keys that have not the same value in all variants, in order."""
    keys = sorted(set().union(*variants))
    return [key for key in keys if len({_value(one, key) for one in variants}) > 1]


def _of_the_environment(variants: Sequence[Variant]) -> list[str]:
    """Keys of the environment that have not the same value in all variants, but for the number of its copies."""
    return [key for key in _differing(variants) if key.startswith("env.") and key != "env.num_envs"]


def _distinct(group: Mapping[str, Variant]) -> list[Variant]:
    return list({id(one): one for one in group.values()}.values())


def fewest(tasks: Sequence[Sequence[Variant]]) -> list[str]:
    """Keys that tell apart the variants of every task, none of which can be left out. No two variants of a task are alike."""
    differing = [_differing(variants) for variants in tasks]
    lacking = {
        key
        for variants, keys in zip(tasks, differing, strict=True)
        for key in keys
        if any(key not in one for one in variants)
    }

    def worth(key: str) -> tuple[bool, bool, int, str]:
        return key != FUNCTION, key not in lacking, _TELLING.get(key, 0), key

    kept = sorted(set().union(*differing), key=worth)
    for key in list(kept):
        rest = [other for other in kept if other != key]
        if all(len({tuple(_value(one, k) for k in rest) for one in variants}) == len(variants) for variants in tasks):
            kept = rest
    return sorted(kept)


def _value(variant: Variant, key: str) -> Hashable:
    value = variant.get(key, _ABSENT)
    return repr(value) if isinstance(value, list | dict) else value


def words(keys: Sequence[str]) -> dict[str, str]:
    """How a key is written in a name: its last part, a group for its `name`, or in full where two would be alike."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    alike = list(short.values())
    return {key: word if alike.count(word) == 1 else key for key, word in short.items()}
