"""Reads config.yaml of many runs fast: what they have in common is parsed once.

`RunDirectory.read_config` checks a configuration against the schema, which takes milliseconds and fails for choices that are not
on this machine. Tables of ten thousand runs need neither.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from qllm_exp.errors import UserError
from qllm_exp.runs.json_files import read_bytes

_BLOCK_START = re.compile(r"^(?=\w)", re.MULTILINE)


class ConfigReader:
    """Splits configurations into blocks, and caches the parsed blocks by their text.

    A block is a top-level key with everything below it. OmegaConf starts a line with each. The comment at the head of the file
    is a block, too.
    """

    def __init__(self) -> None:
        self._parsed: dict[str, dict[str, Any]] = {}

    def blocks(self, path: Path) -> list[str]:
        """Return the texts of the blocks of a configuration.

        Args:
            path: the file.

        Raises:
            UserError: the file is missing or cannot be read.
        """
        content = read_bytes(path)
        if content is None:
            raise UserError(
                f"{path.parent} has no {path.name}, so it is not a complete run directory. Copy the whole directory."
            )
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a valid run configuration: {error}.") from None
        return [block for block in _BLOCK_START.split(text) if block]

    def parse(self, block: str) -> dict[str, Any]:
        """Return a block as {key: value}; {} for the comment at the head.

        Raises:
            yaml.YAMLError: the block is not valid YAML.
        """
        if block not in self._parsed:
            self._parsed[block] = yaml.load(block, ConfigLoader) or {}
        return self._parsed[block]


class ConfigLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml with OmegaConf's changes to YAML 1.1: 1e-4 is a number, a date is text, and a key occurs once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping as a dictionary; raises yaml.constructor.ConstructorError if it has a key twice."""
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # `!!map [a]` is none; the reader refuses it
        keys = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {repeated}", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


ConfigLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in ConfigLoader.yaml_implicit_resolvers.items()
}
ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
