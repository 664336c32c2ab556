"""Types, allowed values and bounds of everything in conf/. The YAML files carry the values and their comments.

A dataclass per choice of a group, found by the `name` in its YAML. `config.py` turns a composed configuration into a `Run`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar


def one_of(default: str, *allowed: str) -> Any:
    """A string field with a closed list of values."""
    return field(default=default, metadata={"allowed": (default, *allowed)})


def number(default: float | int | None, low: float, high: float = float("inf"), identity: bool = True) -> Any:
    """A number field with inclusive bounds, which hold for what is not None. `identity`: whether it defines a run."""
    return field(default=default, metadata={"low": low, "high": high, "identity": identity})


@dataclass
class Env:
    """What every environment has. An environment of your own derives its config from this."""

    name: str = ""
    task: str = ""
    episode_limit: int = number(25, 1)
    num_envs: Any = field(default="auto", metadata={"auto_or_at_least": 1})
    reward: str = one_of("sum", "mean")
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 128, "cuda": 1024}  # what num_envs=auto means, by kind of device


@dataclass
class Mpe(Env):
    name: str = "mpe"
    task: str = "simple_spread"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Lbf(Env):
    name: str = "lbf"
    task: str = "8x8-2p-2f-coop-2s"
    episode_limit: int = number(50, 1)


@dataclass
class Grf(Env):
    name: str = "grf"
    task: str = "academy_3_vs_1_with_keeper"
    episode_limit: int = number(150, 1)
    workers: int = number(0, 0, 1024, identity=False)
    goalkeeper: bool = True
    rewards: str = one_of("scoring,checkpoints", "scoring")
    reward: str = one_of("mean", "sum")
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 16, "cuda": 16}


@dataclass
class Matrix(Env):
    name: str = "matrix"
    task: str = "climbing"
    reward: str = one_of("mean", "sum")


@dataclass
class Pettingzoo(Env):
    name: str = "pettingzoo"
    task: str = "mpe2.simple_spread_v3"
    options: dict[str, Any] = field(default_factory=dict)
    auto_num_envs: ClassVar[dict[str, int]] = {"cpu": 8, "cuda": 8}


@dataclass
class Algorithm:
    """What every algorithm has. One of your own derives its config from this."""

    name: str = ""
    agent_id: bool = True
    last_action: bool = False


@dataclass
class Follows(Algorithm):
    """What every algorithm with target networks has."""

    target_update: str = one_of("soft", "periodic")
    target_tau: float = number(0.01, 0, 1)
    target_period: int = number(200, 1)


@dataclass
class QLearning(Follows):
    name: str = "q_learning"
    double_q: bool = True
    targets: str = one_of("td_lambda", "n_step")
    n_step: int = number(1, 1)
    td_lambda: float = number(0.6, 0, 1)
    epsilon_start: float = number(1.0, 0, 1)
    epsilon_end: float = number(0.05, 0, 1)
    epsilon_steps: int = number(200_000, 1)
    epsilon_evaluation: float = number(0.0, 0, 1)


@dataclass
class Iql(QLearning):
    name: str = "iql"


@dataclass
class Maser(QLearning):
    name: str = "maser"
    alpha: float = number(0.5, 0, 1)
    intrinsic: float = number(0.03, 0)
    individual: float = number(0.001, 0)
    exploration: float = number(0.001, 0)
    distance: float = number(0.001, 0)
    phi_hidden: int = number(128, 1)


@dataclass
class AgentsAndCritic(Follows):
    """What every algorithm has that learns a policy, and a critic for it."""

    targets: str = one_of("n_step", "td_lambda")
    n_step: int = number(5, 1)
    td_lambda: float = number(0.95, 0, 1)
    evaluation: str = one_of("sample", "greedy")


@dataclass
class Maddpg(AgentsAndCritic):
    name: str = "maddpg"
    n_step: int = number(1, 1)
    temperature: float = number(1.0, 0.01)
    regularisation: float = number(0.001, 0)


@dataclass
class ActorCritic(AgentsAndCritic):
    """What those have that learn from the latest episodes."""

    num_envs: int = number(10, 1, identity=False)  # through env.num_envs, which is a part of what defines a run
    entropy: float = number(0.001, 0)


@dataclass
class Coma(ActorCritic):
    name: str = "coma"
    n_step: int = number(10, 1)
    td_lambda: float = number(0.8, 0, 1)
    target_tau: float = number(0.3, 0, 1)
    entropy: float = number(0.01, 0)
    critic_sweep: bool = True
    epsilon_start: float = number(0.5, 0, 1)
    epsilon_end: float = number(0.01, 0, 1)
    epsilon_steps: int = number(100_000, 1)


@dataclass
class Lica(ActorCritic):
    name: str = "lica"
    targets: str = one_of("td_lambda", "n_step")
    td_lambda: float = number(0.8, 0, 1)
    entropy: float = number(0.5, 0)
    agents_rate: float = number(1.0, 0)
    embed: int = number(64, 1)
    hypernet: int = number(64, 1)


@dataclass
class Proximal(ActorCritic):
    """Proximal policy optimisation."""

    epochs: int = number(4, 1)
    clip: float = number(0.2, 0, 1)
    normalise_advantages: bool = False
    normalise_values: bool = False


@dataclass
class Ippo(Proximal):
    name: str = "ippo"


@dataclass
class Mappo(Proximal):
    name: str = "mappo"


@dataclass
class Riit(ActorCritic):
    name: str = "riit"
    num_envs: int = number(8, 1, identity=False)
    targets: str = one_of("td_lambda", "n_step")
    td_lambda: float = number(0.6, 0, 1)
    target_update: str = one_of("periodic", "soft")
    target_period: int = number(25, 1)
    entropy: float = number(0.03, 0)
    replay_episodes: int = number(64, 0)
    critic_hidden: int = number(128, 1)


@dataclass
class Mixer:
    """What every mixer has."""

    name: str = ""


@dataclass
class Vdn(Mixer):
    name: str = "vdn"


@dataclass
class NoMixer(Mixer):
    name: str = "none"


@dataclass
class Qmix(Mixer):
    name: str = "qmix"
    embed: int = number(32, 1)
    hypernet: int = number(64, 0)


@dataclass
class Qatten(Mixer):
    name: str = "qatten"
    heads: int = number(4, 1)
    hidden: int = number(64, 1)
    embed: int = number(32, 1)


@dataclass
class Qplex(Mixer):
    name: str = "qplex"
    kernels: int = number(10, 1)
    hypernet: int = number(64, 1)
    adv_hypernet: int = number(64, 1)


@dataclass
class Qtran(Mixer):
    name: str = "qtran"
    embed: int = number(64, 1)
    lambda_opt: float = number(1.0, 0)
    lambda_nopt: float = number(1.0, 0)


@dataclass
class Wqmix(Qmix):
    name: str = "wqmix"
    weighting: str = one_of("cw", "ow")
    alpha: float = number(0.1, 0, 1)
    unrestricted: int = number(256, 1)


@dataclass
class Tfcaf(Mixer):
    name: str = "tfcaf"
    file: str = ""
    igm: str = one_of("auto", "enforce", "relax")


@dataclass
class Llm:
    """Where the credit-assignment function comes from."""

    name: str = "bundled"


@dataclass
class Online(Llm):
    """A model behind an HTTP interface, called through litellm."""

    name: str = ""
    backend: str = "online"
    model: str = ""
    api_base: str = field(default="", metadata={"identity": False})
    key_env: str = field(default="", metadata={"identity": False})
    temperature: float | None = number(1.0, 0, 2)
    top_p: float | None = number(None, 0, 1)
    max_tokens: int = number(8192, 1)
    timeout_s: float = number(300.0, 1, identity=False)
    attempts: int = number(6, 1, 100, identity=False)
    concurrency: int = number(8, 1, 1024, identity=False)
    usd_per_million_in: float | None = number(None, 0, identity=False)
    usd_per_million_out: float | None = number(None, 0, identity=False)


@dataclass
class Folder(Llm):
    """Answers read from files, so that any language model can be asked by hand."""

    name: str = "folder"
    backend: str = "folder"
    path: str = field(default="", metadata={"identity": False})
    model: str = ""


@dataclass
class Probe:
    """Short training runs that rank candidates (selection=probe)."""

    total_steps: int = number(50_000, 1)
    seeds: int = number(1, 1)


@dataclass
class Generation:
    """How a credit-assignment function is generated: QLLM's coder-evaluator procedure and what ablations change in it."""

    candidates: int = number(3, 1, 64)
    rounds: int = number(3, 1, 64)
    evaluator: bool = True
    selection: str = one_of("evaluator", "probe")
    error_feedback: bool = True
    state_description: bool = True
    retries: int = number(3, 0, 100)
    memory: int = number(10, 2)
    sample: int = number(0, 0)
    probe: Probe = field(default_factory=Probe)
    budget_usd: float | None = number(None, 0, identity=False)
    cache: str = field(default="", metadata={"identity": False})


@dataclass
class Evaluation:
    every: int = number(50_000, 1)
    episodes: int = number(100, 1)
    absolute_episodes: int = number(1000, 1)


@dataclass
class Checkpoint:
    every_s: float = number(60.0, 0)
    max_share: float = number(0.02, 0, 1)


@dataclass
class Train:
    """Budget and the settings that a method shares with its baselines."""

    name: str = "fair"
    source: str = "chosen for this package"
    total_steps: int = number(2_000_000, 1)
    steps_per_update: int = number(200, 1)
    batch_episodes: int = number(32, 1)
    buffer_episodes: int = number(5000, 1)
    optimiser: str = one_of("adam", "rmsprop")
    learning_rate: float = number(5e-4, 0)
    grad_norm_clip: float = number(10.0, 0)
    gamma: float = number(0.99, 0, 1)
    network: str = one_of("gru", "mlp")
    hidden: int = number(64, 1)
    share_parameters: bool = True
    standardise_rewards: bool = True
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint, metadata={"identity": False})


@dataclass
class Tracking:
    """Where metrics go besides the run's own files."""

    name: str = one_of("local")


@dataclass
class Wandb(Tracking):
    """Weights & Biases as well."""

    name: str = "wandb"
    mode: str = one_of("online", "offline", "disabled")
    project: str = "qllm_exp"
    entity: str = ""
    tags: list[str] = field(default_factory=list)
    finish_s: float = number(5.0, 0, 600)


@dataclass
class Sweep:
    """The sweep that a run belongs to."""

    name: str = ""
    tags: list[str] = field(default_factory=list)
    max_failures: int = number(0, 0)
    dry_run: bool = False


@dataclass
class Run:
    """One run: one seed of one configuration. Fields marked identity=False say where or how, not what."""

    env: Env = field(default_factory=Lbf)
    algorithm: Algorithm = field(default_factory=QLearning)
    mixer: Mixer = field(default_factory=Tfcaf)
    llm: Llm = field(default_factory=Llm)
    tfcaf: Generation = field(default_factory=Generation)
    train: Train = field(default_factory=Train)
    tracking: Tracking = field(default_factory=Tracking, metadata={"identity": False})
    sweep: Sweep = field(default_factory=Sweep, metadata={"identity": False})
    seed: int = number(0, 0)
    device: str = field(default="auto", metadata={"identity": False, "device": True})
    dir: str = field(default="runs", metadata={"identity": False})


CHOICES: dict[str, dict[str, type]] = {
    "env": {"mpe": Mpe, "lbf": Lbf, "grf": Grf, "matrix": Matrix, "pettingzoo": Pettingzoo},
    "algorithm": {
        "q_learning": QLearning,
        "iql": Iql,
        "riit": Riit,
        "maser": Maser,
        "coma": Coma,
        "maddpg": Maddpg,
        "ippo": Ippo,
        "mappo": Mappo,
        "lica": Lica,
    },
    "mixer": {
        "vdn": Vdn,
        "none": NoMixer,
        "qmix": Qmix,
        "qatten": Qatten,
        "qplex": Qplex,
        "qtran": Qtran,
        "wqmix": Wqmix,
        "tfcaf": Tfcaf,
    },
    "llm": {
        "bundled": Llm,
        "folder": Folder,
        **dict.fromkeys(("openai", "deepseek", "anthropic", "gemini", "ollama", "vllm"), Online),
    },
    "train": {"fair": Train, "paper": Train, "quick": Train},
    "tracking": {"local": Tracking, "wandb": Wandb},
}
