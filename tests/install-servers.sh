#!/usr/bin/env bash
# Installs the servers that tests start themselves, where they are missing, and what building needs.
# Safe to run again.
#
#   bash tests/install-servers.sh
#
# Packages need root and Debian or Ubuntu; elsewhere it names what to install and ends with status 1.
# Kafka comes from Maven's packages into ${XDG_CACHE_HOME:-~/.cache}/mecha, once per version.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# program, or a pattern of paths|package
readonly SERVERS=(
  "redis-server|redis-server"
  "/usr/lib/postgresql/*/bin/postgres|postgresql"
  "java|default-jre-headless"
  "mvn|maven"
)
readonly KAFKA_VERSION=4.3.1

install_packages() {
  local server policy missing=()
  for server in "${SERVERS[@]}"; do
    command -v "${server%%|*}" >/dev/null || compgen -G "${server%%|*}" >/dev/null || missing+=("${server##*|}")
  done
  if ((${#missing[@]} == 0)); then
    return
  fi
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "missing servers; install: ${missing[*]}" >&2
    exit 1
  fi
  # The packages would start their servers; the tests start their own.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    # shellcheck disable=SC2064 # the path is known now
    trap "rm -f '$policy'" EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# The broker's jars, checked against the sums of this repository, and put in place as a whole.
install_kafka() {
  local cache="${XDG_CACHE_HOME:-$HOME/.cache}/mecha" folder fetched
  folder="$cache/kafka-$KAFKA_VERSION"
  [[ -d $folder ]] && return
  mkdir -p "$cache"
  fetched=$(mktemp -d "$cache/kafka.XXXXXX")
  if ! mvn -B -ntp -q -f "$here/servers/kafka-pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$fetched" >&2; then
    rm -rf "$fetched"
    echo "Apache Kafka $KAFKA_VERSION could not be fetched from Maven's packages" >&2
    exit 1
  fi
  if ! (cd "$fetched" && sha256sum --quiet --check "$here/servers/kafka.sha256"); then
    rm -rf "$fetched"
    echo "Apache Kafka $KAFKA_VERSION is not what tests/servers/kafka.sha256 says" >&2
    exit 1
  fi
  # Whoever was faster wins.
  mv -T "$fetched" "$folder" 2>/dev/null || rm -rf "$fetched"
}

bash "$here/install-build.sh"
install_packages
install_kafka
