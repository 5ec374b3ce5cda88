#!/usr/bin/env bash
# Builds the release binaries and measures them; arguments go to the bench (`--help` lists them).
# Figures of a busy machine mean little: the load average is printed with the results.
set -euo pipefail
cd "$(dirname "$0")/.."
# A thousand connections at both ends.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
if [[ ${1:-} == control ]]; then
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh)
  export MECHA_KUBERNETES
  cargo build --release -p mecha-control -p mechad -p mecha-bench
else
  cargo build --release -p mechad -p mecha-bench
fi
exec cargo run --quiet --release -p mecha-bench -- "$@"
