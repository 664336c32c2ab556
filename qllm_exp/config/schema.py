"""Types, allowed values and bounds of the options that all choices of a group share. The YAML files in conf/ document them.

Each choice has its own dataclass `Config` in its module (qllm_exp/mixers/qmix.py for mixer=qmix), derived from the class of its
group in this file. `load.py` turns a composed configuration into a `RunConfig`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from qllm_exp.config import registry

# Of the runs of searches, for functions and for settings (tuning). No other run may have them, so no table chooses by them.
SEARCH_SEEDS = range(1_000_000, 2_000_000)


def one_of(default: str, *allowed: str) -> Any:
    """Return a text field with a closed set of values.

    Args:
        default: default value, which is allowed too.
        allowed: the other allowed values.
    """
    return field(default=default, metadata={"allowed": (default, *allowed)})


def number(default: float | int | None, low: float, high: float = float("inf"), identity: bool = True) -> Any:
    """Return a number field with inclusive bounds. None is always within the bounds.

    Args:
        default: default value.
        low: smallest allowed value.
        high: largest allowed value.
        identity: whether the option is part of what defines a run; False for options that say where or how it runs.
    """
    return field(default=default, metadata={"low": low, "high": high, "identity": identity})


@dataclass
class EnvConfig:
    """Options of every environment. A user's own environment derives its Config from this class.

    `auto_num_envs` is the value of num_envs=auto for each kind of device. `built_when_planned` says whether a copy is built while
    runs are planned, which finds options that no run can have; False where that starts processes or takes seconds. `bundled_for`
    has the options with which alone the bundled functions of the environment's tasks are used.
    """

    name: str = ""
    task: str = ""
    episode_limit: int = number(25, 1)
    num_envs: Any = field(default="auto", metadata={"auto_or_at_least": 1})
    reward: str = one_of("sum", "mean")
    state: str = one_of("features", "observations")
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 128, "cuda": 1024}
    built_when_planned: ClassVar[bool] = True
    bundled_for: ClassVar[dict[str, Any]] = {}


@dataclass
class AlgorithmConfig:
    """Options of every algorithm. A user's own algorithm derives its Config from this class."""

    name: str = ""
    agent_id: bool = True
    last_action: bool = False


@dataclass
class MixerConfig:
    """Options of every mixer. A user's own mixer derives its Config from this class."""

    name: str = ""


@dataclass
class FunctionMixerConfig(MixerConfig):
    """Options of a mixer that evaluates a stored credit-assignment function."""

    file: str = ""
    written_for: str = field(default="", metadata={"identity": False})
    igm: str = one_of("auto", "enforce", "relax")
    trainable_constants: bool = False


@dataclass
class LlmConfig:
    """Source of the credit-assignment function: a language model, or the functions that ship with the package."""

    name: str = "bundled"


@dataclass
class ReflectionConfig:
    """What the coder is told about the trainings of a parent; each part can be left out."""

    returns: bool = True
    baselines: bool = True
    q_tot: bool = True
    credit: bool = True
    columns: bool = True
    gradients: bool = True
    gate: bool = True
    remarks: bool = True


@dataclass
class SearchConfig:
    """Options of a search that sees returns: candidates are trained, and what training did leads to the next ones."""

    method: str = one_of("none", "best_of", "evolve")
    generations: int = number(6, 1, 1000)
    steps: list[int] = field(default_factory=lambda: [20_000, 100_000, 500_000])
    seeds: list[int] = field(default_factory=lambda: [1, 1, 3])
    kept: float = number(0.5, 0, 1)
    islands: int = number(2, 1, 64)
    migration: int = number(3, 0)
    archive: int = number(12, 1)
    parents: int = number(2, 1, 8)
    tolerance: float = number(1e-4, 0, 1)
    models: list[str] = field(default_factory=list)
    exploration: float = number(0.5, 0)
    dollar_weight: float = number(0.2, 0)
    tune: str = one_of("none", "gradient")
    reflection: ReflectionConfig = field(default_factory=ReflectionConfig)


@dataclass
class GenerationConfig:
    """Options of generation: QLLM's coder-evaluator procedure and its ablations."""

    candidates: int = number(3, 1, 64)
    rounds: int = number(3, 1, 64)
    evaluator: bool = True
    error_feedback: bool = True
    state_description: bool = True
    retries: int = number(3, 0, 100)
    memory: int = number(10, 2)
    sample: int = number(0, 0)
    search: SearchConfig = field(default_factory=SearchConfig)
    budget_usd: float | None = number(None, 0, identity=False)
    cache: str = field(default="", metadata={"identity": False})


@dataclass
class EvaluationConfig:
    """When to evaluate, and on how many episodes."""

    every: int = number(50_000, 1)
    episodes: int = number(100, 1)
    absolute_episodes: int = number(1000, 1)


@dataclass
class CheckpointConfig:
    """How often to write a checkpoint."""

    every_s: float = number(60.0, 0)
    max_share: float = number(0.02, 0, 1)


@dataclass
class TrainConfig:
    """Training budget, and the settings that a method shares with its baselines."""

    name: str = "fair"
    source: str = "chosen for this package"
    total_steps: int = number(2_000_000, 1)
    steps_per_update: int = number(200, 1)
    batch_episodes: int = number(32, 1)
    buffer_episodes: int = number(5000, 1)
    optimiser: str = one_of("adam", "rmsprop", "radam")
    learning_rate: float = number(5e-4, 0)
    grad_norm_clip: float = number(10.0, 0)
    gamma: float = number(0.99, 0, 1)
    network: str = one_of("gru", "mlp")
    hidden: int = number(64, 1)
    share_parameters: bool = True
    standardise_rewards: bool = True
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata={"identity": False})


@dataclass
class TrackingConfig:
    """Where metrics go in addition to the run directory."""

    name: str = one_of("local")


@dataclass
class WandbConfig(TrackingConfig):
    """Options of uploading metrics to Weights & Biases."""

    name: str = "wandb"
    mode: str = one_of("online", "offline", "disabled")
    project: str = "qllm_exp"
    entity: str = ""
    tags: list[str] = field(default_factory=list)
    finish_s: float = number(5.0, 0, 600)


@dataclass
class DecideConfig:
    """How many seeds sweep.seeds=auto gives to methods that are compared."""

    level: float = number(0.05, 0, 0.5)
    first: int = number(5, 2)
    step: int = number(5, 1)
    most: int = number(20, 2, 1000)


@dataclass
class PruningConfig:
    """From when on sweep.prune stops settings, and how many it keeps."""

    share: float = number(0.1, 0.01, 1)
    least: int = number(3, 1)
    factor: int = number(3, 2)


@dataclass
class TuneConfig:
    """How much each method is tuned before a comparison, with the values of hydra.sweeper.space."""

    trials: int = number(0, 0)
    seeds: int = number(3, 1, 1000)


@dataclass
class SweepConfig:
    """Options of the sweep that a run belongs to. `search` is the key of the search that trains the run; '' for any other."""

    name: str = ""
    search: str = ""
    tags: list[str] = field(default_factory=list)
    max_failures: int = number(0, 0)
    dry_run: bool = False
    seeds: str = one_of("listed", "auto")
    decide: DecideConfig = field(default_factory=DecideConfig)
    prune: str = one_of("none", "median", "halving")
    pruning: PruningConfig = field(default_factory=PruningConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


def _default(group: str, name: str) -> Any:
    """Return the default configuration of the choice that conf/config.yaml makes for a group."""
    return registry.find(group, name).Config()


@dataclass
class RunConfig:
    """One run: one seed of one configuration. Fields with identity=False say where or how it runs, and do not define it."""

    env: EnvConfig = field(default_factory=lambda: _default("env", "lbf"))
    algorithm: AlgorithmConfig = field(default_factory=lambda: _default("algorithm", "q_learning"))
    mixer: MixerConfig = field(default_factory=lambda: _default("mixer", "tfcaf"))
    llm: LlmConfig = field(default_factory=LlmConfig)
    tfcaf: GenerationConfig = field(default_factory=GenerationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"identity": False})
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata={"identity": False})
    seed: int = number(0, 0)
    device: str = field(default="auto", metadata={"identity": False, "device": True})
    dir: str = field(default="runs", metadata={"identity": False})
