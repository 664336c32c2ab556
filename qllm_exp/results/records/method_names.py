"""Names of methods: as short as possible, while methods with different settings keep different names."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from qllm_exp.results.records.reader import FUNCTION, SAMPLE, Method

_MISSING = object()  # the value of a setting that a variant does not have

_PREFERENCE = {
    "llm.name": 1,
    "llm.model": 2,
    "train.name": 3,
}  # settings that stand for many others; higher is kept longer

Variant = Mapping[str, Any]  # dotted key to value, for all keys that may name a method
MethodKey = tuple[str, str, str]  # task, base, identity


def name_methods(methods: Sequence[Method]) -> list[tuple[str, dict[str, Any]]]:
    """Return the name of each method, and all settings in which it differs from others of its task and mixer.

    A name is algorithm and mixer (`method_name`), followed by as few settings as distinguish the methods of one task. Among
    settings that do so equally well, the hash digits of a function are dropped first, then settings that some methods do not
    have, then other settings, then the provider of a language model, its model, and the training preset (train.name): these
    stand for many settings. The choice is the same for all tasks; a task shows those of them that differ on it. A setting that
    a method does not have is not in its name. Settings of the environment that differ within a task define another task,
    whatever the mixer, so they are in the name of each method that has them. Takes time linear in the number of methods.

    Functions that are samples of one procedure (equal in all but tfcaf.sample) have one name.
    """
    unpooled: dict[tuple[str, str], dict[str, Variant]] = defaultdict(dict)
    for (task, base, identity), variant in _variants(methods).items():
        unpooled[task, base][identity] = variant
    groups = {task_and_base: _pool_samples(group) for task_and_base, group in unpooled.items()}
    variants_of_task: dict[str, list[Variant]] = defaultdict(list)
    for (task, _), group in groups.items():
        variants_of_task[task] += group.values()
    env_keys = {task: _differing_env_keys(variants) for task, variants in variants_of_task.items()}
    names: dict[MethodKey, tuple[str, dict[str, Any]]] = {}
    for base in {base for _, base in groups}:
        tasks = {task: group for (task, group_base), group in groups.items() if group_base == base}
        differing = {task: _differing_keys(list(group.values())) for task, group in tasks.items()}
        kept_keys = minimal_keys([_distinct(group) for group in tasks.values()])
        for task, group in tasks.items():
            shown_keys = sorted({*env_keys[task], *(key for key in kept_keys if key in differing[task])})
            short = short_names(shown_keys)
            for identity, variant in group.items():
                suffix = "".join(f" {short[key]}={variant[key]}" for key in shown_keys if key in variant)
                differs = {key: variant[key] for key in sorted({*env_keys[task], *differing[task]}) if key in variant}
                names[task, base, identity] = (f"{base}{suffix}", differs)
    return [names[_method_key(method)] for method in methods]


def _method_key(method: Method) -> MethodKey:
    return method.task, method.base, method.identity


def _variants(methods: Sequence[Method]) -> dict[MethodKey, Variant]:
    """Return what may name each method: its settings, and the labels on which all of its runs agree."""
    variants: dict[MethodKey, Variant] = {}
    for method in {id(method): method for method in methods}.values():
        key = _method_key(method)
        variant: Variant = {**method.settings, **method.labels}
        known = variants.get(key)
        if known is not None:
            variant = {name: value for name, value in known.items() if variant.get(name, _MISSING) == value}
        variants[key] = variant
    return variants


def _pool_samples(group: Mapping[str, Variant]) -> dict[str, Variant]:
    """Return the variants of a task and mixer by identity, with all samples of one procedure as one variant."""
    procedures: dict[str, list[str]] = defaultdict(list)
    for identity, variant in group.items():
        if FUNCTION in variant:
            procedure = {key: value for key, value in variant.items() if key not in (SAMPLE, FUNCTION)}
            procedures[repr(sorted(procedure.items()))].append(identity)
    pooled = dict(group)
    for identities in procedures.values():
        samples = {group[identity].get(SAMPLE, _MISSING) for identity in identities}
        if len(identities) == len(samples) > 1:
            first = group[identities[0]]
            variant = {key: value for key, value in first.items() if key not in (SAMPLE, FUNCTION)}
            pooled |= dict.fromkeys(identities, variant)
    return pooled


def _differing_keys(variants: Sequence[Variant]) -> list[str]:
    """Return the keys that do not have the same value in all variants, sorted."""
    all_keys = sorted(set().union(*variants))
    return [key for key in all_keys if len({_value(variant, key) for variant in variants}) > 1]


def _differing_env_keys(variants: Sequence[Variant]) -> list[str]:
    """Return the keys of the environment that differ between variants, except the number of its copies."""
    return [key for key in _differing_keys(variants) if key.startswith("env.") and key != "env.num_envs"]


def _distinct(group: Mapping[str, Variant]) -> list[Variant]:
    return list({id(variant): variant for variant in group.values()}.values())


def minimal_keys(tasks: Sequence[Sequence[Variant]]) -> list[str]:
    """Return a minimal set of keys that distinguishes the variants of every task.

    Args:
        tasks: the variants of each task; no two variants of a task are equal.
    """
    differing = [_differing_keys(variants) for variants in tasks]
    partial_keys = {
        key
        for variants, keys in zip(tasks, differing, strict=True)
        for key in keys
        if any(key not in variant for variant in variants)
    }

    def preference(key: str) -> tuple[bool, bool, int, str]:
        return key != FUNCTION, key not in partial_keys, _PREFERENCE.get(key, 0), key

    kept = sorted(set().union(*differing), key=preference)
    for key in list(kept):
        rest = [other for other in kept if other != key]
        if all(_are_distinct(variants, rest) for variants in tasks):
            kept = rest
    return sorted(kept)


def _are_distinct(variants: Sequence[Variant], keys: Sequence[str]) -> bool:
    """Return whether the values of these keys distinguish all variants."""
    return len({tuple(_value(variant, key) for key in keys) for variant in variants}) == len(variants)


def _value(variant: Variant, key: str) -> Hashable:
    value = variant.get(key, _MISSING)
    return repr(value) if isinstance(value, list | dict) else value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return how each key is written in a name: its last part, or the group for its `name`; in full if ambiguous."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    all_names = list(short.values())
    return {key: name if all_names.count(name) == 1 else key for key, name in short.items()}
