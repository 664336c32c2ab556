"""The training loop and its parts: rollout, replay, evaluation, checkpoints, seeds."""
