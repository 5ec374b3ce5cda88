#!/usr/bin/env bash
# Builds helm, which renders and installs deploy/chart, once per go.sum, into the user's cache folder, and prints
# the folder it is in.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v go >/dev/null || { echo "missing: Go 1.26 or newer, which builds helm: https://go.dev/dl" >&2; exit 1; }

key=$(cat go.mod go.sum | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/mecha/helm-$key"
if [[ ! -x $folder/helm ]]; then
  echo "building helm; this takes two minutes, once ..." >&2
  mkdir -p "$folder"
  version=$(go list -m -f '{{.Version}}' helm.sh/helm/v3)
  # The version of Kubernetes that a chart is rendered for where no server is asked.
  kubernetes=$(go list -m -f '{{.Version}}' k8s.io/client-go)
  minor=${kubernetes#v0.}
  flags="-s -w -X helm.sh/helm/v3/internal/version.version=$version"
  flags+=" -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=${minor%%.*}"
  flags+=" -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=${minor%%.*}"
  # Built beside its place and moved there, so that an interrupted build leaves nothing that looks whole.
  CGO_ENABLED=0 go build -p 2 -trimpath -buildvcs=false -ldflags="$flags" -o "$folder/helm.new" helm.sh/helm/v3/cmd/helm >&2
  mv "$folder/helm.new" "$folder/helm"
fi
echo "$folder"
