#!/usr/bin/env bash
# Chromium for the tests of pages, where it is missing (Debian, as root).
set -euo pipefail

command -v chromium >/dev/null && exit 0
[[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || {
  echo "install_browser: no chromium here. Debian, as root: apt-get install chromium" >&2
  exit 1
}
echo "install_browser: installing chromium" >&2
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null
