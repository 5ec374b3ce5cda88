#!/usr/bin/env bash
# Drives a real mechad with the official SDKs, unmodified: scenarios.json in Python, JavaScript, Go, Java and Rust.
# MECHAD names the daemon to test; without it the one in target/debug is built.
# Without Go, or without Java and Maven, those parts are left out, and fail where CI is set.
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

# Are these programs there? If not, says what to install; in CI that is a failure.
have() {
  local what=$1 install=$2 program
  shift 2
  for program in "$@"; do
    if ! command -v "$program" >/dev/null; then
      echo "missing: $program. $what is not tested; install $install."
      [ -z "${CI:-}" ] || status=1
      return 1
    fi
  done
}

# Passes on what a Go test run says, in place of its passed tests a line of counts.
count_go() {
  tee "$work/go.log" | awk '
    /^--- PASS: / { passed++; next }
    /^--- FAIL: / { failed++ }
    /^ *--- PASS: / || /^=== / || /^PASS$/ { next }
    { print }
    END { printf "%d passed, %d failed", passed, failed }'
  echo " in $((SECONDS - begun))s"
}

# The same for a run of Maven Surefire.
count_java() {
  tee "$work/java.log" | awk '
    { gsub(/\033\[[0-9;]*m/, "") }
    # The line of the whole run is the one without a time.
    /Tests run: [0-9]+, Failures: [0-9]+, Errors: [0-9]+, Skipped: [0-9]+$/ {
      gsub(/[^0-9]+/, " ")
      failed = $2 + $3
      skipped = $4
      passed = $1 - failed - skipped
      next
    }
    /^\[INFO\]/ || /^$/ { next }
    { print }
    END { printf "%d passed, %d failed, %d skipped", passed, failed, skipped }'
  echo " in $((SECONDS - begun))s"
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
# In the following languages apps run in the process of the tests; stage.py starts their sidecars.
echo "Go:"
begun=$SECONDS
if have "The Go SDK" "Go 1.25 or newer: https://go.dev/dl" go; then
  export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
  if (quietly "building the Go tests" go-build go -C "$here/go" test -c -o "$work/go.test" .); then
    (cd "$here/go" && python3 "$here/stage.py" "$work/go.test" -test.v 2>&1) | count_go || status=1
  else
    status=1
  fi
fi
echo "Java:"
begun=$SECONDS
if have "The Java SDK" "a JDK 17 or newer and Maven (Debian: apt-get install openjdk-17-jdk-headless maven)" javac mvn; then
  (cd "$here/java" && python3 "$here/stage.py" mvn -B -ntp -Dstyle.color=never -Dmecha.build="$work/java" test 2>&1) | count_java || status=1
fi
echo "Rust:"
if have "The Rust SDK" "the Rust toolchain: https://rustup.rs" cargo; then
  rust=(env CARGO_TARGET_DIR="$work/rust" cargo test --locked --manifest-path "$here/rust/Cargo.toml" --test sdk)
  if (quietly "building the Rust tests" rust-build "${rust[@]}" --no-run); then
    python3 "$here/stage.py" "${rust[@]}" --quiet || status=1
  else
    status=1
  fi
fi
exit $status
