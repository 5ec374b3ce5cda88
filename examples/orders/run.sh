#!/usr/bin/env bash
# Builds mecha, runs the shop of this folder on its embedded defaults, or on Redis, Kafka and PostgreSQL, buys from it,
# and checks that the books add up. Then replaces the broker under it while orders come in, by editing one line.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${CARGO_TARGET_DIR:-$root/target}/orders
keep=false
backends=false
profile=debug
mecha=
shop=
customer=
dev=
servers=
lock=

usage() {
  cat <<'END'
Usage: bash examples/orders/run.sh [--backends] [--keep] [--release]

Builds mecha, starts a small shop of three apps, buys from it and says what happened. In a second act the broker under
the shop is replaced while orders come in, by an edit of one line.

  --backends  run it on a Redis, a PostgreSQL and an Apache Kafka that are started for it,
              by another folder of resources; the apps stay as they are
  --keep      leave the shop running until Ctrl-C
  --release   build mecha optimised (takes longer)

MECHA and MECHAD, if both are set, name programs to use instead of building them.
END
}

say() { printf '%s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

# Starts a program whose output goes to a log, and leaves its process in $started. It gets a process group of its own,
# so that Ctrl-C reaches this script alone, which then ends things in order: mecha takes a second signal for impatience.
start() {
  local input=$1 output=$2
  shift 2
  # Emptied here and now: who looks into the log next must not find what the last run said.
  : >"$output"
  set -m
  if [ -n "$lock" ]; then
    "$@" >"$output" 2>&1 <"$input" {lock}>&- &
  else
    "$@" >"$output" 2>&1 <"$input" &
  fi
  started=$!
  set +m
}

# Ends a program that was started and waits for it; mecha ends the apps and sidecars that it runs.
stop() {
  [ -n "$1" ] || return 0
  kill -TERM "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null
}

# Whatever happens, nothing stays behind.
leave() {
  local status=$?
  trap - EXIT HUP INT TERM
  stop "$customer" || true
  stop "$shop" || true
  stop "$dev" || true
  stop_servers || true
  exit "$status"
}

# They end, and remove their data, when their input does.
stop_servers() {
  [ -n "$servers" ] || return 0
  exec {servers_input}>&-
  wait "$servers"
}

check_tools() {
  local missing=()
  command -v cargo >/dev/null || missing+=("cargo: the Rust toolchain, see https://rustup.rs")
  command -v cc >/dev/null || missing+=("cc: a C compiler, on Debian: apt-get install build-essential")
  if ! command -v node >/dev/null || ! node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)'; then
    missing+=("node: Node.js 20 or newer, see https://nodejs.org")
  fi
  command -v npm >/dev/null || missing+=("npm: it comes with Node.js, on Debian: apt-get install npm")
  if ! command -v python3 >/dev/null || ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    missing+=("python3: Python 3.11 or newer, on Debian: apt-get install python3")
  elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=("python3-venv: virtual environments for Python, on Debian: apt-get install python3-venv")
  fi
  [ ${#missing[@]} -eq 0 ] || fail "this needs tools that are not here; please install:" "${missing[@]}"
}

# Runs a step whose output matters only if it fails.
quietly() {
  local what=$1 log=$work/log/$2
  shift 2
  if ! "$@" >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    fail "$what failed; the whole log is $log"
  fi
}

# Installs the SDKs once; again only when what is pinned changes.
install_python() {
  local stamp
  stamp=$(cat "$here/requirements.txt" <(python3 -V) | cksum)
  [ "$(cat "$work/venv/.installed" 2>/dev/null)" = "$stamp" ] && return
  say "Installing the Python SDK ..."
  rm -rf "$work/venv"
  quietly "creating a virtual environment" venv.log python3 -m venv "$work/venv"
  quietly "installing the Python SDK" pip.log \
    "$work/venv/bin/python" -m pip install --disable-pip-version-check --no-deps -r "$here/requirements.txt"
  say "$stamp" >"$work/venv/.installed"
}

install_node() {
  local stamp
  stamp=$(cat "$here/package-lock.json" <(node -v) | cksum)
  [ "$(cat "$work/js/.installed" 2>/dev/null)" = "$stamp" ] && return
  say "Installing the JavaScript SDK ..."
  rm -rf "$work/js"
  mkdir -p "$work/js"
  cp "$here/package.json" "$here/package-lock.json" "$work/js/"
  quietly "installing the JavaScript SDK" npm.log npm ci --prefix "$work/js" --no-audit --no-fund
  say "$stamp" >"$work/js/.installed"
}

# Two runs in one checkout would share ports and data.
take_turns() {
  command -v flock >/dev/null || return 0
  exec {lock}>"$work/lock"
  flock -n "$lock" && return
  say "Another run of this example is under way in this checkout; waiting for its end ..."
  flock -w 600 "$lock" || fail "the other run did not end within 10 minutes"
}

# The ports in dapr.yaml, and that of the regulars, are fixed, so that everybody knows them.
check_ports() {
  local port
  for port in $(sed -n 's/^ *appPort: *//p' "$here/dapr.yaml") "$REGULARS_PORT"; do
    if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      fail "port $port is in use, and the shop needs it" "end what listens there, or change appPort in $here/dapr.yaml" \
        "(the regulars' port is in $here/act-two.sh)"
    fi
  done
}

build() {
  local flags=()
  if [ -n "${MECHA:-}" ] && [ -n "${MECHAD:-}" ]; then
    say "Using $MECHA and $MECHAD ..."
    mecha=$MECHA
    export MECHA_MECHAD=$MECHAD
    return
  fi
  [ $profile = release ] && flags+=(--release)
  bash "$root/tests/install-build.sh" >"$work/log/build.log" 2>&1 ||
    fail "the build needs more than is here:" "$(tail -n 3 "$work/log/build.log")"
  # Progress is for people.
  [ -t 2 ] || flags+=(--quiet)
  say "Building mecha and its sidecar mechad (some minutes the first time) ..."
  (cd "$root" && cargo build --locked "${flags[@]}" -p mechad -p mecha) || fail "the build failed, see above"
  mecha=$(dirname "$work")/$profile/mecha
}

# Starts the servers behind the shop and exports where they are.
start_servers() {
  local flags=() said=$work/log/servers.env helper
  quietly "installing the servers" servers-install.log bash "$root/tests/install-servers.sh"
  [ -t 2 ] || flags+=(--quiet)
  say "Starting Redis, PostgreSQL and Apache Kafka on free ports ..."
  helper=${MECHA_TEST_EXAMPLES:-$(dirname "$work")/debug/examples}/backends
  [ -n "${MECHA_TEST_EXAMPLES:-}" ] ||
    (cd "$root" && cargo build --locked "${flags[@]}" -p mecha-testkit --example backends) ||
    fail "building the helper that starts the servers failed, see above"
  rm -f "$work/servers.in"
  mkfifo "$work/servers.in"
  : >"$said"
  set -m
  "$helper" >"$said" 2>"$work/log/servers.log" <"$work/servers.in" &
  servers=$!
  set +m
  exec {servers_input}>"$work/servers.in"
  until grep -q '^SHOP_KAFKA=' "$said"; do
    if ! kill -0 "$servers" 2>/dev/null; then
      cat "$work/log/servers.log" >&2
      fail "the servers did not start"
    fi
    sleep 0.1
  done
  set -a
  # shellcheck disable=SC1090 # written by the helper
  . "$said"
  set +a
}

# Until Ctrl-C; the argument is the shop's log.
stay_open() {
  say "The shop stays open. In another terminal, try:"
  say "  export MECHA_HOME=$MECHA_HOME"
  say "  $mecha list"
  say "  $mecha invoke --app-id inventory --method stock --data '[\"tea\"]'"
  say "Its log is $1. Ctrl-C closes it."
  wait "$shop" || fail "the shop ended by itself with status $?; its log is $1"
  exit 0
}

# shellcheck source=act-two.sh
. "$here/act-two.sh"

while [ $# -gt 0 ]; do
  case $1 in
    --backends) backends=true ;;
    --keep) keep=true ;;
    --release) profile=release ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done

check_tools
mkdir -p "$work/log"
take_turns
check_ports
build
install_python
install_node

log=$work/log/shop.log
# A home of its own, so that a shop of yesterday has no say and yours is left alone.
export MECHA_HOME=$work/home
export NODE_PATH=$work/js/node_modules
export PATH=$work/venv/bin:$PATH
rm -rf "$MECHA_HOME"

trap leave EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

check_ports
runfile=$here/dapr.yaml
from=("$runfile" /dev/null)
own=()
if $backends; then
  start_servers
  # The same file with another first folder; paths in it are seen from this folder.
  runfile=$work/on-backends.yaml
  sed 's|- ~/\.mecha/components$|- ./backends|' "$here/dapr.yaml" >"$runfile"
  say "The apps stay as they are; this is all that changes in dapr.yaml:"
  { diff "$here/dapr.yaml" "$runfile" || true; } | sed -n 's/^\([<>]\)/  \1/p'
  from=(- "$runfile")
  own=(--resources-path "$here/backends")
  cd "$here"
fi
say "Starting the shop: checkout and shipping (JavaScript), inventory (Python), each with its own sidecar ..."
start "${from[1]}" "$log" "$mecha" run -f "${from[0]}"
shop=$started

# The customer is an app like the others; it waits until the shop is open.
start /dev/null "$work/log/customer.log" "$mecha" run --app-id customer "${own[@]}" -- node "$here/customer/main.js"
customer=$started
while kill -0 "$customer" 2>/dev/null; do
  # Without one of its apps the shop serves nobody, so waiting for the customer would be in vain.
  if ! kill -0 "$shop" 2>/dev/null || grep -q '^error' "$log"; then
    tail -n 30 "$log" >&2
    fail "the shop broke down before the customer was done; its whole log is $log"
  fi
  sleep 0.2
done
served=0
wait "$customer" || served=$?
customer=

say
sed -n 's/^== APP == //p' "$work/log/customer.log"
if [ "$served" -ne 0 ]; then
  tail -n 30 "$log" >&2
  fail "the customer was not served as it should; logs: $work/log/customer.log and $log"
fi

closed=0
stop "$shop" || closed=$?
shop=
[ "$closed" -eq 0 ] || fail "the shop did not close as it should (status $closed); its log is $log"
act_two
stop_servers || fail "the servers did not end as they should; see $work/log/servers.log"
servers=
say "The shop is closed; nothing of it is left running. Its logs are in $work/log."
