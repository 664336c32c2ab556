"""The documentation agrees with the repository: the site builds, links have a target, commands and options exist."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate_configuration
import pytest
import yaml

from tests.unit.test_architecture import FLOORS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
OTHERS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *(ROOT / name / "README.md" for name in ("launch", "notebooks", "docs/examples/own")),
]
TEXTS = [*OTHERS, *PAGES]

GROUPS = ("env", "algorithm", "mixer", "llm", "train", "tracking", "experiment", "hydra/launcher", "hydra/sweeper")
OF_OTHERS = {"hydra/sweeper": {"optuna"}}  # choices of packages beside this one
SUBCOMMANDS = {
    **dict.fromkeys(("check", "status", "watch", "logs", "cancel", "retry"), None),
    "tfcaf": {"generate", "search", "report", "list", "show", "explain", "verify", "import"},
    "results": {
        *("table", "ablation", "curves", "profiles", "improvement", "bars", "report", "export"),
        *("watch", "sync", "dashboard"),
    },
}
OVERRIDE = re.compile(r"(?P<key>[a-z][\w./]*)=(?P<value>.+)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["-f", str(ROOT / "docs" / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    built = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {f"{path.relative_to(ROOT / 'docs' / 'pages').with_suffix('.html')}" for path in PAGES} <= built


def test_files_are_included_as_the_snippet_extension_reads_it():
    """A code formatter may change `--8<--` to `--8 < --`; the page would then show the line instead of the file."""
    lines = [line.strip() for path in PAGES for line in path.read_text().splitlines() if "--8" in line]
    assert lines and all(re.fullmatch(r'--8<-- "[\w./-]+"', line) for line in lines), lines


def test_configuration_reference_is_up_to_date():
    written = generate_configuration.PAGE.read_text()
    assert written == generate_configuration.page(), "run: python docs/generate_configuration.py"


def test_comments_are_read_with_their_options():
    text = "# Title.\nname: x\na: 1   # first line,\n       # second line\nb:\n  c: {d: 2}   # inside\n"
    read = {(option.key, option.value): option.comment for option in generate_configuration.options(text)}
    assert read[("a", "1")] == "first line, second line"
    assert read[("c", "{d: 2}")] == "inside"
    assert generate_configuration.header(text) == ["Title."]


def test_layout_page_has_every_room_on_its_floor():
    page = (ROOT / "docs" / "pages" / "development" / "layout.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)
    expected = [(str(floor), room) for floor, rooms in enumerate(FLOORS, 1) for room in rooms]
    assert rows == expected, "docs/pages/development/layout.md and FLOORS of test_architecture.py differ"


# Links


def links(text: str) -> list[str]:
    """Return the targets of Markdown links and pictures, without those in code."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_lead_to_files_and_headings(path):
    for link in links(path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# Commands


def options(node: Any, prefix: str = "") -> Iterator[str]:
    """Iterate over the dotted names of all options of a YAML file, and of its groups of options."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from options(value, f"{prefix}{key}.")


class Choices:
    """Choices of each group and names of all options.

    Args:
        *folders: configuration folders besides conf/.
    """

    def __init__(self, *folders: Path) -> None:
        self.choices = {group: set(OF_OTHERS.get(group, ())) for group in GROUPS}
        self.options = set(options(yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())))
        for group in GROUPS:
            for path in (file for folder in (ROOT / "conf", *folders) for file in (folder / group).glob("*.yaml")):
                self.choices[group].add(path.stem)
                self.options |= set(options(yaml.safe_load(path.read_text()), f"{group.replace('/', '.')}."))

    def fault(self, key: str, value: str) -> str:
        """Return an error message for an override, or '' if it is valid."""
        if key in GROUPS:
            unknown = {choice for choice in value.split(",") if not is_placeholder(choice)} - self.choices[key]
            return f"{key} has no choice {', '.join(sorted(unknown))}" if unknown else ""
        open_ended = key.startswith(("hydra.sweeper.", "env.options.", "hydra.launcher.sbatch"))
        return "" if key in self.options or open_ended else f"there is no option {key}"

    def faults(self, words: list[str]) -> list[str]:
        """Return the error messages for the overrides among the words of a command."""
        matches = filter(None, map(OVERRIDE.fullmatch, words))
        return [fault for match in matches if (fault := self.fault(match["key"], match["value"]))]


PACKAGE = Choices()
EXAMPLE = Choices(ROOT / "docs" / "examples" / "own" / "conf")


def is_placeholder(word: str) -> bool:
    """Return whether a word stands for others: NAME, ..., [FOLDER]."""
    return not word or "..." in word or re.search(r"[A-Z\[<{]", word) is not None


def commands(text: str) -> list[list[str]]:
    """Return the words of every `qllm-exp ...` in code."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^ *```\w*\n.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose) + re.findall(r"^    (.+)$", prose, re.MULTILINE)
    matches = (re.search(r"(?:^|\s)qllm-exp(?: .*)?$", line) for line in lines)
    return [shlex.split(match[0].partition(" #")[0]) for match in matches if match]


def config_dirs(words: list[str]) -> list[str]:
    """Return the folders of --config-dir."""
    return [words[index + 1] for index, word in enumerate(words[:-1]) if word == "--config-dir"]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_commands_name_existing_choices_and_options(path):
    for _, *words in commands(path.read_text()):
        own = config_dirs(words)
        if words and words[0] in SUBCOMMANDS:
            allowed = SUBCOMMANDS[words[0]]
            assert allowed is None or len(words) == 1 or words[1] in allowed or is_placeholder(words[1]), words
        else:
            assert all(word.startswith("-") or "=" in word or word in own or is_placeholder(word) for word in words), (
                words
            )
        if words[:1] == ["retry"] or any(not (ROOT / folder).exists() for folder in own):
            continue  # options of a launcher, or a folder that exists only on a page
        known = EXAMPLE if own else PACKAGE
        assert not (faults := known.faults(words)), f"{words}: {faults}"


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_overrides_in_sentences_exist(path):
    """The sentences name overrides in backticks: `env=lbf`, `env=lbf train.gamma=0.95`."""
    prose = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    first_parts = {group.partition("/")[0] for group in GROUPS}
    for code in re.findall(r"`([a-z][^`\n]*)`", prose):
        words = code.split()
        matches = [OVERRIDE.fullmatch(word) for word in words]
        if all(
            match and re.split("[./]", match["key"])[0] in {*first_parts, "seed", "tfcaf", "sweep"} for match in matches
        ):
            assert not (faults := EXAMPLE.faults(words)), f"{code}: {faults}"


def test_a_wrong_command_is_noticed():
    assert commands("```bash\nqllm-exp -m env=lbf,mpe \\\n  seed=0-4   # ten runs\n```") == [
        ["qllm-exp", "-m", "env=lbf,mpe", "seed=0-4"]
    ]
    assert commands("Type `qllm-exp env=lbf`.") == [["qllm-exp", "env=lbf"]]
    assert PACKAGE.fault("env", "lbf,chess") == "env has no choice chess"
    assert PACKAGE.fault("train.gama", "0.9") == "there is no option train.gama"
    assert not PACKAGE.fault("train.evaluation.every", "100") and not EXAMPLE.fault("mixer", "attentive")
