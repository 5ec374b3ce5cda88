#!/usr/bin/env bash
# Writes daemon/link/start.ld anew: which functions the linker puts together at the front of mechad.
# Needs valgrind; with redis-server and PostgreSQL installed their drivers are in it, too.
# Worth doing after changes of what runs at a start; an old list only loses some of its effect.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo rustc --release --locked -p mechad --bin mechad -- -C strip=none
cargo run --quiet --release --locked -p mecha-bench -- layout target/release/mechad daemon/link/start.ld
# The next build strips it and takes the new order.
