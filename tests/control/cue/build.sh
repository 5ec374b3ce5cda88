#!/usr/bin/env bash
# Builds the evaluator of CUE that the definitions of deploy/oam are tried with, once per go.sum, into the user's
# cache folder, and prints the folder it is in.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v go >/dev/null || { echo "missing: Go 1.26 or newer, which builds cue: https://go.dev/dl" >&2; exit 1; }

key=$(cat go.mod go.sum main.go | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/mecha/cue-$key"
if [[ ! -x $folder/cue ]]; then
  echo "building cue; this takes half a minute, once ..." >&2
  mkdir -p "$folder"
  # Built beside its place and moved there, so that an interrupted build leaves nothing that looks whole.
  CGO_ENABLED=0 go build -p 2 -trimpath -buildvcs=false -ldflags="-s -w" -o "$folder/cue.new" . >&2
  mv "$folder/cue.new" "$folder/cue"
fi
echo "$folder"
