"""Runs and sweeps on disk: their directories, metrics and states."""
