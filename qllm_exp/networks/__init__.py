"""Neural networks of agents, critics and mixers."""
