#!/usr/bin/env bash
# TeraGPT on a kind cluster of this machine: makes the cluster, builds both images and loads them, installs the Kubeflow
# training operator and the chart, and trains a first run by `helm test`. Run it again after a change.
#
#   deploy/kind/cluster.sh                every step
#   deploy/kind/cluster.sh chart check    these steps alone, on the cluster that kubectl speaks to
#   deploy/kind/cluster.sh down           removes the cluster
#
# Steps: cluster, images, operator, chart, check. Needs docker, kind, kubectl and helm.
# NAMESPACE (teragpt) is where it goes, HELM_FLAGS are more flags for `helm`, such as --values FILE.
set -euo pipefail
cd "$(dirname "$0")/../.."

NAMESPACE=${NAMESPACE:-teragpt}
OPERATOR=${OPERATOR:-github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4}
version=$(awk '/^appVersion:/ { gsub(/"/, "", $2); print $2 }' helm/teragpt/Chart.yaml)
read -ra flags <<<"${HELM_FLAGS:-}"

needs() {
    local program
    for program; do
        command -v "$program" >/dev/null || { echo "cluster.sh: $program is not on PATH; install it and run this again." >&2; exit 1; }
    done
}

cluster() {
    needs docker kind
    kind get clusters 2>/dev/null | grep -qx teragpt || kind create cluster --config deploy/kind/cluster.yaml --wait 2m
    kubectl config use-context kind-teragpt
}

images() {
    needs docker kind
    local target
    for target in controlplane trainer; do
        docker build --target "$target" --tag "teragpt/$target:$version" --build-arg "REVISION=$(git rev-parse HEAD)" .
        kind load docker-image --name teragpt "teragpt/$target:$version"
    done
}

operator() {
    needs kubectl
    kubectl apply --server-side --kustomize "$OPERATOR"
    kubectl --namespace kubeflow wait deployment/training-operator --for=condition=Available --timeout=5m
}

chart() {
    needs helm
    helm upgrade --install teragpt helm/teragpt --namespace "$NAMESPACE" --create-namespace --wait --timeout 5m "${flags[@]}"
}

check() {
    needs helm
    helm test teragpt --namespace "$NAMESPACE" --logs --timeout 20m
}

down() {
    needs kind
    kind delete cluster --name teragpt
}

[ $# -gt 0 ] || set -- cluster images operator chart check
for step; do
    case $step in
        cluster | images | operator | chart | check | down) ;;
        *) echo "cluster.sh: got step $step; allowed: cluster, images, operator, chart, check, down." >&2; exit 2 ;;
    esac
done
for step; do
    echo "== $step"
    "$step"
done
