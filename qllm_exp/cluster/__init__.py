"""Commands for runs on clusters and on this machine: status, watch, logs, cancel, retry."""

FOLDER_HELP = "a sweep directory, a run directory, or a folder with many of them"
