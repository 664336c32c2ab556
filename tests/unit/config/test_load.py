"""YAML files and schema agree, and invalid configurations are rejected with what to type instead."""

import contextlib
import dataclasses
import functools
import itertools
import re
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qllm_exp.algorithms import check_combination
from qllm_exp.config import load, registry, schema
from qllm_exp.config.compose import CONF
from qllm_exp.config.load import load_run, run_name, to_dict, with_num_envs
from qllm_exp.envs import make_env
from qllm_exp.errors import UserError
from qllm_exp.experiment import build_algorithm
from qllm_exp.llm.online import Config as OnlineConfig
from qllm_exp.mixers.none import Config as NoMixerConfig
from qllm_exp.mixers.qmix import Config as QmixConfig
from qllm_exp.mixers.tfcaf import Config as TfcafConfig
from qllm_exp.sweep import prepare


def config_class(group, name):
    """Configuration class of a choice. The YAML file of a language model names the module that calls it."""
    return load.config_class(group, name, str(OmegaConf.load(CONF / group / f"{name}.yaml").get("backend", "")))


CHOICES = [(group, path.stem) for group in registry.GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
ENVS, TRAINS = registry.choices("env"), registry.choices("train")


def with_environments(names):
    """Every name with an environment and each training preset, and with grf, most of whose presets are for a pair.

    Where no preset is for a pair, an environment and the other choice set different options.
    """
    cycled = [(env, name) for env, name in zip(itertools.cycle(ENVS), names)]
    return sorted({(*pair, train) for pair in [*cycled, *(("grf", name) for name in names)] for train in TRAINS})


@functools.cache
def composed(*overrides):
    """The configuration that Hydra composes, which no test changes."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", list(overrides))


def keys(cls):
    return {
        f.name: keys(f.default_factory) if dataclasses.is_dataclass(f.default_factory) else None
        for f in dataclasses.fields(cls)
    }


def yaml_keys(node):
    return {k: yaml_keys(v) if isinstance(v, dict) and v else None for k, v in node.items()}


def values(group, name):
    """Options and values in the YAML file of a choice, with those that it inherits from other files."""
    options = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    if "defaults" in options:
        options = OmegaConf.to_container(composed("env=pettingzoo", f"{group}={name}")[group])  # no preset changes it
    return options


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_has_a_schema_with_exactly_its_keys(group, name):
    options = values(group, name)
    assert yaml_keys(options) == keys(config_class(group, name))
    assert options["name"] == name


PROVIDERS = [(group, name) for group, name in CHOICES if group == "llm" and config_class(group, name) is OnlineConfig]
PROVIDERS_OWN = {"name", "model", "api_base", "key_env", "temperature", "max_tokens", "timeout_s", "concurrency"} | {
    f"usd_per_million_{way}" for way in ("in", "out")
}


@pytest.mark.parametrize(
    ("group", "name"),
    [choice for choice in CHOICES if choice not in (("train", "paper"), ("train", "quick"), *PROVIDERS)],
)
def test_the_schema_defaults_are_the_values_of_the_yaml(group, name):
    assert values(group, name) == dataclasses.asdict(config_class(group, name)())


@pytest.mark.parametrize(("group", "name"), PROVIDERS)
def test_options_that_no_provider_changes_have_the_schema_default(group, name):
    options = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    default = dataclasses.asdict(OnlineConfig())
    assert {key for key, value in options.items() if value != default[key]} <= PROVIDERS_OWN
    assert load_run(composed(f"llm={name}")).llm == OnlineConfig(**options)


def test_the_options_of_generation_match_the_schema_and_are_commented():
    options = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["tfcaf"]
    assert options == dataclasses.asdict(schema.GenerationConfig())
    text = (CONF / "config.yaml").read_text().partition("tfcaf:  ")[2].partition("\nhydra:")[0]
    assert all("#" in line or line.strip() == "probe:" for line in text.strip().splitlines())


@pytest.mark.parametrize("value", ["on", "off", "true", "false"])
def test_switches_accept_on_and_off(value):
    run = load_run(composed(f"tfcaf.evaluator={value}"))
    assert run.tfcaf.evaluator is (value in ("on", "true"))


def test_the_llm_does_not_define_a_run_with_another_mixer_or_the_same_function():
    for mixer in ("vdn", "tfcaf"):
        default = load_run(composed(f"mixer={mixer}"))
        other_llm = load_run(composed(f"mixer={mixer}", "llm=openai", "tfcaf.rounds=1"))
        assert run_name(default, "a") == run_name(other_llm, "a")


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_value_is_commented(group, name):
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    self_explanatory = {"name", "evaluation", "checkpoint", "defaults", "learning_rate", "source"}
    for line in lines:
        key = line.strip().partition(":")[0]
        if line.strip() and not line.strip().startswith(("#", "-")) and key not in self_explanatory:
            assert "#" in line, f"{group}/{name}: {line}"


@pytest.mark.slow
@pytest.mark.parametrize(("env", "mixer", "train"), with_environments(registry.choices("mixer")))
def test_every_mixer_and_environment_composes_and_loads(env, mixer, train):
    config = composed(f"env={env}", f"mixer={mixer}", f"train={train}")
    if (train, env) == ("paper", "pettingzoo"):
        with pytest.raises(UserError, match="no published settings for env=pettingzoo"):
            load_run(config)
        return
    run = load_run(config)
    assert (run.env.name, run.mixer.name, run.train.name) == (env, mixer, train)
    assert load_run(to_dict(run)) == run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "algorithm", "train"), [*with_environments(registry.choices("algorithm")), ("mpe", "pqn", "paper")]
)
def test_every_algorithm_composes_and_loads(env, algorithm, train):
    config = composed(f"env={env}", f"algorithm={algorithm}", f"train={train}")
    if train == "paper" and (env == "pettingzoo" or (env == "grf" and algorithm != "q_learning")):
        with pytest.raises(UserError, match=f"no published settings for env={env} with algorithm={algorithm}"):
            load_run(config)
        return
    run = load_run(config)
    assert (run.env.name, run.algorithm.name, run.train.name) == (env, algorithm, train)
    assert type(run.algorithm) is config_class("algorithm", algorithm)
    check_combination(algorithm, run.mixer.name)


def test_an_algorithm_without_a_mixer_sets_it_to_none_and_rejects_any_other():
    assert load_run(composed("algorithm=mappo")).mixer == NoMixerConfig()
    assert load_run(composed("algorithm=q_learning")).mixer == TfcafConfig()
    for order in (["algorithm=mappo", "mixer=qmix"], ["mixer=qmix", "algorithm=mappo"]):
        run = load_run(composed(*order))
        with pytest.raises(UserError, match=r"algorithm=mappo does not accept mixer=qmix\. It accepts: none"):
            prepare.check(run)


def test_an_algorithm_that_accepts_most_mixers_says_why_it_rejects_one():
    for mixer in ("qfix", "qplex", "qtran"):
        reason = rf"algorithm=riit does not accept mixer={mixer}: its individual Qs .* "
        accepted = r"It accepts: none, qatten, qmix, tfcaf, vdn, wqmix\."
        with pytest.raises(UserError, match=reason + accepted):
            prepare.check(load_run(composed("algorithm=riit", f"mixer={mixer}")))
    prepare.check(load_run(composed("algorithm=riit", "mixer=wqmix")))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", registry.choices("algorithm"))
@pytest.mark.parametrize("mixer", registry.choices("mixer"))
def test_an_algorithm_and_a_mixer_make_a_team_or_are_rejected_with_both_names(algorithm, mixer, tmp_path):
    run = load_run(composed("env=matrix", f"algorithm={algorithm}", "env.num_envs=2", "train.hidden=4"))
    run = dataclasses.replace(run, mixer=config_class("mixer", mixer)(), dir=str(tmp_path))
    try:
        ready = prepare.prepare(prepare.check(run))
    except UserError as error:
        reason, _, accepted = str(error).partition(" It accepts: ")
        assert re.match(rf"algorithm={algorithm} does not accept mixer={mixer}(\.$|: .+\.$)", reason)
        assert accepted and mixer not in accepted.rstrip(".").split(", ")
        return
    if ready.tfcaf is not None:
        ready.directory.path.mkdir()
        ready.directory.tfcaf.write_text(ready.tfcaf)
    with contextlib.closing(make_env(ready.config.env, 2, 0)) as env:
        team = build_algorithm(ready.config, ready.directory, env)
    assert team.parameter_counts()["agent"] > 0


def test_a_rollout_of_an_on_policy_algorithm_is_what_its_update_learns_from():
    def num_envs(*overrides):
        return with_num_envs(load_run(composed(*overrides)), "cpu").env.num_envs

    assert num_envs("algorithm=mappo") == num_envs("algorithm=coma", "env=mpe", "train=paper") == 10
    assert num_envs("algorithm=mappo", "algorithm.num_envs=32") == 32
    assert num_envs("algorithm=mappo", "algorithm.num_envs=32", "env.num_envs=7") == 7
    assert num_envs("algorithm=q_learning") == schema.EnvConfig.auto_num_envs["cpu"]


def test_the_number_of_environment_copies_defines_a_run_whichever_option_sets_it():
    def name(override):
        return run_name(with_num_envs(load_run(composed("algorithm=mappo", override)), "cpu"), None)

    assert name("algorithm.num_envs=12") == name("env.num_envs=12") != name("env.num_envs=13")


def test_riit_has_its_own_mixer_unless_another_is_chosen():
    assert load_run(composed("algorithm=riit")).mixer == QmixConfig()
    for order in (["algorithm=riit", "mixer=tfcaf"], ["mixer=tfcaf", "algorithm=riit"]):
        assert load_run(composed(*order)).mixer == TfcafConfig()


@pytest.mark.parametrize("env", registry.choices("env"))
def test_fair_settings_do_not_depend_on_the_mixer(env):
    runs = [load_run(composed(f"env={env}", f"mixer={mixer}", "train=fair")) for mixer in registry.choices("mixer")]
    assert all((r.train, r.algorithm, r.env) == (runs[0].train, runs[0].algorithm, runs[0].env) for r in runs)
    assert load_run(composed(f"env={env}")).train == runs[0].train, "the default"


def test_an_update_may_be_due_after_a_number_of_episodes():
    def steps(*overrides):
        return load_run(composed(*overrides)).train.steps_per_update

    assert steps("train.steps_per_update=8 episodes") == 8 * 50
    assert steps("train.steps_per_update=1 episode", "env.episode_limit=30") == 30
    assert steps("train=paper", "mixer=tfcaf", "env.episode_limit=30") == 8 * 30
    by_hand = load_run(composed("train.steps_per_update=400"))
    assert run_name(by_hand, None) == run_name(load_run(composed("train.steps_per_update=8 episodes")), None)
    for wrong, reason in (("0 episodes", "out of bounds"), ("8 updates", "could not be converted to Integer")):
        with pytest.raises(UserError, match=rf"train\.steps_per_update.*{reason}"):
            load_run(composed(f"train.steps_per_update={wrong}"))


@pytest.mark.parametrize("typed", ["2e6", "2000000", "2_000_000", "2000000.0", "'2000000'"])
def test_a_whole_number_may_be_written_as_a_float(typed):
    def run(key):
        return load_run(composed(f"{key}={typed}"))

    assert (
        run("train.total_steps").train.total_steps == run("train.evaluation.every").train.evaluation.every == 2_000_000
    )
    assert run("seed").seed == 2_000_000
    if "'" not in typed:
        assert run("env.num_envs").env.num_envs == 2_000_000
    values = (run("train.total_steps").train.total_steps, run("train.learning_rate").train.learning_rate)
    assert tuple(map(type, values)) == (int, float)
    assert run_name(run("seed"), None) == run_name(load_run(composed("seed=2000000")), None)


def test_a_truth_value_is_not_text():
    config = OmegaConf.create({"sweep": {"name": True}})
    with pytest.raises(UserError, match=r"sweep\.name=true is not text\. If true is meant as text, quote it"):
        load_run(config)


@pytest.mark.slow
@pytest.mark.parametrize(("env", "train"), list(itertools.product(registry.choices("env"), registry.choices("train"))))
def test_q_learning_with_no_mixer_is_iql(env, train):
    if train == "paper" and env in ("pettingzoo", "grf"):
        return
    iql = load_run(composed(f"env={env}", "algorithm=iql", f"train={train}"))
    q_learning = load_run(composed(f"env={env}", "mixer=none", f"train={train}"))
    assert dataclasses.asdict(iql.algorithm) == dataclasses.asdict(q_learning.algorithm) | {"name": "iql"}
    assert dataclasses.replace(q_learning, algorithm=iql.algorithm) == iql


@dataclasses.dataclass
class Inner:
    number: int = 1
    weight: float = 2
    share: float | None = 0.5


@dataclasses.dataclass
class Options:
    """An option of every kind that the package has."""

    number: int = 1
    share: float = 0.5
    limit: float | None = None
    switch: bool = False
    text: str = "a"
    anything: Any = "auto"
    texts: list[str] = dataclasses.field(default_factory=lambda: ["x"])
    free: dict[str, Any] = dataclasses.field(default_factory=dict)
    inner: Inner = dataclasses.field(default_factory=Inner)


@dataclasses.dataclass
class UsersOptions(Options):
    """Kinds that only a user may write: defaults that a partial value is merged into, and a sequence of fixed length."""

    merged: dict[str, Any] = dataclasses.field(default_factory=lambda: {"kept": 1})
    pair: tuple[int, int] = (1, 2)
    other: Inner = dataclasses.field(default_factory=lambda: Inner(number=7))


VALUES = {
    "number": [3, -1, True, 2.5, "4", "four", None],
    "share": [0.25, 1, True, "0.5", "half", None, [0.5], 10**20],
    "limit": [0.25, 1, None, "0.5", {}],
    "switch": [True, 1, 0, "on", "maybe", None],
    "text": ["b", 3, 2.5, None, ["b"], "${number}", "${nowhere}"],
    "anything": [1, 0.5, "b", None, [1, "b"], {"a": [1]}],
    "texts": [[], ["a", "b"], ["a", 1], [None], "a", ["${text}"], [["a"]]],
    "free": [{}, {"a": 1, "b": {"c": [1.5, None, "d"]}}, {"a": "${text}"}, [1], None, {1: 2}],
    "merged": [{}, {"kept": 2}, {"more": 3}],
    "pair": [[3, 4], [3, "b"], [3]],
    "inner": [{}, {"number": 2}, {"share": None}, {"share": 2}, {"number": "two"}, 3],
    "other": [{}, {"number": 2}, {"share": None}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_a_value_has_the_type_that_omegaconf_gives_it(name, value):
    def outcome(make):
        try:
            return repr(make())  # unlike ==, it tells 1 from 1.0 and True
        except (OmegaConfBaseException, UserError) as error:
            return type(error).__name__ if isinstance(error, OmegaConfBaseException) else "refused"

    options = {name: value}
    cls = Options if hasattr(Options(), name) else UsersOptions
    converted = outcome(lambda: load._to_dataclass(cls, options, ""))
    expected = outcome(lambda: OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), options)))
    assert converted == expected or (converted == "refused" and expected.endswith("Error")), expected
    assert options == {name: value}


def test_values_that_have_their_types_already_are_not_converted_and_not_shared(monkeypatch):
    """OmegaConf takes 40 ms for a run, and the figures of a paper read thousands."""
    config = composed("env=mpe", "sweep.tags=[a]", "++env.options.a=[1]")
    monkeypatch.setattr(load.OmegaConf, "structured", None)
    monkeypatch.setattr(load.OmegaConf, "merge", None)
    options = to_dict(load_run(config))
    run = load_run(options)
    assert to_dict(run) == options
    options["env"]["options"]["a"].append(2)
    options["sweep"]["tags"].append("b")
    assert (run.env.options, run.sweep.tags) == ({"a": [1]}, ["a"])


@pytest.mark.parametrize(
    ("value", "key"),
    [({"learning_rate": "???"}, "train.learning_rate"), ({"evaluation": {"every": "???"}}, "train.evaluation.every")],
)
def test_an_option_without_a_value_is_named(value, key):
    config = OmegaConf.to_container(composed())
    config["train"] |= value
    for written in (config, OmegaConf.create(config)):
        with pytest.raises(UserError, match=rf"No value for {key}\. Set it on the command line: {key}=\.\.\."):
            load_run(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": {"name": "lbff"}}, "Did you mean 'lbf'"),
        ({"mixer": {"name": "qmixx"}}, "Did you mean 'qmix'"),
        ({"train": {"learning_rat": 1}}, "Did you mean 'learning_rate'"),
        ({"train": {"evaluation": {"evry": 1}}}, "Unknown key 'train.evaluation.evry'. Did you mean 'every'"),
        ({"mixer": None}, "mixer=None is not a choice"),
        ({"algorithm": {"targets": "td_lamda"}}, "Did you mean 'td_lambda'"),
        ({"train": {"gamma": 1.5}}, "train.gamma=1.5 is out of bounds"),
        ({"train": {"total_steps": "many"}}, "train.total_steps"),
        ({"env": {"num_envs": 0}}, "env.num_envs=0"),
        ({"train": {"batch_episodes": 7, "buffer_episodes": 5}}, "smaller than train.batch_episodes=7"),
        ({"sed": 1}, "Did you mean 'seed'"),
        ({"env": {"state": "observation"}}, "Did you mean 'observations'. Allowed: features, observations"),
        ({"seed": -1}, "seed=-1 is out of bounds"),
        ({"device": "gpu"}, "device='gpu' is unknown"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_allowed(change, message):
    config = OmegaConf.to_container(composed())
    for key, value in change.items():
        if isinstance(value, dict):
            config[key] |= value
        else:
            config[key] = value
    with pytest.raises(UserError, match=message):
        load_run(config)


def test_where_a_run_takes_place_does_not_define_it():
    run = load_run(composed("mixer=qmix", "env=grf"))
    elsewhere = dataclasses.replace(run, dir="/elsewhere", device="cuda", env=dataclasses.replace(run.env, workers=7))
    assert run_name(elsewhere, None) == run_name(run, None)
    assert run_name(dataclasses.replace(run, seed=1), None) != run_name(run, None)
    slower = dataclasses.replace(run.train, learning_rate=1e-9)
    assert run_name(dataclasses.replace(run, train=slower), None) != run_name(run, None)


def test_a_run_that_does_what_runs_did_before_an_option_existed_has_their_name():
    published, masked = (composed("mixer=qmix", f"env.mask_ineffective={mask}") for mask in ("false", "true"))
    assert "mask_ineffective" not in load.identity(load_run(masked), None)["env"]
    assert run_name(load_run(published), None) != run_name(load_run(masked), None)


@pytest.mark.parametrize("name", registry.choices("env"))
def test_the_features_that_every_run_had_as_its_state_do_not_define_it(name):
    features, observations = (
        load_run(composed("mixer=qmix", f"env={name}", f"env.state={state}")) for state in ("features", "observations")
    )
    assert "state" not in load.identity(features, None)["env"]
    assert load.identity(observations, None)["env"]["state"] == "observations"
    older = to_dict(features)
    older["env"].pop("state")
    assert load_run(load.with_older_defaults(older)).env.state == "features"


def test_the_rules_of_mpe_are_in_the_name_of_a_run_only_where_they_are_not_vmas():
    default, other = (composed("mixer=qmix", "env=mpe", *rules) for rules in ([], ["env.rules=pettingzoo"]))
    assert "rules" not in load.identity(load_run(default), None)["env"]
    assert load.identity(load_run(other), None)["env"]["rules"] == "pettingzoo"
    assert run_name(load_run(default), None) != run_name(load_run(other), None)
    older = to_dict(load_run(default))
    older["env"].pop("rules")
    assert load_run(load.with_older_defaults(older)).env.rules == "vmas"


def test_the_configuration_of_a_run_from_before_an_option_existed_says_what_it_did():
    older = to_dict(load_run(composed("mixer=qmix")))
    older["env"].pop("mask_ineffective")
    assert load_run(load.with_older_defaults(older)).env.mask_ineffective is True
    for mask in (False, True):
        older["env"]["mask_ineffective"] = mask
        assert load_run(load.with_older_defaults(older)).env.mask_ineffective is mask
    elsewhere = to_dict(load_run(composed("mixer=qmix", "env=matrix")))
    assert load.with_older_defaults(elsewhere) == elsewhere


def test_a_run_from_before_searches_is_read_with_the_method_that_chose_its_function():
    older = to_dict(load_run(composed("mixer=tfcaf", "llm=openai")))
    del older["tfcaf"]["search"]
    for selection, method in (("evaluator", "none"), ("probe", "best_of")):
        older["tfcaf"] |= {"selection": selection, "probe": {"total_steps": 50_000, "seeds": 1}}
        assert load_run(load.with_older_defaults(older)).tfcaf.search.method == method


def test_the_function_defines_a_run_not_its_path():
    run = load_run(composed("mixer=tfcaf"))
    moved = dataclasses.replace(run, mixer=dataclasses.replace(run.mixer, file="moved.json"))
    assert run_name(run, "a") == run_name(moved, "a") != run_name(run, "b")
