"""Commands for runs on clusters and on this machine: status, watch, logs, cancel, retry."""
