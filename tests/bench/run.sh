#!/usr/bin/env bash
# Speed of this package beside the published packages of JaxMARL, BenchMARL, gfootball and EnvPool, on one core.
# SECONDS_EACH=10, ROUNDS=1 and EPISODES=10 shorten it; CORE selects the core. Speeds are measured only; what fails is the
# comparison of football episodes with those of gfootball as pip builds it, if one of them differs in a bit.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/install_jaxmarl.sh
if [ ! -e .venv-benchmarl/installed ]; then
  echo "installing benchmarl into .venv-benchmarl (once)"
  python3 -m venv .venv-benchmarl
  .venv-benchmarl/bin/pip install -q --disable-pip-version-check -r tests/bench/peers/requirements-benchmarl.txt
  touch .venv-benchmarl/installed
fi
launch/install_grf.sh .venv/bin/python
if [ ! -e .venv-gfootball/installed ]; then
  echo "building gfootball as pip does, into .venv-gfootball (once, about 4 minutes)"
  python3 -m venv .venv-gfootball
  pip=(.venv-gfootball/bin/pip install -q --disable-pip-version-check)
  "${pip[@]}" 'setuptools<81' wheel psutil six
  PATH=$PWD/.venv-gfootball/bin:$PATH CMAKE_POLICY_VERSION_MINIMUM=3.5 \
    "${pip[@]}" --no-build-isolation gfootball==2.10.2 'gym<0.26'
  touch .venv-gfootball/installed
fi
if [ ! -e .venv-envpool/installed ]; then
  echo "installing envpool into .venv-envpool (once)"
  python3 -m venv .venv-envpool
  .venv-envpool/bin/pip install -q --disable-pip-version-check envpool==1.2.5
  touch .venv-envpool/installed
fi
.venv/bin/python tests/bench/compare.py --seconds "${SECONDS_EACH:-20}" --rounds "${ROUNDS:-3}" --core "${CORE:-0}"
.venv/bin/python tests/bench/football.py --seconds "${SECONDS_EACH:-12}" --rounds "${ROUNDS:-3}" --core "${CORE:-0}"
echo "the TFCAF mixer beside QMIX's, same batch:"
taskset -c "${CORE:-0}" .venv/bin/python tests/bench/mixers.py
echo "an update of every algorithm and with every mixer, same batch:"
taskset -c "${CORE:-0}" .venv/bin/python tests/bench/updates.py
echo "env=smax beside jaxmarl's, random actions:"
.venv/bin/python tests/bench/smax.py --seconds 5 --rounds "${ROUNDS:-3}" --core "${CORE:-0}"
echo "env=smax compared with jaxmarl's step by step, 500 episodes of each map:"
.venv/bin/python tests/parity/smax_comparison.py --episodes 500
echo "sweeps: planning, and one more run:"
.venv/bin/python tests/bench/sweeps.py
episodes=${EPISODES:-300}
echo "football: $episodes episodes of every academy scenario and 20,000 steps of 11_vs_11, on both builds of the engine"
digests=$(mktemp -d)
trap 'rm -rf "$digests"' EXIT
pids=()
for venv in .venv .venv-gfootball; do
  "$venv/bin/python" -W ignore tests/bench/football_episodes.py --episodes "$episodes" --full-steps 20000 >"$digests/$venv" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done  # fails if one of the two failed
diff "$digests/.venv" "$digests/.venv-gfootball" && echo "football: all episodes are equal"
