"""The command line, and the typed configuration that it describes."""
