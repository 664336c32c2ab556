"""The page of `python -m qllm_exp.results report`: one module per section, assembled by `page`."""
