#!/bin/sh
# Installs what tests of written files need: pdflatex with booktabs, to compile tables; ffmpeg, for animations as MP4. Debian, as
# root; elsewhere it says what is missing.
set -eu
packages=""
{ command -v pdflatex && kpsewhich booktabs.sty; } >/dev/null || packages="texlive-latex-base texlive-latex-recommended"
{ command -v ffmpeg && command -v ffprobe; } >/dev/null || packages="$packages ffmpeg"
[ -n "$packages" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing $packages (once, about a minute)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq $packages >/dev/null
else
  echo "the tests need it: install $packages first (Debian: apt-get install $packages)" >&2
  exit 1
fi
