"""Fewer of the runs that were collected: those whose keys have given values."""

from collections.abc import Sequence

from qllm_exp.errors import UserError, nearest
from qllm_exp.results import keys
from qllm_exp.results.collect import Collection, Unfinished
from qllm_exp.results.reading import of_name

_SHOWN = 12  # values in a message, at most


def narrow(collection: Collection, given: Sequence[str]) -> Collection:
    """The runs of which all conditions hold; names of methods stay what they are.

    An unfinished run is left out where it is known to have another value; where that is not known (of a function that is not
    written, of a folder that is not there), it stays.

    Args:
        given: conditions as typed: 'mixer=qmix,tfcaf', 'env.task=climbing', 'seed=0-4', 'train.learning_rate=0.001'.

    Raises:
        UserError: for a word that is no condition, an unknown key, and a value that no run has.
    """
    for word in given:
        name, sign, _ = word.partition("=")
        if not sign:
            raise UserError(f"--only {word}: give KEY=VALUE,..., e.g. --only mixer=qmix,tfcaf or --only seed=0-4.")
        if not collection.finished:
            break
        (key,) = keys.resolve([name], collection.finished)
        finished = [(one, str(keys.value(one, key))) for one in collection.finished]
        unfinished = [(one, _known(one, key)) for one in collection.unfinished]
        chosen = _chosen(word, {value for _, value in (*finished, *unfinished) if value is not None})
        bases = {"", *(value.split(" ")[0] for value in chosen)}
        collection = Collection(
            [one for one, value in finished if value in chosen],
            [
                one
                for one, value in unfinished
                if value in chosen or (value is None and (key != keys.METHOD or one.method in bases))
            ],
        )
    return collection


def _known(one: Unfinished, key: str) -> str | None:
    """An unfinished run's value, as a finished one would have it; None where it is not known."""
    if key in keys.TASK_KEYS and one.task:
        return one.task.split("/", 1)[keys.TASK_KEYS.index(key)]
    if key == "seed":
        return None if one.seed is None else str(one.seed)
    if key in one.settings:
        return str(one.settings[key])
    if key in ("mixer.name", "algorithm.name") and one.method:
        return of_name(one.method)[key == "mixer.name"]
    return None


def _chosen(word: str, there: set[str]) -> set[str]:
    """The values that a condition names. One with a comma in it is named as a whole; of a range not all need be there."""
    from qllm_exp.cli import expand_ranges  # Hydra comes with it

    name, _, whole = word.partition("=")
    if whole in there:
        return {whole}
    written = expand_ranges(word)
    wanted = {one.strip() for one in written.partition("=")[2].split(",")}
    lacking = sorted(wanted - there, key=keys.sort_key)
    if lacking and (written == word or not wanted & there):
        known = sorted(there, key=keys.sort_key)
        more = f" and {len(known) - _SHOWN} more" * (len(known) > _SHOWN)
        hint = nearest(lacking[0], there) if written == word else ""
        raise UserError(
            f"--only {word}: no run that is left has {name}={lacking[0]}.{hint} There are: "
            f"{', '.join(known[:_SHOWN])}{more}."
        )
    return wanted
