#!/usr/bin/env bash
# Drives a real mechad with the official SDKs, unmodified: scenarios.json in Python, JavaScript, Go, Java and Rust,
# each on every backend: a folder of resources/ with the same components on other products.
#
#   MECHAD                daemon to test; without it the one in target/debug is built
#   MECHA_TEST_EXAMPLES   folder with the built examples of this checkout; without it what is needed is built
#   MECHA_SDK_LANGUAGES   only these, of: java js python go rust
#   MECHA_SDK_BACKENDS    only these, of: embedded redis postgres-kafka
#
# Without Go, or without Java and Maven, those parts are left out, and fail where CI is set. The same holds for
# backends whose servers are not installed.
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
  tee "$log" | awk '
    /^--- PASS: / { passed++; next }
    /^--- FAIL: / { failed++ }
    /^ *--- PASS: / || /^=== / || /^PASS$/ { next }
    { print }
    END { printf "%d passed, %d failed", passed, failed }'
  echo " in $((SECONDS - begun))s"
}

# The same for a run of Maven Surefire.
count_java() {
  tee "$log" | awk '
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

# ---- One language on one backend: $1; $log takes what is not shown ----

play_python() {
  # The SDK warns that some of its own calls are old; apps use them all the same.
  PYTHONDONTWRITEBYTECODE=1 "$work/venv/bin/python" -m pytest -q -p no:cacheprovider -W ignore \
    --rootdir "$here/python" "$here/python"
}

play_js() {
  NODE_PATH=$work/js/node_modules node --test --test-reporter=spec "$here/js/sdk.test.js"
}

# In the following languages apps run in the process of the tests; stage.py starts their sidecars.
play_go() {
  (cd "$here/go" && python3 "$here/stage.py" "$work/go.test" -test.v 2>&1) | count_go
}

play_java() {
  local others=servers
  [ "$1" = embedded ] || others=embedded
  (cd "$here/java" && python3 "$here/stage.py" "${maven[@]}" -DexcludedGroups=$others surefire:test 2>&1) | count_java
}

play_rust() {
  local others=servers::
  [ "$1" = embedded ] || others=embedded::
  (cd "$here" && python3 "$here/stage.py" "${rust[@]}" --quiet -- --skip $others)
}

# All backends, one after the other: a language has one set of built tests.
play() {
  local language=$1 slot=$2 backend log begun failed=0
  for backend in $backends; do
    log=$work/$language-$backend.log
    begun=$SECONDS
    echo "${names[$language]} on $backend:"
    # A database or a namespace of its own in every server, and ports below those that the system gives away.
    MECHA_SDK_BACKEND=$backend MECHA_SDK_PORTS=$((ports + slot * 130)) TEST_REDIS_DB=$slot \
      NAMESPACE=$language-$backend TEST_DATABASE="${TEST_POSTGRES:-} dbname=$language-$backend" \
      "play_$language" "$backend" || failed=1
    slot=$((slot + 1))
  done
  return $failed
}

mkdir -p "$work" || exit 1
target_dir=$target/debug
# Somebody else may run this script, too.
readonly ports=$((10000 + $$ % 10 * 2000))
declare -A names=([python]=Python [js]=JavaScript [go]=Go [java]=Java [rust]=Rust)
# The slowest first.
languages=${MECHA_SDK_LANGUAGES:-java js python go rust}
backends=${MECHA_SDK_BACKENDS:-embedded redis postgres-kafka}

# The servers are started once, around the rest of this script.
if [ -z "${MECHA_SDK_SERVERS:-}" ]; then
  helpers=${MECHA_TEST_EXAMPLES:-}
  if [ -z "$helpers" ]; then
    (cd "$root" && cargo build --quiet --locked -p mecha-testkit --example with_servers) || exit 1
    helpers=$target_dir/examples
  fi
  databases=()
  for language in $languages; do
    for backend in $backends; do databases+=(--database "$language-$backend"); done
  done
  MECHA_SDK_SERVERS=started exec "$helpers/with_servers" --sql "$here/resources/postgres-kafka/setup.sql" \
    "${databases[@]}" bash "${BASH_SOURCE[0]}"
fi
if [ -z "${MECHAD:-}" ]; then
  (cd "$root" && cargo build --quiet --locked -p mechad) || exit 1
  MECHAD=$target_dir/mechad
fi
export MECHAD

status=0
possible=
for backend in $backends; do
  case $backend in
    embedded) ;;
    redis) [ -n "${TEST_REDIS:-}" ] || backend= ;;
    *) [ -n "${TEST_REDIS:-}" ] && [ -n "${TEST_POSTGRES:-}" ] && [ -n "${TEST_KAFKA:-}" ] || backend= ;;
  esac
  possible+=" $backend"
done
backends=$possible

# ---- Building, one after the other ----

maven=(mvn -B -ntp -Dstyle.color=never "-Dmecha.build=$work/java")
rust=(env "CARGO_TARGET_DIR=$work/rust" cargo test --locked --manifest-path "$here/rust/Cargo.toml" --test sdk)
ready=
for language in $languages; do
  case $language in
    python) install_python ;;
    js) install_node ;;
    go)
      have "The Go SDK" "Go 1.25 or newer: https://go.dev/dl" go || continue
      export GOTOOLCHAIN=local GOFLAGS=-mod=readonly
      (quietly "building the Go tests" go-build go -C "$here/go" test -c -o "$work/go.test" .) || { status=1; continue; }
      ;;
    java)
      have "The Java SDK" "a JDK 17 or newer and Maven (Debian: apt-get install openjdk-17-jdk-headless maven)" \
        javac mvn || continue
      (quietly "building the Java tests" java-build "${maven[@]}" -f "$here/java/pom.xml" test-compile) || { status=1; continue; }
      ;;
    rust)
      have "The Rust SDK" "the Rust toolchain: https://rustup.rs" cargo || continue
      (quietly "building the Rust tests" rust-build "${rust[@]}" --no-run) || { status=1; continue; }
      ;;
    *)
      echo "error: MECHA_SDK_LANGUAGES: there is no $language" >&2
      exit 2
      ;;
  esac
  ready+=" $language"
done

# ---- Playing: the languages wait more than they work, so some run beside each other ----

readonly AT_ONCE=3
declare -A running=()
slot=0

# Waits for one to end and shows what it said.
show_next() {
  local pid code
  wait -n -p pid "${!running[@]}"
  code=$?
  cat "$work/${running[$pid]}.out"
  unset "running[$pid]"
  [ "$code" = 0 ] || status=1
}

for language in $ready; do
  [ ${#running[@]} -lt $AT_ONCE ] || show_next
  play "$language" $slot >"$work/$language.out" 2>&1 &
  running[$!]=$language
  slot=$((slot + 3))
done
while [ ${#running[@]} -gt 0 ]; do show_next; done
exit $status
