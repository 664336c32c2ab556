"""Plain Markdown of a language model as HTML: paragraphs, lists, bold text and inline code, nothing else."""

import re

from qllm_exp.results.report.parts import Html, concat, tag

_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,2}[.)])[ \t]+")
_INLINE = re.compile(r"(\*\*[^*\n]+\*\*|`[^`\n]+`)")


def prose(text: str) -> Html:
    """Return blocks separated by blank lines; lines that start with a dash, a star or a number become list items."""
    blocks = re.split(r"\n[ \t]*\n", text.strip())
    return concat(_block(block.split("\n")) for block in blocks if block.strip())


def _block(lines: list[str]) -> Html:
    """Return the lines before the first list item as a paragraph, and the items as a list."""
    paragraph: list[str] = []
    items: list[list[str]] = []
    for line in lines:
        marker = _LIST_ITEM.match(line)
        if marker:
            items.append([line[marker.end() :]])
        elif items:
            items[-1].append(line.strip())
        else:
            paragraph.append(line.strip())
    parts = []
    if paragraph:
        parts.append(tag("p", _inline(paragraph)))
    if items:
        parts.append(tag("ul", *(tag("li", _inline(item)) for item in items)))
    return concat(parts)


def _inline(lines: list[str]) -> Html:
    return concat(map(_span, _INLINE.split(" ".join(lines))))


def _span(part: str) -> str:
    if not _INLINE.fullmatch(part):
        return part
    return tag("strong", part[2:-2]) if part.startswith("**") else tag("code", part[1:-1])
