#!/usr/bin/env bash
# Writes daemon/link/start.ld and injector/link/start.ld anew: which functions the linker puts together at the front
# of mechad and mecha-control. With an argument, mechad or mecha-control, only the one of these.
# Needs valgrind; with redis-server and PostgreSQL installed their drivers are in it, too.
# Worth doing after changes of what runs at a start; an old list only loses some of its effect.
set -euo pipefail
cd "$(dirname "$0")/.."
only=${1:-}
target=${CARGO_TARGET_DIR:-target}
if [[ $only != mecha-control ]]; then
  cargo rustc --release --locked -p mechad --bin mechad -- -C strip=none
  cargo run --quiet --release --locked -p mecha-bench -- layout "$target/release/mechad" daemon/link/start.ld
fi
if [[ $only != mechad ]]; then
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh)
  export MECHA_KUBERNETES
  cargo rustc --release --locked -p mecha-control --bin mecha-control -- -C strip=none
  cargo run --quiet --release --locked -p mecha-bench -- layout --control "$target/release/mecha-control" injector/link/start.ld
fi
# The next build strips them and takes the new order.
