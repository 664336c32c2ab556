"""The family tree: a box per function, a line from each parent, the lineage of the best function, refused candidates."""

import math
import re
from xml.etree import ElementTree

from qllm_exp.search.archive import Member
from qllm_exp.search.family_tree import family_tree


def member(key: str, generation: int, parents: tuple[str, ...] = (), value: float = 0.0, **options: bool) -> Member:
    tuned = options.get("tuned", False)
    name = f"generation-{generation}-{'tuned' if tuned else 'candidate-' + key[-1]}"
    return Member(key, name, generation, 0, parents, tuned, {0: value} if options.get("trained", True) else {})


MEMBERS = [
    member("a1", 1, value=0.2),
    member("a2", 1, value=0.4),
    member("a3", 1, ("a2",), 0.45, tuned=True),
    member("b1", 2, ("a3", "a1"), 0.1),
    member("b2", 2, ("a1",), -math.inf),
    member("c1", 3, ("a3",), 0.9),
    member("c2", 3, ("b1",), trained=False),
]


def parsed(**options: object) -> ElementTree.Element:
    arguments = {"members": MEMBERS, "best": MEMBERS[5], "plain_sum": {0: 0.3}, "steps": [100], "refused": {2: 3}}
    return ElementTree.fromstring(family_tree(**(arguments | options)))  # type: ignore[arg-type]


def boxes(tree: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {box.attrib["href"].removeprefix("#function-"): box for box in tree.iter("a")}


def texts(element: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in element.iter("text")]


def test_each_function_has_a_box_with_its_return_and_its_distance_from_the_plain_sum() -> None:
    tree_boxes = boxes(parsed())
    assert list(tree_boxes) == [member.key for member in MEMBERS]
    assert texts(tree_boxes["a1"]) == ["1.1", "0.200 (-0.100)"] and "worse" in tree_boxes["a1"].attrib["class"]
    assert texts(tree_boxes["a3"]) == ["1 tuned", "0.450 (+0.150)"] and "better" in tree_boxes["a3"].attrib["class"]
    assert texts(tree_boxes["b2"]) == ["2.2", "diverged"] and texts(tree_boxes["c2"]) == ["3.2", "not trained yet"]
    assert texts(tree_boxes["c1"]) == ["3.1 · best", "0.900 (+0.600)"]
    without = boxes(parsed(plain_sum={}))
    assert texts(without["a1"]) == ["1.1", "0.200"] and "open" in without["a1"].attrib["class"]


def test_the_lineage_of_the_best_function_follows_the_functions_that_were_improved() -> None:
    tree = parsed()
    marked = {key for key, box in boxes(tree).items() if re.search("tree-(best|ancestor)", box.attrib["class"])}
    assert marked == {"a2", "a3", "c1"}
    classes = [path.attrib["class"] for path in tree.iter("path")]
    assert len(classes) == 6 and classes.count("tree-shown") == 1 and classes[-2:] == ["tree-parent tree-lineage"] * 2


def test_a_line_past_a_generation_runs_between_its_boxes() -> None:
    tree = parsed()
    (past,) = [path.attrib["d"] for path in tree.iter("path") if "L" in path.attrib["d"]]
    height = int(past.split("L")[1].split()[1])
    for box in list(boxes(tree).values())[3:5]:
        rectangle = next(box.iter("rect")).attrib
        assert not int(rectangle["y"]) < height < int(rectangle["y"]) + int(rectangle["height"])


def test_generations_are_columns_with_the_number_of_refused_candidates() -> None:
    tree = parsed(members=MEMBERS[:3], best=MEMBERS[2], refused={2: 3})
    assert texts(tree)[:2] == ["Generation 1", "Generation 2"] and texts(tree)[-1] == "3 refused"
    assert all(float(node.attrib["x"]) < float(tree.attrib["width"]) for node in tree.iter("text"))
