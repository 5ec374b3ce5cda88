#!/usr/bin/env bash
# Installs what building needs beside Rust and a C compiler, where it is missing: the headers of OpenSSL
# and zlib, which the Kafka client is built with. Safe to run again.
#
#   bash tests/install-build.sh
#
# Needs root and Debian or Ubuntu; elsewhere it names what to install and ends with status 1.

set -euo pipefail

missing=()
for program in make pkg-config; do
  command -v "$program" >/dev/null || missing+=("$program")
done
command -v c++ >/dev/null || command -v g++ >/dev/null || missing+=(g++)
# library as pkg-config knows it|package
for library in "openssl|libssl-dev" "zlib|zlib1g-dev"; do
  pkg-config --exists "${library%%|*}" 2>/dev/null || missing+=("${library##*|}")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "missing for the build; install (names of Debian's packages): ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Without pkg-config nothing could be told about the libraries.
apt-get install -y -qq --no-install-recommends "${missing[@]}"
