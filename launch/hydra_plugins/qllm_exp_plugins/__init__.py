"""Plugins of Hydra: the sweeper and the launchers of this package."""
