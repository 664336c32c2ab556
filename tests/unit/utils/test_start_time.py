"""The garbage collector rests while a process starts, and Hydra composes once."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from qllm_exp.config.compose import CONF
from qllm_exp.utils.start_time import _remembering, composing_without_mode, rest_collector, wake_collector


@pytest.fixture(autouse=True)
def usual_collector() -> Iterator[None]:
    yield
    wake_collector()
    gc.unfreeze()


def test_the_collector_looks_rarely_until_it_is_woken() -> None:
    usual = gc.get_threshold()
    rest_collector()
    assert gc.isenabled() and gc.get_threshold()[0] >= 1_000_000
    wake_collector()
    assert gc.get_threshold() == usual and gc.get_freeze_count() > 0


def test_a_process_that_does_not_rest_keeps_its_objects_collectable() -> None:
    before = gc.get_freeze_count()
    wake_collector()  # a run within a notebook
    assert gc.get_freeze_count() == before


@pytest.mark.parametrize(
    ("argument", "mode"),
    [
        ("seed=1", None),
        ("hydra.mode=MULTIRUN", "MULTIRUN"),
        ("hydra.searchpath=[file:///tmp]", "asked"),
        ("-cn=mine", "asked"),
    ],
)
def test_hydra_composes_for_the_mode_only_if_something_may_set_it(
    argument: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: mode)
    asked = Hydra.get_mode
    with composing_without_mode(["-m", argument]):
        assert cast(Any, Hydra.get_mode)(None, "config", []) == mode
    assert Hydra.get_mode is asked


def test_the_package_leaves_the_mode_to_the_command_line() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", return_hydra_config=True).hydra.mode is None
    presets = (CONF / "experiment").glob("*.yaml")
    assert not [path for path in presets if "mode" in (OmegaConf.load(path).get("hydra") or {})]


def test_a_file_is_parsed_once_as_long_as_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Plugins.instance()
    source: Any = SourcesRegistry.instance().resolve("file")
    loaded: list[str] = []
    load_config = source.load_config
    counting = _remembering(lambda self, config_path: (loaded.append(config_path), load_config(self, config_path))[1])
    monkeypatch.setattr(source, "load_config", counting)
    (tmp_path / "config.yaml").write_text("defaults: [_self_, {part: one}]\na: 1\n")
    (tmp_path / "part").mkdir()
    for name, value in (("one", 2), ("two", 3)):
        (tmp_path / f"part/{name}.yaml").write_text(f"b: {value}\n")

    def composed(*overrides: str) -> Any:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return OmegaConf.to_container(compose("config", list(overrides)))

    assert composed("part.b=5") == {"a": 1, "part": {"b": 5}}
    assert composed() == {"a": 1, "part": {"b": 2}}, "an override changes a copy"
    assert composed("part=two") == {"a": 1, "part": {"b": 3}}
    assert sorted(loaded) == ["config", "part/one", "part/two"]
    (tmp_path / "part/one.yaml").write_text("b: 7\n")
    os.utime(tmp_path / "part/one.yaml", ns=(1, 1))
    assert composed() == {"a": 1, "part": {"b": 7}}
    (tmp_path / "part/one.yaml").unlink()
    with pytest.raises(Exception, match="part/one"):
        composed()
