#!/usr/bin/env bash
# Builds the Kubernetes programs that the tests of the control part run against, once per go.sum, into the
# user's cache folder, and prints the folder they are in.
#
# MECHA_KUBE_APISERVER names another kube-apiserver; then this one is not used, the rest still is.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly KUBERNETES=1.36.3
command -v go >/dev/null || { echo "missing: Go 1.26 or newer, which builds kube-apiserver: https://go.dev/dl" >&2; exit 1; }

key=$(cat go.mod go.sum main.go | sha256sum | cut -c1-16)
folder="${XDG_CACHE_HOME:-$HOME/.cache}/mecha/kubernetes-$KUBERNETES-$key"
if [[ ! -x $folder/kubectl ]]; then
  echo "building kube-apiserver $KUBERNETES, etcd, kube-controller-manager and kubectl; this takes some minutes, once ..." >&2
  mkdir -p "$folder"
  version=k8s.io/component-base/version
  flags="-s -w -X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=${KUBERNETES:2:2}"
  # Built beside its place and moved there, so that an interrupted build leaves nothing that looks whole.
  CGO_ENABLED=0 go build -p 2 -trimpath -buildvcs=false -ldflags="$flags" -o "$folder/kubernetes.new" . >&2
  mv "$folder/kubernetes.new" "$folder/kubernetes"
  for program in etcd kube-apiserver kube-controller-manager kubectl; do
    ln -sf kubernetes "$folder/$program"
  done
fi
echo "$folder"
