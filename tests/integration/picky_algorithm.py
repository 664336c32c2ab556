"""A user's own algorithm that accepts a single mixer."""

from dataclasses import dataclass

from qllm_exp.algorithms import q_learning
from qllm_exp.algorithms.q_learning import Config as QLearningConfig

ACCEPTS = ("qmix",)


@dataclass
class Config(QLearningConfig):
    name: str = "picky_algorithm"


make = q_learning.make
