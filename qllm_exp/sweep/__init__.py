"""Sweeps: planned, then started on this machine or on a Slurm cluster, and their status."""
