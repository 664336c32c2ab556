"""Figures as SVG elements that stand in a page."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from matplotlib import rc_context

from qllm_exp.results.report.parts import Html, scroll, tag

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def drawn(draw: Callable[[Path], object]) -> str:
    """The SVG file that a figure function writes. Names of methods are no formulas, whatever signs are in them."""
    with tempfile.TemporaryDirectory() as folder, rc_context({"text.parse_math": False}):
        path = Path(folder) / "figure.svg"
        draw(path)
        return path.read_text(encoding="utf-8")


def figure(svg: str, name: str, label: str, caption: str = "", class_: str = "") -> Html:
    """A figure on a light card.

    Args:
        svg: a file that matplotlib wrote. name: letters and digits, of this figure alone in the page: the SVG's own ids follow it.
        label: what the figure shows, for those who do not see it. caption: below it; '': the label.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(_NOT_XML.sub("", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # the page's own style sheet says the same
                parent.remove(child)
    for one in root.iter():
        for key, value in one.attrib.items():
            if key == "id":
                one.set(key, f"{name}-{value}")
            elif key == f"{{{_XLINK}}}href":
                one.set(key, value.replace("#", f"#{name}-", 1))
            else:
                one.set(key, value.replace("url(#", f"url(#{name}-"))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    width = float(root.attrib["viewBox"].split()[2])
    root.attrib |= {"role": "img", "aria-label": label, "style": f"--natural:{width / 72:.2f}in"}
    inline = Html(ElementTree.tostring(root, encoding="unicode"))
    card = tag("div", scroll(label, inline), class_="card")
    return tag("figure", card, tag("figcaption", caption or label), class_=class_ or None)
