#!/bin/sh
# Installs pdflatex with booktabs, with which the tests compile tables. Debian, as root; elsewhere it says what is missing.
set -eu
command -v pdflatex >/dev/null && kpsewhich booktabs.sty >/dev/null && exit 0
packages="texlive-latex-base texlive-latex-recommended"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing pdflatex (once, about a minute)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq $packages >/dev/null
else
  echo "the tests need pdflatex: install it first (Debian: apt-get install $packages)" >&2
  exit 1
fi
