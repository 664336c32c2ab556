#!/bin/sh
# Installs jaxmarl, with which env=smax is compared, into .venv-jaxmarl: it needs JAX, which this package does without.
set -eu
cd "$(dirname "$0")/.."
[ -e .venv-jaxmarl/installed ] && exit 0
echo "installing jaxmarl into .venv-jaxmarl (once, about a minute)"
"${PYTHON:-python3}" -m venv .venv-jaxmarl
.venv-jaxmarl/bin/pip install -q --disable-pip-version-check -r tests/bench/peers/requirements-jaxmarl.txt
touch .venv-jaxmarl/installed
