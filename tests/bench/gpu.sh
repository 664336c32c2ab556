#!/usr/bin/env bash
# What a GPU does for this package, in 8 minutes: gpu.py says what is measured. Its options are those of this script, e.g.
#   tests/bench/gpu.sh --out gpu            writes gpu/gpu.json and gpu/gpu.md
#   tests/bench/gpu.sh --out gpu --quick    the same in seconds, to try the script where no GPU is
# PYTHON selects the Python; for JAX on the GPU, .venv-jaxmarl needs `pip install 'jax[cuda12]'` of the version that it has.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" tests/bench/gpu.py "$@"
