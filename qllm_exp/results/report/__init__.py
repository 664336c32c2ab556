"""The page of `python -m qllm_exp.results report`: a module per section, put together by `page`."""
