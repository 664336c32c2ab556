"""What a language model wrote in plain Markdown, as HTML: paragraphs, lists, bold words and words of code, and nothing else."""

import re

from qllm_exp.results.report.parts import Html, joined, tag

_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,2}[.)])[ \t]+")
_MARKED = re.compile(r"(\*\*[^*\n]+\*\*|`[^`\n]+`)")


def prose(text: str) -> Html:
    """Blocks that blank lines set apart; lines that begin with a dash, a star or a number are items of a list."""
    return joined(_block(block.split("\n")) for block in re.split(r"\n[ \t]*\n", text.strip()) if block.strip())


def _block(lines: list[str]) -> Html:
    before: list[str] = []
    items: list[list[str]] = []
    for line in lines:
        mark = _ITEM.match(line)
        if mark:
            items.append([line[mark.end() :]])
        else:
            (items[-1] if items else before).append(line.strip())
    parts = [tag("p", _words(before))] * bool(before)
    return joined([*parts, *[tag("ul", *(tag("li", _words(item)) for item in items))] * bool(items)])


def _words(lines: list[str]) -> Html:
    return joined(map(_word, _MARKED.split(" ".join(lines))))


def _word(part: str) -> str:
    if not _MARKED.fullmatch(part):
        return part
    return tag("strong", part[2:-2]) if part.startswith("**") else tag("code", part[1:-1])
