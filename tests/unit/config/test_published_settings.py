"""`train=paper` beside the published configuration files: every value is equal, or a deviation that the method's page states.

The values are those of each repository's default.yaml, environment file and algorithm file, merged in this order as its main.py
does. Left out are the names of modules, logging, and what concerns the machine.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir

from qllm_exp.algorithms.flat_parameters import FlatParameters, make_optimiser
from qllm_exp.config.compose import CONF
from qllm_exp.config.load import config_class, load_run, with_num_envs
from qllm_exp.config.schema import RunConfig

PAGES = CONF.parent / "docs" / "pages" / "methods"


class Deviation(NamedTuple):
    """A value of this package that is not the published one.

    Attributes:
        value: What `train=paper` has.
        page: The page in docs/pages/methods that states the difference.
        sentence: Words of that page.
    """

    value: Any
    page: str
    sentence: str


class Published(NamedTuple):
    """Published settings, and what composes them here.

    Attributes:
        source: `train.source` of the run.
        overrides: Command line, without train=paper and the environment.
        envs: Environments to which the settings apply.
        values: Published parameters, by their published names.
        deviations: By the published name of the parameter.
    """

    source: str
    overrides: tuple[str, ...]
    envs: tuple[str, ...]
    values: Mapping[str, Any]
    deviations: Mapping[str, Deviation] = {}


GYM = ("lbf", "mpe", "matrix")

# PyMARL's src/config/default.yaml, which all other repositories started from.
PYMARL_DEFAULT = {
    "gamma": 0.99,
    "grad_norm_clip": 10,
    "batch_size": 32,
    "batch_size_run": 1,
    "lr": 0.0005,
    "optim_alpha": 0.99,
    "optim_eps": 0.00001,
    "obs_agent_id": True,
    "obs_last_action": True,
    "rnn_hidden_dim": 64,
}
# src/config/envs/sc2.yaml of PyMARL and PyMARL2.
STARCRAFT = {"test_nepisode": 32, "test_interval": 10000, "t_max": 2050000}
# src/config/envs/gymma.yaml of EPyMARL, whose default.yaml differs from PyMARL's in `hidden_dim` and in Adam.
GYMMA = {"test_nepisode": 100, "test_interval": 50000, "t_max": 2050000, "reward_scalarisation": "sum"}
RMSPROP = ("optim_alpha", "optim_eps")
EPYMARL_DEFAULT = {key: value for key, value in PYMARL_DEFAULT.items() if key not in ("rnn_hidden_dim", *RMSPROP)}
EPYMARL_DEFAULT |= {"hidden_dim": 64, "optimizer": "adam"} | GYMMA
EPYMARL_STANDARDISED = {"obs_last_action": False, "standardise_rewards": True, "use_rnn": True}

EPSILON_GREEDY = {"epsilon_start": 1.0, "epsilon_finish": 0.05, "epsilon_anneal_time": 50000, "evaluation_epsilon": 0.0}
PYMARL_Q = {**PYMARL_DEFAULT, **STARCRAFT, **EPSILON_GREEDY}
PYMARL_Q |= {"optimizer": "rmsprop", "buffer_size": 5000, "target_update_interval": 200, "double_q": True}

QLLM_GYMMA = {  # of gymma/src/config/algs/qllm.yaml and qmix.yaml
    **EPYMARL_DEFAULT,
    **EPYMARL_STANDARDISED,
    **EPSILON_GREEDY,
    "evaluation_epsilon": 0.05,
    "epsilon_anneal_time": 200000,
    "hidden_dim": 128,
    "buffer_size": 5000,
    "t_max": 2000000,
    "target_update_interval_or_tau": 0.01,
    "td_lambda": 0.6,
    "double_q": True,
}
QLLM_FOOTBALL = {  # of G-football/src/config: default.yaml, envs/gfootball.yaml, and what algs/*.yaml have in common
    **{key: value for key, value in PYMARL_DEFAULT.items() if key not in RMSPROP},
    **EPSILON_GREEDY,
    "epsilon_anneal_time": 100000,
    "test_nepisode": 32,
    "test_interval": 10000,
    "t_max": 2000000,
    "time_limit": 150,
    "num_agents": 4,
    "rewards": "scoring,checkpoints",
    "reward_scalarisation": "sum",
    "obs_last_action": False,
    "rnn_hidden_dim": 256,
    "batch_size_run": 16,
    "batch_size": 128,
    "buffer_size": 2000,
    "target_update_interval": 1,
    "td_lambda": 1.0,
    "optimizer": "adam",
    "state": "n x 115",
}
EPYMARL_ROLLOUT = {**EPYMARL_DEFAULT, **EPYMARL_STANDARDISED}
EPYMARL_ROLLOUT |= {"buffer_size": 10, "batch_size_run": 10, "batch_size": 10, "lr": 0.0003, "t_max": 20050000}
EPYMARL_PPO = {**EPYMARL_ROLLOUT, "hidden_dim": 128, "target_update_interval_or_tau": 0.01, "entropy_coef": 0.001}
EPYMARL_PPO |= {"standardise_returns": False, "q_nstep": 5, "epochs": 4, "eps_clip": 0.2}

# baselines/QLearning/config/alg of JaxMARL, pqn_vdn_rnn_smax.yaml and pqn_vdn_rnn_mpe.yaml; purejaxql has the first too.
PQN = {"NUM_EPOCHS": 4, "NUM_MINIBATCHES": 16, "NUM_LAYERS": 2, "MAX_GRAD_NORM": 1, "EPS_START": 1.0, "EPS_DECAY": 0.1}
PQN |= {"TEST_INTERVAL": 0.05, "optimizer": "radam", "obs_agent_id": True, "obs_last_action": False, "REW_SCALE": 1.0}
PQN_SMAX = PQN | {"TOTAL_TIMESTEPS": 1e7, "NUM_ENVS": 128, "NUM_STEPS": 128, "HIDDEN_SIZE": 512, "LR": 0.00025}
PQN_SMAX |= {"NORM_TYPE": "batch_norm", "NORM_INPUT": True, "LR_LINEAR_DECAY": True, "GAMMA": 0.99, "LAMBDA": 0.85}
PQN_SMAX |= {"EPS_FINISH": 0.01, "REW_SCALE": 10.0, "TEST_NUM_ENVS": 128}
PQN_MPE = PQN | {"TOTAL_TIMESTEPS": 2e6, "NUM_ENVS": 256, "NUM_STEPS": 16, "HIDDEN_SIZE": 256, "LR": 0.0005}
PQN_MPE |= {"NORM_TYPE": "layer_norm", "NORM_INPUT": False, "LR_LINEAR_DECAY": False, "GAMMA": 0.9, "LAMBDA": 0.3}
PQN_MPE |= {"EPS_FINISH": 0.1, "TEST_NUM_ENVS": 512}

UNREAD_LAMBDA = {
    "td_lambda": Deviation(0.0, "q_learning", "QLLM's files set td_lambda = 0.6, which their learner does not read")
}
FOOTBALL = {
    "grad_norm_clip": Deviation(20, "q_learning", "its gradient clip of 10 is `train.grad_norm_clip=20` here"),
    "state": Deviation("layout", "q_learning", "n x 115 columns; here they see the state of the environment's layout"),
}
SHORT = "The files for StarCraft (PyMARL's) have 2.05 million steps, and 32 evaluation episodes every 10,000 steps"


def same_evaluation(page: str, sentence: str) -> dict[str, Deviation]:
    """The deviation of methods published for StarCraft: evaluated as often, and on as many episodes, as all others."""
    return {
        "test_nepisode": Deviation(100, page, sentence),
        "test_interval": Deviation(50000, page, sentence),
        "t_max": Deviation(2000000, page, sentence),
    }


RIIT_EVALUATION = "Evaluations have 100 episodes every 50,000 steps, those of the public code 32 every 10,000"
MASER_EVALUATION = "3.005 million steps, and its file for StarCraft 24 episodes every 20,000 steps"
QFIX_EVALUATION = "Evaluations have 100 episodes every 50,000 steps, those of the public code 32 every 10,000"
LICA_EVALUATION = "the authors' have 65.6 million steps of StarCraft, and 32 episodes every 320,000 steps"

PQN_DEVIATIONS = {
    "NUM_LAYERS": Deviation(1, "pqn", "one hidden layer before the GRU, where the authors have two"),
    "NUM_STEPS": Deviation("episode", "pqn", "An update follows 128 whole episodes (mpe: 256)"),
    "TEST_NUM_ENVS": Deviation(100, "pqn", "Evaluations have 100 episodes every 50,000 steps"),
}
NORMALISED = "The authors normalise batches on SMAX, and the inputs too"

CASES = {
    "qllm": Published(
        "QLLM public code, gymma QLLM",
        ("mixer=tfcaf",),
        GYM,
        QLLM_GYMMA | {"batch_size_run": 8, "batch_size": 64, "lr": 0.001},
        UNREAD_LAMBDA,
    ),
    "qmix": Published(
        "QLLM public code, gymma QMIX",
        ("mixer=qmix",),
        GYM,
        QLLM_GYMMA
        | {"batch_size_run": 6, "batch_size": 32, "lr": 0.0003}
        | {"mixing_embed_dim": 32, "hypernet_layers": 2, "hypernet_embed": 32},
        UNREAD_LAMBDA,
    ),
    "football-qllm": Published(
        "QLLM public code, GRF", ("mixer=tfcaf",), ("grf",), QLLM_FOOTBALL | {"gamma": 0.999}, FOOTBALL
    ),
    "football-qmix": Published(
        "QLLM public code, GRF",
        ("mixer=qmix",),
        ("grf",),
        QLLM_FOOTBALL | {"mixing_embed_dim": 32, "hypernet_layers": 2, "hypernet_embed": 64},
        FOOTBALL,
    ),
    "football-qatten": Published(
        "QLLM public code, GRF",
        ("mixer=qatten",),
        ("grf",),
        QLLM_FOOTBALL
        | {"buffer_size": 5000, "t_max": 10050000}
        | {"n_attention_head": 4, "n_query_embedding_layer1": 64, "n_query_embedding_layer2": 32}
        | {"n_key_embedding_layer1": 32, "n_head_embedding_layer1": 64, "n_constrant_value": 32},
        FOOTBALL,
    ),
    "iql": Published(  # src/config/algs/iql.yaml
        "EPyMARL public code, iql",
        ("algorithm=iql",),
        GYM,
        EPYMARL_DEFAULT
        | EPYMARL_STANDARDISED
        | EPSILON_GREEDY
        | {"epsilon_anneal_time": 200000, "buffer_size": 5000, "target_update_interval_or_tau": 200}
        | {"lr": 0.0003, "hidden_dim": 128, "double_q": True},
    ),
    "maddpg": Published(  # src/config/algs/maddpg.yaml
        "EPyMARL public code, maddpg",
        ("algorithm=maddpg",),
        GYM,
        EPYMARL_DEFAULT
        | EPYMARL_STANDARDISED
        | {"buffer_size": 50000, "target_update_interval_or_tau": 200, "reg": 0.001, "hidden_dim": 128},
    ),
    "coma": Published(  # src/config/algs/coma.yaml
        "EPyMARL public code, coma",
        ("algorithm=coma",),
        GYM,
        EPYMARL_ROLLOUT
        | {"target_update_interval_or_tau": 200, "entropy_coef": 0.001, "q_nstep": 10, "obs_individual_obs": False},
        {"obs_individual_obs": Deviation(True, "coma", "EPyMARL's critic does not see the agent's observation")},
    ),
    "ippo": Published("EPyMARL public code, ippo", ("algorithm=ippo",), GYM, EPYMARL_PPO),
    "mappo": Published("EPyMARL public code, mappo", ("algorithm=mappo",), GYM, EPYMARL_PPO),
    **{  # src/config/algs/vdn.yaml; the public codes of Qatten, QPLEX and Weighted QMIX keep these values
        mixer: Published("PyMARL public code", (f"mixer={mixer}",), GYM, PYMARL_Q, same_evaluation("q_learning", SHORT))
        for mixer in ("vdn", "qatten", "qplex", "wqmix")
    },
    "qtran": Published(  # src/config/algs/qtran.yaml
        "PyMARL public code",
        ("mixer=qtran",),
        GYM,
        PYMARL_Q | {"mixing_embed_dim": 64, "opt_loss": 1, "nopt_min_loss": 0.1, "qtran_arch": "qtran_paper"},
        same_evaluation("q_learning", SHORT)
        | {"qtran_arch": Deviation("coma_critic", "qtran", "(`qtran_arch: coma_critic` in PyMARL)")},
    ),
    **{
        f"qfix-{variant}": Published(  # src/config/algs/q+fix_*.yaml of the authors, with the options of their scripts
            "QFIX public code",
            ("mixer=qfix", f"mixer.variant={variant}"),
            GYM,
            {key: value for key, value in PYMARL_Q.items() if key not in RMSPROP}
            | {"batch_size_run": 8, "batch_size": 128, "lr": 0.001, "t_max": 10000000, "epsilon_anneal_time": 100000}
            | {"optimizer": "adam", "td_lambda": 0.6, "mixing_embed_dim": 32, "hypernet_embed": 64}
            | {"qfix_type": "q+fix", "qfix_w_attention": False, "qfix_w_delta": 0, "qfix_detach_advantages": True},
            {
                "test_nepisode": Deviation(100, "qfix", QFIX_EVALUATION),
                "test_interval": Deviation(50000, "qfix", QFIX_EVALUATION),
                "grad_norm_clip": Deviation(20, "qfix", "so their gradient clip of 10 is `train.grad_norm_clip=20`"),
            },
        )
        for variant in ("sum", "mono", "lin")
    },
    "maser": Published(  # config/algs/qmix.yaml, config/envs/sc2.yaml, and the command of README.md
        "MASER public code",
        ("algorithm=maser", "mixer=qmix"),
        GYM,
        PYMARL_Q
        | {"test_nepisode": 24, "test_interval": 20000, "t_max": 3005000, "mixing_embed_dim": 32, "hypernet_layers": 1}
        | {"lam": 0.03, "alpha": 0.5, "0.001 * ind": 0.001, "0.001 * mix * expl": 0.001, "0.001 * mix * dis": 0.001},
        same_evaluation("maser", MASER_EVALUATION),
    ),
    "pqn": Published(
        "JaxMARL public code, pqn_vdn_rnn",
        ("algorithm=pqn", "mixer=vdn"),
        ("smax", "lbf", "matrix"),
        PQN_SMAX,
        PQN_DEVIATIONS
        | {
            "NORM_TYPE": Deviation("layer_norm", "pqn", NORMALISED),
            "NORM_INPUT": Deviation(False, "pqn", NORMALISED),
            "LR_LINEAR_DECAY": Deviation(False, "pqn", "The learning rate is constant; on SMAX the authors' falls"),
            "REW_SCALE": Deviation(1.0, "pqn", "on SMAX the authors multiply them by 10"),
            "TEST_INTERVAL": Deviation(
                0.005, "pqn", "those of the authors 128 (MPE: 512) every 500,000 (MPE: 100,000)"
            ),
        },
    ),
    "pqn-mpe": Published(
        "JaxMARL public code, pqn_vdn_rnn",
        ("algorithm=pqn", "mixer=vdn"),
        ("mpe",),
        PQN_MPE,
        PQN_DEVIATIONS
        | {
            "TEST_INTERVAL": Deviation(0.025, "pqn", "those of the authors 128 (MPE: 512) every 500,000 (MPE: 100,000)")
        },
    ),
    "riit": Published(  # PyMARL2's src/config/algs/riit.yaml; the learner's own default for optimizer_epsilon
        "PyMARL2 public code, riit",
        ("algorithm=riit", "mixer=qmix"),
        GYM,
        {key: value for key, value in (PYMARL_DEFAULT | STARCRAFT).items() if key not in RMSPROP}
        | {"batch_size_run": 8, "buffer_size": 128, "batch_size": 32, "off_buffer_size": 5000, "off_batch_size": 64}
        | {"t_max": 10050000, "target_update_interval": 200, "mixing_embed_dim": 32, "hypernet_layers": 1}
        | {"critic_hidden_dim": 128, "lr": 0.001, "critic_lr": 0.001, "lambd": 0.6, "entropy_coef": 0.03}
        | {"optimizer": "adam", "optimizer_epsilon": 1e-7, "critic_loss": "0.5 * error^2"},
        {
            "test_nepisode": Deviation(100, "riit", RIIT_EVALUATION),
            "test_interval": Deviation(50000, "riit", RIIT_EVALUATION),
            "buffer_size": Deviation(
                32, "riit", "The public code waits for 128, and its `latest` is the newest of these"
            ),
            "optimizer_epsilon": Deviation(1e-8, "riit", "Adam's epsilon is 1e-8; the public code's is 1e-7"),
            "critic_loss": Deviation("error^2", "riit", "The critic's loss is the squared error, not half of it"),
        },
    ),
    "lica": Published(  # src/config/algs/lica.yaml of the authors
        "LICA public code",
        ("algorithm=lica",),
        GYM,
        {key: value for key, value in PYMARL_DEFAULT.items() if key not in RMSPROP}
        | {"test_nepisode": 32, "test_interval": 320000, "t_max": 65600000, "optimizer": "adam"}
        | {
            "buffer_size": 32,
            "batch_size_run": 32,
            "batch_size": 32,
            "td_lambda": 0.8,
            "lr": 0.0025,
            "critic_lr": 0.0005,
        }
        | {"target_update_interval (training steps)": 200, "mixing_embed_dim": 64, "entropy_coef": 0.11}
        | {"hypernet_layers": 2, "hypernet_embed": "embed * n * A"},
        same_evaluation("lica", LICA_EVALUATION)
        | {
            "entropy_coef": Deviation(0.06, "lica", "the weight of the entropy is 0.06, which a comment"),
            "hypernet_embed": Deviation(64, "lica", "The hidden layer of the hypernetwork of W1 has width 64"),
        },
    ),
}
# What the public codes do otherwise although no file sets it, by the page that states it.
PADDING = "EPyMARL counts padding as a reward of 0"
REPLAYED_PADDING = "a reward counts once per replay and padding counts as a reward of 0"
TIME_LIMIT = "in EPyMARL it counts as terminated"
RETURNS = "within n steps of the end of the longest episode of a batch bootstrap past terminations"
ADVANTAGES = "EPyMARL computes the advantages anew in every epoch"
PROCEDURES = {
    "q_learning": ("in QLLM's and EPyMARL's public code it counts as terminated", REPLAYED_PADDING),
    "iql": (TIME_LIMIT, REPLAYED_PADDING),
    "maddpg": (TIME_LIMIT, REPLAYED_PADDING, "The memory of the target agents starts at the first step of an episode"),
    "coma": (RETURNS, PADDING, "EPyMARL's critic loss is the sum over the agents"),
    "ippo": (RETURNS, PADDING, ADVANTAGES),
    "mappo": (RETURNS, PADDING, ADVANTAGES, "The authors' code initialises weights orthogonally"),
    "riit": ("The public code samples it once, at the end of the rollout, and stores it",),
    "maser": (
        "L_D and L_E are in the loss but train nothing: phi is in no optimiser, and L_E is of the target networks",
    ),
    "qtran": ("files of PyMARL and of EPyMARL's first version",),
}
SETTINGS = [(name, env) for name, case in CASES.items() for env in case.envs]


def episodes_per_update(run: RunConfig) -> float:
    """Episodes that are played between two updates."""
    return run.train.steps_per_update / run.env.episode_limit


def episodes_between_copies(run: RunConfig) -> float:
    """Episodes between two copies of the target networks; 1 for a copy at each update, as the public codes count."""
    a: Any = run.algorithm
    assert a.target_update == "periodic"
    return 1 if a.target_period == 1 else a.target_period * episodes_per_update(run)


def optimiser_default(run: RunConfig, key: str) -> Any:
    """A value of the optimiser that `train` selects."""
    return make_optimiser(run.train, FlatParameters([torch.nn.Linear(1, 1)])).defaults[key]


def tau_or_period(run: RunConfig) -> float:
    """Rate of soft updates of the target networks, or updates between two copies."""
    a: Any = run.algorithm
    return float(a.target_tau if a.target_update == "soft" else a.target_period)


def agents_learning_rate(run: RunConfig) -> float:
    """Learning rate of the agents."""
    return run.train.learning_rate * getattr(run.algorithm, "agents_rate", 1.0)


def td_lambda(run: RunConfig) -> float:
    """Lambda of the returns; 0 for one-step returns."""
    a: Any = run.algorithm
    assert a.targets == "td_lambda" or a.n_step == 1
    return float(a.td_lambda if a.targets == "td_lambda" else 0.0)


def on_policy(run: RunConfig) -> bool:
    """Whether the method learns from its last rollout alone."""
    return run.algorithm.name in ("coma", "ippo", "mappo", "lica", "pqn")


def batch_size(run: RunConfig) -> int:
    """Episodes that an update learns from."""
    return int(run.env.num_envs) if on_policy(run) else run.train.batch_episodes


def buffer_size(run: RunConfig) -> int:
    """Capacity of the buffer in episodes; for riit, the episodes that learning waits for."""
    if run.algorithm.name == "riit":
        return run.train.batch_episodes
    return int(run.env.num_envs) if on_policy(run) else run.train.buffer_episodes


def hypernet_layers(run: RunConfig) -> int:
    """Layers of the hypernetworks."""
    return 2 if getattr(run.mixer, "hypernet", 1) else 1


# What this package has, by the published name of the parameter.
OURS: dict[str, Callable[[Any], Any]] = {
    "0.001 * ind": lambda run: run.algorithm.individual,
    "0.001 * mix * dis": lambda run: run.algorithm.distance,
    "0.001 * mix * expl": lambda run: run.algorithm.exploration,
    "EPS_DECAY": lambda run: run.algorithm.epsilon_steps / run.train.total_steps,
    "EPS_FINISH": lambda run: run.algorithm.epsilon_end,
    "EPS_START": lambda run: run.algorithm.epsilon_start,
    "GAMMA": lambda run: run.train.gamma,
    "HIDDEN_SIZE": lambda run: run.train.hidden,
    "LAMBDA": lambda run: run.algorithm.td_lambda,
    "LR": lambda run: run.train.learning_rate,
    "LR_LINEAR_DECAY": lambda run: False,
    "MAX_GRAD_NORM": lambda run: run.train.grad_norm_clip,
    "NORM_INPUT": lambda run: False,
    "NORM_TYPE": lambda run: "layer_norm" if run.algorithm.layer_norm else "none",
    "NUM_ENVS": lambda run: run.env.num_envs,
    "NUM_EPOCHS": lambda run: run.algorithm.epochs,
    "NUM_LAYERS": lambda run: 1,
    "NUM_MINIBATCHES": lambda run: run.algorithm.minibatches,
    "NUM_STEPS": lambda run: "episode",
    "REW_SCALE": lambda run: 1.0,
    "TEST_INTERVAL": lambda run: run.train.evaluation.every / run.train.total_steps,
    "TEST_NUM_ENVS": lambda run: run.train.evaluation.episodes,
    "TOTAL_TIMESTEPS": lambda run: run.train.total_steps,
    "alpha": lambda run: run.algorithm.alpha,
    "batch_size": batch_size,
    "batch_size_run": lambda run: run.env.num_envs,
    "buffer_size": buffer_size,
    "critic_hidden_dim": lambda run: run.algorithm.critic_hidden,
    "critic_loss": lambda run: "error^2",
    "critic_lr": lambda run: run.train.learning_rate,
    "double_q": lambda run: run.algorithm.double_q,
    "entropy_coef": lambda run: run.algorithm.entropy,
    "epochs": lambda run: run.algorithm.epochs,
    "eps_clip": lambda run: run.algorithm.clip,
    "epsilon_anneal_time": lambda run: run.algorithm.epsilon_steps,
    "epsilon_finish": lambda run: run.algorithm.epsilon_end,
    "epsilon_start": lambda run: run.algorithm.epsilon_start,
    "evaluation_epsilon": lambda run: run.algorithm.epsilon_evaluation,
    "gamma": lambda run: run.train.gamma,
    "grad_norm_clip": lambda run: run.train.grad_norm_clip,
    "hidden_dim": lambda run: run.train.hidden,
    "hypernet_embed": lambda run: getattr(run.mixer, "hypernet", None) or run.algorithm.hypernet,
    "hypernet_layers": hypernet_layers,
    "lam": lambda run: run.algorithm.intrinsic,
    "lambd": td_lambda,
    "lr": agents_learning_rate,
    "mixing_embed_dim": lambda run: getattr(run.mixer, "embed", None) or run.algorithm.embed,
    "n_attention_head": lambda run: run.mixer.heads,
    "n_constrant_value": lambda run: run.mixer.embed,
    "n_head_embedding_layer1": lambda run: run.mixer.hidden,
    "n_key_embedding_layer1": lambda run: run.mixer.embed,
    "n_query_embedding_layer1": lambda run: run.mixer.hidden,
    "n_query_embedding_layer2": lambda run: run.mixer.embed,
    "nopt_min_loss": lambda run: run.mixer.lambda_nopt,
    "num_agents": lambda run: 4 if run.env.goalkeeper else 3,
    "obs_agent_id": lambda run: run.algorithm.agent_id,
    "obs_individual_obs": lambda run: run.algorithm.name == "coma",
    "obs_last_action": lambda run: run.algorithm.last_action,
    "off_batch_size": lambda run: run.algorithm.replay_episodes,
    "off_buffer_size": lambda run: run.train.buffer_episodes,
    "opt_loss": lambda run: run.mixer.lambda_opt,
    "optim_alpha": lambda run: optimiser_default(run, "alpha"),
    "optim_eps": lambda run: optimiser_default(run, "eps"),
    "optimizer": lambda run: run.train.optimiser,
    "optimizer_epsilon": lambda run: optimiser_default(run, "eps"),
    "qfix_detach_advantages": lambda run: run.mixer.additive,
    "qfix_type": lambda run: "q+fix" if run.mixer.additive else "qfix",
    "qfix_w_attention": lambda run: False,
    "qfix_w_delta": lambda run: 0,
    "q_nstep": lambda run: run.algorithm.n_step,
    "qtran_arch": lambda run: "coma_critic",
    "reg": lambda run: run.algorithm.regularisation,
    "reward_scalarisation": lambda run: run.env.reward,
    "rewards": lambda run: run.env.rewards,
    "rnn_hidden_dim": lambda run: run.train.hidden,
    "standardise_returns": lambda run: run.algorithm.normalise_values,
    "standardise_rewards": lambda run: run.train.standardise_rewards,
    "state": lambda run: "layout",
    "t_max": lambda run: run.train.total_steps,
    "target_update_interval": episodes_between_copies,
    "target_update_interval (training steps)": tau_or_period,
    "target_update_interval_or_tau": tau_or_period,
    "td_lambda": td_lambda,
    "test_interval": lambda run: run.train.evaluation.every,
    "test_nepisode": lambda run: run.train.evaluation.episodes,
    "time_limit": lambda run: run.env.episode_limit,
    "use_rnn": lambda run: run.train.network == "gru",
}


@cache
def paper_run(name: str, env: str) -> RunConfig:
    """The run that the settings of a case compose."""
    overrides = [*CASES[name].overrides, f"env={env}", "train=paper"]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return with_num_envs(load_run(compose("config", overrides)), "cpu")


@pytest.mark.parametrize(("name", "env"), SETTINGS)
def test_every_value_is_the_published_one_or_a_stated_deviation(name: str, env: str) -> None:
    case, run = CASES[name], paper_run(name, env)
    assert run.train.source == case.source
    published = dict(case.values)
    if (
        env == "matrix"
    ):  # both agents get the same payoff, and the scale of rewards that are standardised does not matter
        published.pop("reward_scalarisation", None)
    stated = {key: deviation.value for key, deviation in case.deviations.items()}
    assert {key: OURS[key](run) for key in published} == published | stated
    assert all(case.values[key] != value for key, value in stated.items()), "no deviation is left over"


@pytest.mark.parametrize(("name", "env"), SETTINGS)
def test_an_update_follows_each_rollout_as_published(name: str, env: str) -> None:
    run = paper_run(name, env)
    assert on_policy(run) or episodes_per_update(run) == run.env.num_envs


@pytest.mark.parametrize("name", CASES)
def test_the_page_of_the_method_states_each_deviation(name: str) -> None:
    for deviation in CASES[name].deviations.values():
        page = " ".join((PAGES / f"{deviation.page}.md").read_text().split())
        assert deviation.sentence in page, f"docs/pages/methods/{deviation.page}.md does not say: {deviation.sentence}"


@pytest.mark.parametrize(("page", "sentence"), [(page, text) for page, texts in PROCEDURES.items() for text in texts])
def test_the_page_of_the_method_states_what_no_file_sets(page: str, sentence: str) -> None:
    assert sentence in " ".join((PAGES / f"{page}.md").read_text().split())


@pytest.mark.parametrize("name", ["qllm", "coma", "riit"])
def test_published_settings_of_foraging_mask_no_action(name: str) -> None:
    assert getattr(paper_run(name, "lbf").env, "mask_ineffective", None) is False


@pytest.mark.parametrize("mixer", ["vdn", "qatten", "qplex", "wqmix"])
def test_published_settings_of_a_mixer_are_its_defaults_where_no_file_has_others(mixer: str) -> None:
    assert paper_run(mixer, "lbf").mixer == config_class("mixer", mixer)()


def test_other_published_choices() -> None:
    coma: Any = paper_run("coma", "lbf").algorithm
    assert (coma.targets, coma.critic_sweep, coma.epsilon_start, coma.epsilon_end) == ("n_step", False, 0.0, 0.0)
    sampled = {name: getattr(paper_run(name, "lbf").algorithm, "evaluation", "") for name in CASES}
    assert {name for name, kind in sampled.items() if kind == "sample"} == {"coma", "ippo", "mappo", "maddpg"}
    assert {name for name, kind in sampled.items() if kind == "greedy"} == {"riit", "lica"}
