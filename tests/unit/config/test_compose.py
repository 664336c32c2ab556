"""Errors of the command line say what to type instead."""

import pytest

from qllm_exp.config.compose import compose_run
from qllm_exp.errors import UserError


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (["lr=1e-3"], "Unknown key 'lr'. Did you mean 'train.learning_rate'?"),
        (["train.lr=1e-3"], "Did you mean 'train.learning_rate'?"),
        (["gamma=0.9"], "Did you mean 'train.gamma'?"),
        (["t_max=1000"], "Did you mean 'train.total_steps'?"),
        (["total_steps=1000"], "Did you mean 'train.total_steps'?"),
        (["epsilon_anneal_time=5"], "Did you mean 'algorithm.epsilon_steps'?"),
        (["train.gama=0.9"], "Did you mean 'train.gamma'?"),
        (["mixer=vdn", "mixer.embed=64"], "It is an option of mixer=qatten or mixer=qfix or mixer=qmix or "),
        (["mixer=vdn", "mixer.embed=64"], ", not of mixer=vdn."),
        (["embed=64"], "It is an option of algorithm=lica or mixer=qatten or "),
        (["embed=64"], ", not of algorithm=q_learning or mixer=tfcaf."),
        (["mixing_embed_dim=64"], ", not of mixer=tfcaf."),
        (["algorithm=mappo", "algorithm.double_q=true"], "not of algorithm=mappo."),
        (["tracking.project=x"], "It is an option of tracking=wandb, not of tracking=local."),
        (["algorithm=qmix"], "algorithm=qmix is unknown. 'qmix' is a choice of mixer: type mixer=qmix."),
        (["mixer=mappo"], "'mappo' is a choice of algorithm: type algorithm=mappo."),
        (["mixer=QMIX"], "Did you mean 'qmix'?"),
        (["env=LBF"], "Did you mean 'lbf'?"),
        (["train=Fair"], "Did you mean 'fair'?"),
        (["mixer=null"], "type mixer=none"),
        (["seed=0:5"], "seed=0:5 is not a range. For one run each from 0 to 5 type -m seed=0-5."),
        (["seed=0..5"], "type -m seed=0-5."),
        (["seed=[0,1,2]"], "seed=[0, 1, 2] is a list, but seed has one value. For several runs type -m seed=0,1,2."),
        (["train.learning_rate=[0.1,0.2]"], "type -m train.learning_rate=0.1,0.2."),
        (["env.options.N=3"], "Unknown key 'env.options'. It is an option of env=mpe or env=pettingzoo."),
        (["train.total_steps=1.5"], "train.total_steps: Value '1.5'"),
        (["env=pettingzoo", "env.option={N: 4}"], "Did you mean 'env.options'?"),
    ],
)
def test_a_mistyped_override_gets_a_hint(typed, hint):
    with pytest.raises(UserError) as error:
        compose_run(typed)
    assert hint in str(error.value), error.value


def test_a_key_is_never_suggested_in_its_own_place():
    with pytest.raises(UserError) as error:
        compose_run(["train.evaluation={evry: 5}"])
    assert "Did you mean 'train.evaluation'" not in str(error.value)
