"""Generate docs/pages/reference/configuration.md: every option, its default and its comment, from conf/**/*.yaml.

    python docs/generate_configuration.py

tests/unit/test_docs.py fails when the page differs from the YAML files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "pages" / "reference" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- docs/generate_configuration.py writes this page from conf/**/*.yaml. -->

Every option of `conf/`, with its default and its meaning. `qllm-exp --help` prints the groups and their choices;
`qllm-exp --help env=lbf` prints the options of the chosen files. [Configuration](../guide/configuration.md) explains how
to change them.

A name such as `train.learning_rate` is what you type on the command line: `train.learning_rate=1e-3`. `a | b` lists the
allowed values.
"""

# Groups in the order of the page: folder, heading, and the prefix of the options on the command line.
GROUPS = (
    ("env", "Environments", "env"),
    ("algorithm", "Algorithms", "algorithm"),
    ("mixer", "Mixers", "mixer"),
    ("llm", "Language models", "llm"),
    ("train", "Training", "train"),
    ("tracking", "Tracking", "tracking"),
    ("hydra/launcher", "Launchers", "hydra.launcher"),
    ("hydra/sweeper", "Sweepers", "hydra.sweeper"),
)


@dataclass
class Option:
    """A line `key: value  # comment` of a YAML file. `depth`: its indentation in spaces."""

    key: str
    value: str
    comment: str
    depth: int


def page() -> str:
    """The text of the page."""
    parts = [
        INTRODUCTION,
        *_main(),
        *(part for group in GROUPS for part in _group(*group)),
        *_presets(),
        *_experiments(),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def header(text: str) -> list[str]:
    """The comment lines at the top of a file, without '# '."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def options(text: str) -> Iterator[Option]:
    """The options of a file, in order. A comment may go on in the lines below its option."""
    last: Option | None = None
    for line in text.splitlines():
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            if last is not None:
                last.comment = f"{last.comment} {line.strip().removeprefix('#').strip()}".strip()
            continue
        match = re.match(r"(?P<indent> *)(?P<dash>- )?(?P<key>[^#:]+):(?P<rest>( .*)?)$", line)
        if last is not None:
            yield last
        last = None
        if match is not None:
            value, _, comment = match["rest"].partition(" #")
            depth = len(match["indent"]) + len(match["dash"] or "")
            last = Option(match["key"].strip(), value.strip(), comment.strip(), depth)
    if last is not None:
        yield last


def _main() -> Iterator[str]:
    """The tables of config.yaml: the groups, and the options that are in no group."""
    text = (CONF / "config.yaml").read_text()
    defaults, _, rest = text.partition("\n\n")
    yield "## Groups\n"
    yield "Each group picks a file of the folder `conf/GROUP/`, for example `env=mpe`.\n"
    rows = [
        (f"`{option.key.removeprefix('override ')}`", f"`{option.value}`", option.comment)
        for option in options(defaults)
        if not option.key.startswith("optional") and option.key != "defaults" and option.value != "none"
    ]
    yield _table(("Group", "Default", "Choices"), rows)
    sections = rest.split("\n\n")
    for title, wanted in (("General options", ("seed",)), ("Sweep", ("sweep",)), ("Generation", ("tfcaf",))):
        for section in sections:
            if section.startswith(tuple(f"{key}:" for key in wanted)):
                yield f"## {title}\n"
                yield _options_table("", section)


def _group(folder: str, title: str, prefix: str) -> Iterator[str]:
    """A section per choice of a group."""
    yield f"## {title}\n"
    for path in sorted((CONF / folder).glob("*.yaml")):
        text = path.read_text()
        yield f"### {folder}={path.stem}\n"
        yield _paragraph(header(text))
        yield _options_table(f"{prefix}.", text)


def _options_table(prefix: str, text: str) -> str:
    rows: list[tuple[str, str, str]] = []
    parents: list[Option] = []
    for option in options(text):
        while parents and parents[-1].depth >= option.depth:
            parents.pop()
        inside = parents[0].key if parents else ""
        if inside == "defaults":
            rows += _overridden_group(option)
        elif option.key == "defaults" or option.key == "_target_":
            parents = [option]
        elif option.value:
            if not (option.key == "name" and prefix):
                name = prefix + ".".join([*(parent.key for parent in parents), option.key])
                rows.append((f"`{name}`", f"`{option.value}`", option.comment))
        else:
            parents.append(option)
    return _table(("Option", "Default", "Meaning"), rows) if rows else "No options.\n"


def _overridden_group(option: Option) -> list[tuple[str, str, str]]:
    """A row for a group that a choice changes: 'override /mixer@_global_.mixer: none'."""
    match = re.match(r"override /(\w+)", option.key)
    return [(f"`{match[1]}`", f"`{option.value}`", option.comment)] if match else []


def _presets() -> Iterator[str]:
    yield "## Training presets\n"
    yield (
        "A training preset changes some of the options above for an algorithm, a mixer or an environment, by the files in\n"
        "`conf/train/preset/`. Those for an environment are below; the pages of [the methods](../methods/index.md) show the\n"
        "others.\n"
    )
    for path in sorted((CONF / "train" / "preset" / "env").glob("*.yaml")):
        train, _, env = path.stem.partition("_")
        yield f"### train={train} env={env}\n"
        text = path.read_text()
        yield _paragraph(header(text))
        yield _yaml(text)


def _experiments() -> Iterator[str]:
    yield "## Experiment presets\n"
    yield "An experiment preset is a named sweep: `qllm-exp -m experiment=NAME`. The command line may narrow it.\n"
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        text = path.read_text()
        yield f"### experiment={path.stem}\n"
        yield _paragraph(header(text))
        yield _yaml(text)


def _paragraph(lines: list[str]) -> str:
    """Comment lines as Markdown: indented lines are commands and become a code block."""
    written: list[str] = []
    for line in lines:
        command = line.startswith("  ")
        if command and not (written and written[-1].startswith("    ")):
            written.append("")
        written.append(f"    {_command(line)}" if command else _escaped(line))
    return "\n".join(written).strip("\n") + "\n"


def _command(line: str) -> str:
    """'qllm-exp -m experiment=smoke   # 24 runs' from the line of a comment, which separates both by spaces."""
    command, _, remark = _console(line).strip().partition("   ")
    return f"{command}   # {remark.strip()}" if remark else command


def _console(text: str) -> str:
    """The text with commands as the console command: 'qllm-exp tfcaf list'."""
    return re.sub(r"python -m qllm_exp(?:\.(?=tfcaf|results))?(\w*)", r"qllm-exp \1", text).replace(
        "qllm-exp  ", "qllm-exp "
    )


def _yaml(text: str) -> str:
    body = [line for line in text.splitlines() if not line.startswith("#")]
    return "```yaml\n{}\n```\n".format("\n".join(body).strip("\n"))


def _table(heading: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    lines += [f"| {first} | {second} | {_escaped(third)} |" for first, second, third in rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Text in which Markdown finds no markup. Code in backticks stays as it is."""
    parts = _console(text).split("`")
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([|*<\[\]])", r"\\\1", parts[number])
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
