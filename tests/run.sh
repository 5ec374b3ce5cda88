#!/usr/bin/env bash
# Sets up and runs every check and test of this repository; the gate runs this and nothing else.
#
#   bash tests/run.sh                                   everything
#   bash tests/run.sh --list                            the stages
#   MECHA_TEST_STAGES=format,unit bash tests/run.sh     only these
#
# A failed stage does not stop the others. The last line is `N passed, N failed`, summed over all test
# runners; a check without tests of its own counts as one. Status: 0 all passed, 1 something failed or
# a stage ran no test, 2 the command line is wrong.
#
# MECHA_TEST_STAGE_LIMIT   seconds a stage may take before it is ended and counted as failed (1800)
# MECHA_TEST_LONG=1        tests with loops run their long size
#
# No network is needed but for the package registries, and only for what is not cached.

set -uo pipefail

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  echo "tests/run.sh needs bash 4.4 or newer; this is $BASH_VERSION" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

readonly CARGO_DENY_VERSION=0.20.2
readonly RUST_MINIMUM=1.95
readonly STAGES=(
  "tools|the programs everything else needs are there"
  "servers|the servers that components are tested against, installed where missing"
  "format|cargo fmt"
  "build|every program and test, once; later stages use these"
  "arrows|rules of the house: who may depend on whom (xtask tidy)"
  "codegen|committed protobuf code is what the .proto files generate"
  "crds|definitions of the kinds are what the types generate, manifests what the chart renders"
  "docs|generated reference pages are up to date"
  "licences|licences, bans and sources of dependencies; advisories where reachable"
  "unit|tests of each crate"
  "fuzz|everything that reads bytes from outside, under mutated ones"
  "conformance|every component through the cases of its building block"
  "black-box|the real mechad over HTTP and gRPC"
  "sdks|unmodified official SDKs in five languages"
  "example|the shop of the README runs on embedded defaults and on real backends, its broker is swapped, and it ends by itself"
  "clippy|all lints, warnings are errors"
  "rustdoc|API documentation builds without warnings"
  "drain|restarts, replacements and stops under load: nothing fails, nothing is lost"
  "swap|documents changed under load: nothing fails, nothing is lost"
  "faults|daemons, apps, servers and networks break: clear errors, recovery, nothing acknowledged is lost"
  "roles|each role of the control part on a real kube-apiserver"
  "control|the control part as a whole on a real kube-apiserver, with injected sidecars"
  "show|twenty apps under load get another broker and other stores by edits of one line"
)
# Stages that start binaries of this checkout.
readonly NEED_BUILD=" arrows codegen crds docs unit fuzz conformance black-box sdks example drain swap faults roles control show "
# Stages that only compile. They run at low priority beside the next ones, which wait more than they compute, and are
# reported when it is their turn. The stages after them, which break and measure things, have the machine to themselves.
readonly BESIDE=" clippy rustdoc "
readonly BESIDE_FROM=conformance

# ---- Stages ----

# The same packages and features in every cargo call, so that one build serves all of them.
readonly WORKSPACE=(--workspace --locked)

stage_tools() {
  local wrong=0
  need() { # program, what to install
    command -v "$1" >/dev/null && return 0
    echo "missing: $1. Install $2."
    wrong=1
    return 1
  }
  at_least() { # name, found version, wanted version, what to install
    [[ $(printf '%s\n%s\n' "$3" "$2" | sort -V | head -n 1) == "$3" ]] && return 0
    echo "too old: $1 $2, wanted $3 or newer. Install $4."
    wrong=1
  }
  local rust="the Rust toolchain: https://rustup.rs"
  if need cargo "$rust" && need rustc "$rust"; then
    at_least rustc "$(rustc --version | awk '{print $2}')" "$RUST_MINIMUM" "it with: rustup update stable"
    cargo fmt --version >/dev/null 2>&1 || { echo "missing: rustfmt. Install it with: rustup component add rustfmt"; wrong=1; }
    cargo clippy --version >/dev/null 2>&1 || { echo "missing: clippy. Install it with: rustup component add clippy"; wrong=1; }
  fi
  if need python3 "Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"; then
    at_least python3 "$(python3 -c 'import platform; print(platform.python_version())')" 3.11 "Python 3.11 or newer"
    python3 -c 'import ensurepip, venv' 2>/dev/null || {
      echo "missing: the Python modules venv and ensurepip. Install them (Debian: apt-get install python3-venv)."
      wrong=1
    }
  fi
  if need node "Node.js 20 or newer: https://nodejs.org"; then
    at_least node "$(node --version | tr -d v)" 20 "Node.js 20 or newer: https://nodejs.org"
  fi
  need npm "npm; it comes with Node.js: https://nodejs.org"
  need cc "a C compiler (Debian: apt-get install build-essential)"
  return "$wrong"
}

stage_servers() { bash tests/install-servers.sh; }

stage_format() { cargo fmt --all --check; }

stage_clippy() { cargo clippy "${WORKSPACE[@]}" --all-targets -- -D warnings; }

# In one call: cargo resolves features once and has both cores busy to the end. The examples are started by tests.
stage_build() {
  cargo build "${WORKSPACE[@]}" --bins --examples --tests --message-format=json-render-diagnostics >"$BUILT"
}

# Runs test programs of the build: `package/target`, a star stands for anything; what follows -- is for them.
targets() { python3 tests/targets.py "$BUILT" "$@"; }

stage_arrows() { "$BINARIES/xtask" tidy; }

stage_codegen() { "$BINARIES/xtask" codegen --check; }

stage_crds() {
  local status=0
  "$BINARIES/xtask" crds --check || status=1
  "$BINARIES/xtask" manifests --check || status=1
  return "$status"
}

stage_docs() { "$BINARIES/xtask" docs --check; }

stage_licences() {
  local deny root="${XDG_CACHE_HOME:-$HOME/.cache}/mecha/cargo-deny-$CARGO_DENY_VERSION"
  if deny=$(command -v cargo-deny) && [[ $("$deny" --version) == "cargo-deny $CARGO_DENY_VERSION" ]]; then
    :
  else
    deny="$root/bin/cargo-deny"
    [[ -x $deny ]] || cargo install cargo-deny --quiet --locked --version "$CARGO_DENY_VERSION" --root "$root" || return 1
  fi
  "$deny" --locked check licenses bans sources
  verdict "licences, bans and sources" $?
  if limit 90 "$deny" --locked fetch db >/dev/null 2>&1; then
    "$deny" --locked check --disable-fetch advisories
    verdict "advisories" $?
  else
    echo "advisories: not checked, the database (github.com/RustSec/advisory-db) cannot be reached from here"
  fi
}

# With the examples for the same reason as in the build.
stage_rustdoc() { RUSTDOCFLAGS="-D warnings" cargo doc "${WORKSPACE[@]}" --no-deps --lib --examples; }

stage_unit() {
  local status=0 examples
  # All but those of tests/ and those on a real API server, which are stages of their own. Many wait for a server or a
  # clock, so more run at a time than there are cores.
  RUST_TEST_THREADS=4 targets --beside 1 '*' '!*/real_server' '!mecha-tests/*' mecha-tests/lib || status=1
  # Cargo builds half of everything again for examples in the documentation, with other features; so only if there are any.
  examples=$(git ls-files -z '*.rs' | xargs -0 awk "$EXAMPLES")
  if [[ -n $examples ]]; then
    cargo test "${WORKSPACE[@]}" --no-fail-fast --doc || status=1
  fi
  return "$status"
}

# The files with examples that rustdoc would run: blocks without a language or with Rust's, and indented ones.
readonly EXAMPLES='
  FNR == 1 { inside = 0 }
  !match($0, /^[ \t]*\/\/[\/!]/) { inside = 0; blank = 1; next }
  {
    text = substr($0, RSTART + RLENGTH)
    if (match(text, /^ *(```+|~~~+)/)) {
      inside = !inside
      language = substr(text, RLENGTH + 1)
      if (inside && language ~ /^ *($|rust|should_panic|no_run|compile_fail|edition|ignore|test_harness)/) { print FILENAME; nextfile }
    } else if (!inside && blank && text ~ /^ ?    +[^ ]/) { print FILENAME; nextfile }
    blank = text ~ /^ *$/
  }'

stage_fuzz() { targets mecha-tests/fuzz; }

stage_conformance() {
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh) || return 1
  export MECHA_KUBERNETES
  targets mecha-tests/conformance
}

stage_black-box() { targets mecha-tests/api; }

stage_drain() { targets mecha-tests/drain; }

stage_swap() { targets mecha-tests/swap; }

stage_faults() { targets mecha-tests/faults; }

stage_roles() {
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh) || return 1
  export MECHA_KUBERNETES
  RUST_TEST_THREADS=3 targets '*/real_server'
}

stage_control() {
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh) || return 1
  MECHA_HELM=$(bash tests/control/helm/build.sh) || return 1
  MECHA_CUE=$(bash tests/control/cue/build.sh) || return 1
  export MECHA_KUBERNETES MECHA_HELM MECHA_CUE
  RUST_TEST_THREADS=3 targets mecha-tests/control -- --skip show::
}

# By itself: with its servers, twenty sidecars have both cores busy.
stage_show() {
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh) || return 1
  export MECHA_KUBERNETES
  targets mecha-tests/control -- show::
}

stage_sdks() { bash tests/sdk/run.sh; }

stage_example() {
  act_two "broker-blue -> broker-green" && act_two "redis -> kafka" --backends
}

# Runs the shop and checks that its second act shows the edit, the plan, the decision with its reasons, the receipts, and
# that nothing failed and nothing was lost.
act_two() { # the move, options of the example
  local move=$1 out line
  shift
  out=$(mktemp) || return 1
  # A failed example has said why.
  bash examples/orders/run.sh "$@" | tee "$out" || { rm -f "$out"; return 1; }
  local expected=(
    '^  >       backendSelector: '
    "^~ shop/pubsub: $move \\(Drain\\)\$"
    '^plan sha256:[0-9a-f]{64}$'
    "^\| shop/pubsub: $move \(Drain\); .*the class selects"
    '^\|     rejected  broker-memory: '
    '^\| decision sha256:[0-9a-f]{64}$'
    '^1 +[^ ]+ +Component +pubsub +updated .* applied '
    '^Orders taken: [1-9][0-9]* before the edit, [1-9][0-9]* while the broker changed, [1-9][0-9]* after it\.$'
    '^0 failed requests, 0 lost events, 0 pieces sold twice\.$'
  )
  local missing=0
  for line in "${expected[@]}"; do
    grep -Eq -- "$line" "$out" || { echo "the second act does not show: $line"; missing=1; }
  done
  rm -f "$out"
  return "$missing"
}

# Stages that are one check each; the others have runners whose counts are read.
readonly CHECKS=" tools servers format clippy build arrows codegen crds docs rustdoc example "

# ---- Running them ----

# A check inside a stage: counted as one.
verdict() {
  if (($2 == 0)); then echo "check: $1 passed"; else echo "check: $1 failed"; fi
}

limit() {
  if command -v timeout >/dev/null; then timeout -k 10 "$@"; else "${@:2}"; fi
}

# Prints "passed failed skipped" of all runners in a log: libtest and libtest-mimic, pytest, node:test.
count() {
  sed -e 's/\x1b\[[0-9;]*[A-Za-z]//g' "$1" | awk '
    function number(word,   text) {
      if (!match($0, "[0-9]+ " word)) return 0
      text = substr($0, RSTART, RLENGTH)
      return text + 0
    }
    /^test result: / { passed += number("passed"); failed += number("failed"); skipped += number("ignored"); next }
    / in [0-9.]+s/ && /[0-9]+ (passed|failed|errors?|skipped)/ {
      passed += number("passed"); failed += number("failed") + number("error"); skipped += number("skipped"); next
    }
    /^(#|ℹ) pass [0-9]+$/ { passed += $3 }
    /^(#|ℹ) (fail|cancelled) [0-9]+$/ { failed += $3 }
    /^(#|ℹ) (skipped|todo) [0-9]+$/ { skipped += $3 }
    /^check: .* passed$/ { passed++ }
    /^check: .* failed$/ { failed++ }
    END { print passed + 0, failed + 0, skipped + 0 }'
}

declare -A running=() watching=() # groups of processes, by stage
end_stage() { # group of processes
  kill -TERM -- "-$1" 2>/dev/null || return 0
  local i
  for ((i = 0; i < 50; i++)); do
    kill -0 -- "-$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null
}

interrupted() {
  trap - INT TERM
  local group
  for group in "${running[@]}"; do end_stage "$group"; done
  echo "interrupted" >&2
  exit 130
}

# Starts a stage in a process group of its own, so that nothing it started outlives it.
start_stage() { # stage, file descriptor for its output, niceness
  local name=$1 out=$2 nice=${3:-0} group
  set -m
  (renice -n "$nice" -p "$BASHPID" >/dev/null; "stage_$name") </dev/null >&"$out" 2>&1 &
  group=$!
  (sleep "$STAGE_LIMIT"; echo "$name took longer than ${STAGE_LIMIT}s and is ended"; end_stage "$group") >&"$out" 2>&1 &
  watching[$name]=$!
  disown "$!" # ending it is no news
  set +m
  running[$name]=$group
}

# Waits for a stage that was started, and gives its status.
finish_stage() {
  local name=$1 status
  wait "${running[$name]}"
  status=$?
  kill -KILL -- "-${watching[$name]}" 2>/dev/null
  unset "running[$name]" "watching[$name]"
  return "$status"
}

# Runs one stage and shows its output, also that of one which was started beside others.
run_stage() {
  local name=$1 log="$LOGS/$1.log" status out writer group i
  if [[ -n ${running[$name]-} ]]; then
    finish_stage "$name"
    status=$?
    cat "$log"
    return "$status"
  fi
  : >"$log"
  exec {out}> >(exec tee "$log")
  writer=$!
  start_stage "$name" "$out"
  group=${running[$name]}
  finish_stage "$name"
  status=$?
  end_stage "$group"
  exec {out}>&-
  for ((i = 0; i < 50; i++)); do # the last words reach the log
    kill -0 "$writer" 2>/dev/null || break
    sleep 0.1
  done
  kill "$writer" 2>/dev/null
  return "$status"
}

start_beside() {
  local name out
  for name in $BESIDE; do
    [[ -z $selected || $selected == *" $name "* ]] || continue
    exec {out}>"$LOGS/$name.log"
    start_stage "$name" "$out" 19
    exec {out}>&-
  done
}

list() {
  local stage
  for stage in "${STAGES[@]}"; do printf '%-12s %s\n' "${stage%%|*}" "${stage#*|}"; done
}

case "${1-}" in
  "") ;;
  --list) list; exit 0 ;;
  -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "tests/run.sh: unknown argument $1; try --list or --help" >&2; exit 2 ;;
esac

selected=" ${MECHA_TEST_STAGES:-} "
selected=${selected//,/ }
if [[ -n ${selected// /} ]]; then
  for name in $selected; do
    if [[ $'\n'$(list) != *$'\n'"$name "* ]]; then
      echo "tests/run.sh: no stage is called $name; the stages are:" >&2
      list >&2
      exit 2
    fi
    [[ $NEED_BUILD == *" $name "* && $selected != *" build "* ]] && selected+="build "
  done
else
  selected=""
fi

if ! command -v cargo >/dev/null && [[ -f ${CARGO_HOME:-$HOME/.cargo}/env ]]; then
  # shellcheck disable=SC1091
  . "${CARGO_HOME:-$HOME/.cargo}/env"
fi

# Tests set what they need; what the shell of a developer has must not change their outcome.
for variable in $(compgen -e); do
  case $variable in
    MECHA_TEST_* | MECHA_KUBE_APISERVER) ;;
    DAPR_* | OTEL_* | MECHA_* | APP_ID | APP_PORT | FORCE_COLOR | RUST_LOG) unset "$variable" ;;
  esac
done
export CARGO_TERM_COLOR=never NO_COLOR=1
export no_proxy="${no_proxy:+$no_proxy,}localhost,127.0.0.1,::1"
export NO_PROXY=$no_proxy
[[ -n ${CI:-} ]] && export CARGO_INCREMENTAL=0

target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target="$PWD/$target"
readonly BINARIES="$target/debug" LOGS="$target/test-logs" BUILT="$target/test-logs/built.json"
readonly STAGE_LIMIT=${MECHA_TEST_STAGE_LIMIT:-1800}
mkdir -p "$LOGS" || exit 1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap interrupted INT TERM
export MECHA_HOME="$scratch/home"
# Named, so that nobody asks cargo for one of them, which would build half of everything again with other features.
export MECHAD="$BINARIES/mechad" MECHA="$BINARIES/mecha" MECHA_MECHAD="$BINARIES/mechad"
export MECHA_CONTROL="$BINARIES/mecha-control" MECHA_TEST_EXAMPLES="$BINARIES/examples"

sum_passed=0 sum_failed=0 built=yes
rows=() broken=()
for stage in "${STAGES[@]}"; do
  name=${stage%%|*}
  [[ -z $selected || $selected == *" $name "* ]] || continue
  [[ $name == "$BESIDE_FROM" ]] && start_beside
  printf '\n==> %s: %s\n' "$name" "${stage#*|}"
  begin=$SECONDS
  if [[ $NEED_BUILD == *" $name "* && $built == no ]]; then
    echo "not run: the build failed"
    passed=0 failed=1 skipped=0
  else
    run_stage "$name"
    status=$?
    if [[ $CHECKS == *" $name "* ]]; then
      passed=$((status == 0)) failed=$((status != 0)) skipped=0
    else
      read -r passed failed skipped < <(count "$LOGS/$name.log")
      if ((passed + failed == 0 && status == 0)); then
        echo "$name ran no test, which counts as a failure"
      fi
      # A runner that could not start, or a stage that ran nothing, has failed too.
      ((failed > 0 || (status == 0 && passed > 0))) || failed=1
    fi
  fi
  [[ $name == build && $failed -gt 0 ]] && built=no
  rows+=("$(printf '%-12s %7d %7d %8d %5ds' "$name" "$passed" "$failed" "$skipped" $((SECONDS - begin)))")
  ((failed > 0)) && broken+=("$name")
  sum_passed=$((sum_passed + passed)) sum_failed=$((sum_failed + failed))
  if [[ $name == tools && $failed -gt 0 ]] && ! command -v cargo >/dev/null; then
    echo "nothing else can run without cargo"
    break
  fi
done

printf '\n%-12s %7s %7s %8s %6s\n' stage passed failed skipped time
printf '%s\n' "${rows[@]}"
printf 'all stages: %ds\n' "$SECONDS"
for name in "${broken[@]}"; do
  echo "failed: $name; its output is in $LOGS/$name.log, again: MECHA_TEST_STAGES=$name bash tests/run.sh"
  grep -hE '^(test .*FAILED$|FAILED |--- FAIL: |\[ERROR\]   [A-Za-z]+Test\.|error(\[|:)|check: .* failed|not ok| *✖ |missing: |too old: )' "$LOGS/$name.log" 2>/dev/null |
    awk '!seen[$0]++' | head -n 20 | sed 's/^/  /'
done
echo "$sum_passed passed, $sum_failed failed"
((sum_failed == 0 && sum_passed > 0))
