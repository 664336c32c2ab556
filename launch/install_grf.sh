#!/usr/bin/env bash
# Installs the football engine (gfootball 2.10.2, without drawing) into a virtual environment. May be called again at any
# time.
#
#   launch/install_grf.sh [PYTHON]             PYTHON: the environment's python; default .venv/bin/python
#   launch/install_grf.sh packages [PYTHON]    no more than the system's packages that it needs
#   launch/install_grf.sh wheel [PYTHON]       no more than its wheel as well: others may install in PYTHON meanwhile
#   QLLM_EXP_WHEELS=FOLDER                     where the built wheel is kept; default .wheels
#
# There is no ready-made wheel of gfootball, so it is compiled once and the wheel kept. headless_engine.py changes its
# sources before: the work for drawing is left out. It is compiled with link-time optimisation, which keeps its arithmetic:
# episodes are bit for bit those of a plain build of the published sources. A gfootball that was installed otherwise is
# replaced.
set -euo pipefail
cd "$(dirname "$0")/.."

part=all
case ${1:-} in packages | wheel) part=$1 && shift ;; esac
python=${1:-.venv/bin/python}
published=2.10.2
packages=(cmake build-essential libgl1-mesa-dev libegl1-mesa-dev libsdl2-dev libsdl2-image-dev libsdl2-ttf-dev
  libsdl2-gfx-dev libboost-all-dev)
# What gfootball's Python part imports. Its own list also names pygame and opencv-python, for watching games: they are
# left out, because pygame would overwrite the pygame-ce of other environments. It runs with gym up to 0.25.
libraries=(gym==0.25.2 absl-py six opencv-python-headless)

fail() { echo "grf: $1" >&2; exit 1; }
stage() { # NAME COMMAND...: run it into the log, and say how long it took
  local start=$SECONDS name=$1
  shift
  if "$@" >>"$log" 2>&1; then echo "grf: $name, $((SECONDS - start)) s"; else return 1; fi
}

command -v "$python" >/dev/null || fail "$python is not there. Type: make install, then: make grf"
python=$(cd "$(dirname "$(command -v "$python")")" && pwd)/$(basename "$python")
version=$("$python" launch/headless_engine.py --version)
wheels=${QLLM_EXP_WHEELS:-.wheels}
mkdir -p "$wheels"
wheels=$(cd "$wheels" && pwd)
log=$wheels/install_grf.log
exec 9>"$wheels/.lock"
! command -v flock >/dev/null || flock 9 # two at once would build twice
: >"$log"

# Keep the versions that are installed or pinned, except for gym's.
constraints=$(mktemp)
build=$(mktemp -d)
trap 'rm -rf "$constraints" "$build"' EXIT
if [ -f launch/constraints.txt ]; then grep -v '^gym *=' launch/constraints.txt >"$constraints" || true; fi
"$python" -m pip list --format=freeze 2>/dev/null | grep -E '^(torch|numpy)==' >>"$constraints" || true
pip=("$python" -m pip --disable-pip-version-check)

works() { # the version that this script installs, and a real match: reset and one step
  (cd "$build" && "$python" -W ignore -c '
import importlib.metadata, sys
if importlib.metadata.version("gfootball") != sys.argv[1]: sys.exit("another build of gfootball")
import gfootball.env
env = gfootball.env.create_environment("academy_3_vs_1_with_keeper", representation="simple115v2", number_of_left_players_agent_controls=4)
assert env.reset().shape == (4, 115)
assert env.step([0, 0, 0, 0])[0].shape == (4, 115)
' "$version")
}

missing_packages() {
  local one
  for one in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$one" 2>/dev/null)" = installed ] || printf '%s ' "$one"
  done
}

install_packages() {
  local missing sudo=()
  if ! command -v apt-get >/dev/null; then
    # Not Debian: the user may have installed their equivalents.
    command -v cmake >/dev/null && command -v c++ >/dev/null ||
      fail "no apt-get here: install cmake, a C++ compiler, SDL2 (with image, ttf, gfx), OpenGL, EGL and Boost.Python for development, then type: make grf"
    return 0
  fi
  missing=$(missing_packages)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null ||
      fail "packages are missing and need root: ask for 'apt-get install ${missing% }', then type: make grf"
    sudo=(sudo -n)
  fi
  # shellcheck disable=SC2086 # a list of words
  stage "system packages" "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
    'apt-get update -q; apt-get install -y -q --no-install-recommends "$@"' sh $missing ||
    fail "apt-get cannot install ${missing% } (no network?): see $log, then type: make grf"
}

build_wheel() {
  stage "build tools" tools || fail "pip cannot fetch gfootball or its build tools (no network?): see $log, then type: make grf"
  local refusal
  refusal=$("$python" launch/headless_engine.py "$build/gfootball-$published.tar.gz" "$build" 2>&1) || fail "$refusal"
  echo "grf: compiling the engine, 4 to 8 minutes on 2 cores; output in $log"
  stage "engine compiled" compile || fail "the engine does not compile: see $log, then type: make grf"
}
tools() { # in an environment of their own: the build wants an older setuptools
  "$python" -m venv "$build/venv" &&
    "$build/venv/bin/python" -m pip install -q --disable-pip-version-check 'setuptools<81' wheel psutil &&
    "$build/venv/bin/python" -m pip download -q --disable-pip-version-check --no-deps --no-build-isolation \
      --no-binary gfootball -d "$build" "gfootball==$published"
}
compile() { # the package calls `python3`; CMake 4 refuses its CMakeLists.txt unless told so
  local same='-flto=auto -fno-semantic-interposition -fno-plt -fno-math-errno -fno-trapping-math -ftls-model=initial-exec'
  PATH=$build/venv/bin:$PATH CMAKE_POLICY_VERSION_MINIMUM=3.5 CXXFLAGS=$same CFLAGS=$same LDFLAGS='-flto=auto -O3 -Wl,-Bsymbolic' \
    "$build/venv/bin/python" -m pip wheel -q --disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation \
    -w "$build/wheel" "$build/gfootball-$published" &&
    mv "$build"/wheel/gfootball-*.whl "$wheels/"
}
keep_libraries() { # beside the wheel, so that the next installation needs no network
  "${pip[@]}" wheel -q --no-deps -f "$wheels" -c "$constraints" -w "$wheels" "${libraries[@]}"
}

begin=$SECONDS
if works >>"$log" 2>&1; then
  echo "grf: installed and working, $((SECONDS - begin)) s"
  exit 0
fi
install_packages
[ $part != packages ] || exit 0
tag=$("$python" -c 'import platform, sys; v = sys.version_info; print(f"cp{v.major}{v.minor}-linux_{platform.machine()}")')
wheel=$(ls "$wheels/gfootball-$version-"*"${tag%-*}"-*"${tag#*-}".whl 2>/dev/null | head -n 1 || true)
if [ -z "$wheel" ]; then
  build_wheel
  stage "libraries" keep_libraries || fail "pip cannot fetch ${libraries[*]} (no network?): see $log, then type: make grf"
  wheel=$(ls "$wheels/gfootball-$version-"*.whl | head -n 1)
fi
[ $part != wheel ] || exit 0
stage "installed" "${pip[@]}" install -q -f "$wheels" -c "$constraints" "${libraries[@]}" ||
  fail "pip cannot install ${libraries[*]} (no network?): see $log, then type: make grf"
stage "engine installed" "${pip[@]}" install -q --no-deps --force-reinstall "$wheel" ||
  fail "pip cannot install $wheel: see $log, then type: make grf"
stage "a match plays" works || fail "the engine is installed but does not play: see $log, then type: make grf"
