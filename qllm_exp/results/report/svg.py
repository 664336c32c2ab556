"""Figures as SVG elements within a page."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from matplotlib import rc_context

from qllm_exp.results.report.parts import Html, scroll_box, tag

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def render_svg(draw: Callable[[Path], object]) -> str:
    """Return the SVG file that a plotting function writes. Mathtext is off: method names may contain '$'."""
    with tempfile.TemporaryDirectory() as folder, rc_context({"text.parse_math": False}):
        path = Path(folder) / "figure.svg"
        draw(path)
        return path.read_text(encoding="utf-8")


def svg_figure(svg: str, name: str, label: str, caption: str = "", class_: str = "") -> Html:
    """Return a figure on a light card.

    Args:
        svg: content of a file that matplotlib wrote.
        name: unique in the page, letters and digits; becomes the prefix of all ids in the SVG.
        label: description for screen readers.
        caption: text below the figure; '': the label.
        class_: CSS class.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(_NOT_XML.sub("", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # the page's style sheet has the same rules
                parent.remove(child)
    for element in root.iter():
        _prefix_ids(element, name)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib |= {"role": "img", "aria-label": label, "style": f"--natural:{width / 72:.2f}in"}
    inline = Html(ElementTree.tostring(root, encoding="unicode"))
    card = tag("div", scroll_box(label, inline), class_="card")
    return tag("figure", card, tag("figcaption", caption or label), class_=class_ or None)


def _prefix_ids(element: ElementTree.Element, prefix: str) -> None:
    """Prefix the id of an element, and all ids that its attributes refer to."""
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{prefix}-{value}")
        elif key == f"{{{_XLINK}}}href":
            element.set(key, value.replace("#", f"#{prefix}-", 1))
        else:
            element.set(key, value.replace("url(#", f"url(#{prefix}-"))
