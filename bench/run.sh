#!/usr/bin/env bash
# Builds the release binaries and measures them; arguments go to the bench (`--help` lists them).
# Figures of a busy machine mean little: the load average is printed with the results.
set -euo pipefail
cd "$(dirname "$0")/.."
# A thousand connections at both ends.
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
# As the image has it: loading OpenSSL's shared libraries costs every sidecar time and memory, whether Kafka is used or
# not. Debian's own are only linked so where their folder is named.
libraries=$(pkg-config --variable=libdir openssl 2>/dev/null || true)
if [[ -e $libraries/libcrypto.a ]]; then
  OPENSSL_INCLUDE_DIR=$(pkg-config --variable=includedir openssl)
  export OPENSSL_STATIC=1 OPENSSL_LIB_DIR=$libraries OPENSSL_INCLUDE_DIR
fi
if [[ ${1:-} == control ]]; then
  MECHA_KUBERNETES=$(bash tests/control/apiserver/build.sh)
  export MECHA_KUBERNETES
  cargo build --release -p mecha-control -p mechad -p mecha-bench
else
  cargo build --release -p mechad -p mecha-bench
fi
exec cargo run --quiet --release -p mecha-bench -- "$@"
