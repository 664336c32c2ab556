"""A method looks the same in every figure, and unlike the others: in colour, to colour-blind eyes, and in grey."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from qllm_exp.config import registry
from qllm_exp.results.figures.style import Style, lightness, looks
from qllm_exp.results.records.keys import ORDER, sort_key
from qllm_exp.results.statistics.aggregate import Array

MIXERS, ALGORITHMS = ORDER[:8], ORDER[8:]
CORE = ("tfcaf", "qmix", "vdn", "none")

# Simulations of complete colour-blindness on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: str, sight: str) -> Array:
    """CIE L*a*b* (1976, D65) of a colour as that sight sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(SIGHT[sight] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = to_xyz @ linear / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: Iterable[str], sight: str) -> float:
    seen = [lab(one, sight) for one in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_known_methods_are_far_from_each_other(sight: str) -> None:
    """A distance of 2.3 is just noticeable side by side; lines and markers help from 15 down."""
    found = looks(ORDER)
    assert nearest([found[one].colour for one in MIXERS], sight) > 16
    assert nearest([found[one].colour for one in ALGORITHMS], sight) > 30
    assert nearest([one.colour for one in found.values()], sight) > 8


def test_known_methods_are_told_apart_without_colour() -> None:
    found = looks(ORDER)
    assert len({(one.line, one.marker) for one in found.values()}) == len(ORDER)
    for group in (MIXERS, ALGORITHMS):
        assert len({found[one].marker for one in group}) == len({found[one].hatch for one in group}) == 8
    for part in Style._fields:
        assert len({getattr(found[one], part) for one in CORE}) == 4


def test_no_known_method_is_lost_on_white() -> None:
    assert all(lightness(np.array(to_rgb(one.colour))) < 75 for one in looks(ORDER).values())


def test_lightness_is_that_of_cielab() -> None:
    for colour in ("#000000", "#ffffff", "#D55E00", "#0a0b0c", "#56B4E9"):
        assert float(lightness(np.array(to_rgb(colour)))) == pytest.approx(lab(colour, "usual")[0], abs=0.01)


def test_every_mixer_of_the_package_is_known() -> None:
    assert set(registry.choices("mixer")) <= set(ORDER)


@pytest.mark.parametrize(
    "name", [*ORDER, "qmix hidden=32", "riit+tfcaf", "riit+tfcaf gamma=0.9", "mine", "mine rate=1"]
)
def test_a_look_is_the_same_whatever_is_beside_it(name: str) -> None:
    beside = [*ORDER, "other", "tfcaf rounds=1", "maser+qmix", "vdn hidden=64 gamma=0.95"]
    alone = looks([name])[name]
    assert all(looks([name, *some])[name] == alone for some in itertools.combinations(beside, 2))
    assert looks([*beside, name])[name] == alone


def test_an_algorithm_with_its_own_mixer_looks_like_itself() -> None:
    found = looks(["riit", "maser+maser", "mappo+none"])
    plain = looks(["riit", "maser", "mappo"])
    assert list(found.values()) == list(plain.values())
    both = looks(["riit+none", "riit+riit"])
    assert both["riit+none"] == plain["riit"] and both["riit+riit"][:2] != plain["riit"][:2]


def hue(colour: str) -> float:
    _, a, b = lab(colour, "usual")
    return float(np.degrees(np.arctan2(b, a)))


def test_a_variant_has_the_hue_of_its_method_in_other_shades() -> None:
    base = looks(["tfcaf"])["tfcaf"]
    names = [f"tfcaf rounds={at}" for at in range(20)]
    found = looks(["tfcaf", *names])
    assert len({(one.colour, one.line) for one in found.values()}) == 21
    shades = {found[name].colour for name in names}
    assert base.colour not in shades and len(shades) == 4
    assert all(abs(hue(one) - hue(base.colour)) < 25 for one in shades)
    greys = sorted(float(lightness(np.array(to_rgb(one)))) for one in shades)
    assert all(b - a > 10 for a, b in itertools.pairwise(greys)) and 15 < greys[0] < greys[-1] < 75


def test_where_looks_collide_only_the_later_one_changes() -> None:
    names = [f"qmix hidden={at}" for at in range(200)]
    alone = {name: looks([name])[name] for name in names}
    first, second = next(pair for pair in itertools.combinations(names, 2) if alone[pair[0]][:2] == alone[pair[1]][:2])
    found = looks([second, first])
    assert found[first] == alone[first]
    assert found[second][:2] != alone[first][:2] and found[second].marker == alone[second].marker


def test_more_variants_than_shades_still_differ() -> None:
    found = looks([f"qtran hidden={at}" for at in range(60)])
    assert len(set(found.values())) == 60


def test_a_mixer_from_outside_looks_like_no_known_one() -> None:
    known = {one[:2] for one in looks(ORDER).values()}
    strangers = [f"mixer_{at}" for at in range(40)]
    found = looks(strangers)
    assert not known & {one[:2] for one in found.values()} and len({one[:2] for one in found.values()}) == 40
    assert looks(["mixer_3 hidden=8", "mixer_3"])["mixer_3"] == looks(["mixer_3"])["mixer_3"]


def test_the_mixer_beside_an_algorithm_gives_the_marker() -> None:
    found = looks(["tfcaf", "riit+tfcaf", "maser+tfcaf", "maser+qmix"])
    assert {found[one].marker for one in ("tfcaf", "riit+tfcaf", "maser+tfcaf")} == {"o"}
    assert found["maser+qmix"].marker == "s"


def test_methods_are_in_the_order_of_the_field() -> None:
    given = ["zeta", "riit+tfcaf", "lica", "vdn", "qplex", "tfcaf rounds=2", "tfcaf rounds=10", "coma+none", "tfcaf"]
    assert sorted(given, key=sort_key) == [
        *("tfcaf", "tfcaf rounds=2", "tfcaf rounds=10", "vdn", "qplex", "riit+tfcaf", "coma+none", "lica", "zeta")
    ]
