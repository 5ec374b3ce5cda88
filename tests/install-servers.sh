#!/usr/bin/env bash
# Installs the servers that tests start themselves, where they are missing. Safe to run again.
#
#   bash tests/install-servers.sh
#
# Needs root and Debian or Ubuntu; elsewhere it names what to install and ends with status 1.

set -euo pipefail

# program, or a pattern of paths|package
readonly SERVERS=(
  "redis-server|redis-server"
  "/usr/lib/postgresql/*/bin/postgres|postgresql"
)

missing=()
for server in "${SERVERS[@]}"; do
  command -v "${server%%|*}" >/dev/null || compgen -G "${server%%|*}" >/dev/null || missing+=("${server##*|}")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "missing servers; install: ${missing[*]}" >&2
  exit 1
fi
# The packages would start their servers; the tests start their own.
readonly policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
