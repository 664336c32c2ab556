"""A method has the same style in every figure, and one unlike the others: in colour, to colour-blind readers, and in grey."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from qllm_exp.config import registry
from qllm_exp.results.figures.style import Style, method_styles
from qllm_exp.results.records.keys import ORDER, sort_key
from qllm_exp.results.statistics.aggregate import Array

MIXERS, ALGORITHMS = ORDER[:9], ORDER[9:]
CORE = ("tfcaf", "qmix", "vdn", "none")

# Simulations of total colour-blindness on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
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
    """CIE L*a*b* (1976, D65) of a colour as seen with that kind of sight."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(SIGHT[sight] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = to_xyz @ linear / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def lightness(colour: str) -> float:
    """L*, 0 to 100: what is left of a colour in grey."""
    return float(lab(colour, "usual")[0])


def hue(colour: str) -> float:
    """Hue angle in degrees."""
    _, a, b = lab(colour, "usual")
    return float(np.degrees(np.arctan2(b, a)))


def smallest_distance(colours: Iterable[str], sight: str) -> float:
    seen = [lab(colour, sight) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_known_methods_are_far_from_each_other(sight: str) -> None:
    """A distance of 2.3 is just noticeable side by side; lines and markers help from 15 down."""
    styles = method_styles(ORDER)
    assert smallest_distance([styles[name].colour for name in MIXERS], sight) > 16
    assert smallest_distance([styles[name].colour for name in ALGORITHMS], sight) > 25
    assert smallest_distance([style.colour for style in styles.values()], sight) > 8


def test_known_methods_are_told_apart_without_colour() -> None:
    styles = method_styles(ORDER)
    assert len({(style.line, style.marker) for style in styles.values()}) == len(ORDER)
    for group in (MIXERS, ALGORITHMS):
        assert len({styles[name].marker for name in group}) == len({styles[name].hatch for name in group}) == 9
    for part in Style._fields:
        assert len({getattr(styles[name], part) for name in CORE}) == 4


def test_known_methods_are_dark_enough_on_white() -> None:
    assert all(lightness(style.colour) < 75 for style in method_styles(ORDER).values())


def test_every_mixer_of_the_package_is_known() -> None:
    assert set(registry.choices("mixer")) <= set(ORDER)


@pytest.mark.parametrize(
    "name", [*ORDER, "qmix hidden=32", "riit+tfcaf", "riit+tfcaf gamma=0.9", "mine", "mine rate=1"]
)
def test_a_style_is_the_same_in_every_figure(name: str) -> None:
    others = [*ORDER, "other", "tfcaf rounds=1", "maser+qmix", "vdn hidden=64 gamma=0.95"]
    alone = method_styles([name])[name]
    assert all(method_styles([name, *pair])[name] == alone for pair in itertools.combinations(others, 2))
    assert method_styles([*others, name])[name] == alone


def test_an_algorithm_with_its_own_mixer_has_the_style_of_the_algorithm() -> None:
    combined = method_styles(["riit", "maser+maser", "mappo+none"])
    plain = method_styles(["riit", "maser", "mappo"])
    assert list(combined.values()) == list(plain.values())
    both = method_styles(["riit+none", "riit+riit"])
    assert both["riit+none"] == plain["riit"] and both["riit+riit"][:2] != plain["riit"][:2]


@pytest.mark.parametrize("method", ORDER)
def test_a_variant_has_a_shade_of_the_colour_of_its_method(method: str) -> None:
    base = method_styles([method])[method]
    variants = [f"{method} rounds={number}" for number in range(20)]
    styles = method_styles([method, *variants])
    assert len({(style.colour, style.line) for style in styles.values()}) == 21
    shades = {styles[name].colour for name in variants}
    assert base.colour not in shades and len(shades) == 4
    if base.colour != "#000000":  # black and its shades, which are greys, have no hue
        assert all(abs((hue(shade) - hue(base.colour) + 180) % 360 - 180) < 30 for shade in shades)
    levels = sorted(lightness(shade) for shade in shades)
    assert (
        all(later - earlier > 10 for earlier, later in itertools.pairwise(levels)) and 15 < levels[0] < levels[-1] < 75
    )


def test_where_styles_collide_only_the_later_method_changes() -> None:
    names = [f"qmix hidden={number}" for number in range(200)]
    alone = {name: method_styles([name])[name] for name in names}
    first, second = next(pair for pair in itertools.combinations(names, 2) if alone[pair[0]][:2] == alone[pair[1]][:2])
    styles = method_styles([second, first])
    assert styles[first] == alone[first]
    assert styles[second][:2] != alone[first][:2] and styles[second].marker == alone[second].marker


def test_more_variants_than_shades_and_lines_still_differ() -> None:
    styles = method_styles([f"qtran hidden={number}" for number in range(60)])
    assert len(set(styles.values())) == 60


def test_a_mixer_from_outside_has_the_style_of_no_known_method() -> None:
    known = {style[:2] for style in method_styles(ORDER).values()}
    styles = method_styles([f"mixer_{number}" for number in range(40)])
    pairs = {style[:2] for style in styles.values()}
    assert not known & pairs and len(pairs) == 40
    assert method_styles(["mixer_3 hidden=8", "mixer_3"])["mixer_3"] == method_styles(["mixer_3"])["mixer_3"]


def test_the_mixer_beside_an_algorithm_gives_the_marker() -> None:
    styles = method_styles(["tfcaf", "riit+tfcaf", "maser+tfcaf", "maser+qmix"])
    assert {styles[name].marker for name in ("tfcaf", "riit+tfcaf", "maser+tfcaf")} == {"o"}
    assert styles["maser+qmix"].marker == "s"


def test_methods_are_in_the_order_of_the_field() -> None:
    names = ["zeta", "riit+tfcaf", "lica", "vdn", "qplex", "tfcaf rounds=2", "tfcaf rounds=10", "coma+none", "tfcaf"]
    assert sorted(names, key=sort_key) == [
        "tfcaf",
        "tfcaf rounds=2",
        "tfcaf rounds=10",
        "vdn",
        "qplex",
        "riit+tfcaf",
        "coma+none",
        "lica",
        "zeta",
    ]
