"""The garbage collector rests while a process starts, and Hydra composes once."""

import gc
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

from qllm_exp.config.compose import CONF
from qllm_exp.utils.start_time import compose_without_mode, rest_collector, wake_collector


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
    compose_without_mode(["-m", argument])
    assert cast(Any, Hydra.get_mode)(None, "config", []) == mode


def test_the_package_leaves_the_mode_to_the_command_line() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("config", return_hydra_config=True).hydra.mode is None
    presets = (CONF / "experiment").glob("*.yaml")
    assert not [path for path in presets if "mode" in (OmegaConf.load(path).get("hydra") or {})]
