"""IQL, independent Q-learning: each agent learns from the team's reward as if it were alone.

Sources: Tan (1993); with deep networks, Tampuu et al. (2017), arXiv 1511.08779.

    y_t  = r_t + gamma (1 - terminated_t) Q_i^-(h_{t+1}, argmax_a Q_i(h_{t+1}, a))      agent i, or its TD(lambda) form
    loss = mean over agents and steps [(Q_i(h_t, a_t) - y_t)^2]

This is `q_learning` with `mixer=none`, with identical numbers, under the name that the field uses. `train=paper` has EPyMARL's
settings.

Deviations from the publications:
1. Agents are recurrent, remember whole episodes and share one network (`train.network`, `train.share_parameters`), as in
   EPyMARL (Papoudakis et al. 2021, arXiv 2006.07869). Tan's agents have tables, Tampuu's have convolutional networks.
2. `train=fair` is the common setting of all methods: TD(0.6) targets and soft target updates.
3. An episode that was truncated by a time limit bootstraps from its last state; in EPyMARL it counts as terminated.
4. Rewards are standardised by the moments of all rewards so far. EPyMARL updates the moments from each replayed batch, where a
   reward counts once per replay and padding counts as a reward of 0.
"""

from dataclasses import dataclass

from qllm_exp.algorithms import q_learning
from qllm_exp.algorithms.q_learning import Config as QLearningConfig


@dataclass
class Config(QLearningConfig):
    """Options of `algorithm=iql`; conf/algorithm/iql.yaml explains them."""

    name: str = "iql"


ACCEPTS = ("none",)

make = q_learning.make
