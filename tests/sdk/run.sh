#!/usr/bin/env bash
# Drives a real mechad with the official SDKs, unmodified: scenarios.json in Python, then in JavaScript.
# MECHAD names the daemon to test; without it the one in target/debug is built.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/sdk

# Runs a step whose output matters only if it fails.
quietly() {
  local what=$1 log=$work/$2.log
  shift 2
  if ! "$@" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "error: $what failed; the whole log is $log" >&2
    exit 1
  fi
}

# The SDKs are installed again only when what is pinned changes.
install_python() {
  local stamp
  stamp=$(cat "$here/python/requirements.txt" <(python3 -V) | cksum)
  [ "$(cat "$work/venv/.installed" 2>/dev/null)" = "$stamp" ] && return
  rm -rf "$work/venv"
  quietly "creating a virtual environment" venv python3 -m venv "$work/venv"
  quietly "installing the Python SDK" pip \
    "$work/venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r "$here/python/requirements.txt"
  echo "$stamp" >"$work/venv/.installed"
}

install_node() {
  local stamp
  stamp=$(cat "$here/js/package-lock.json" <(node -v) | cksum)
  [ "$(cat "$work/js/.installed" 2>/dev/null)" = "$stamp" ] && return
  rm -rf "$work/js"
  mkdir -p "$work/js"
  cp "$here/js/package.json" "$here/js/package-lock.json" "$work/js/"
  quietly "installing the JavaScript SDK" npm npm ci --prefix "$work/js" --no-audit --no-fund
  echo "$stamp" >"$work/js/.installed"
}

mkdir -p "$work" || exit 1
if [ -z "${MECHAD:-}" ]; then
  (cd "$root" && cargo build --quiet --locked -p mechad) || exit 1
  MECHAD=$target/debug/mechad
fi
export MECHAD
install_python
install_node

status=0
echo "Python:"
# The SDK warns that some of its own calls are old; apps use them all the same.
PYTHONDONTWRITEBYTECODE=1 "$work/venv/bin/python" -m pytest -q -p no:cacheprovider -W ignore \
  --rootdir "$here/python" "$here/python" || status=1
echo "JavaScript:"
NODE_PATH=$work/js/node_modules node --test --test-reporter=spec "$here/js/sdk.test.js" || status=1
exit $status
