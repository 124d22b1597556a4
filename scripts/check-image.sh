#!/usr/bin/env bash
# Run the built image's own command and check what it does: scripts/check-image.sh [IMAGE], by default equipoise:serve.
#
# No container engine is needed for the run: the image's file tree, user, environment and command are taken from the image
# and started in namespaces of their own, with the limits of docker-compose.yml. Needs Linux and root.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/containers.sh

image=${1:-equipoise:serve}
work=build/image-check

# The bundle to serve: the digits, trained, fitted and exported as a user would.
make_bundle() {
    [ ! -e "$work/bundles/digits/manifest.json" ] || return 0
    echo "Making a bundle of the digits"
    rm -rf "$work/run" "$work/bundles/digits"
    .venv/bin/equipoise train --data digits --out "$work/run"
    .venv/bin/equipoise fit "$work/run"
    .venv/bin/equipoise export "$work/run" --out "$work/bundles/digits" --name digits
}

# Leaves the image's file tree in $tree and its configuration in $work/config.json.
unpack_with_docker() {
    container=$(docker create "$image") || fail "there is no image $image: run make image first."
    tree=$(mktemp -d)
    trap 'docker rm --force "$container" >/dev/null; rm -rf "$tree"' EXIT
    chmod 755 "$tree"
    docker export "$container" | tar -xf - -C "$tree"
    docker inspect --format '{{json .Config}}' "$image" >"$work/config.json"
}

unpack_with_buildah() {
    container=$(buildah_here from --pull-never "$image") || fail "there is no image $image: run make image first."
    trap 'buildah_here rm "$container" >/dev/null' EXIT
    tree=$(buildah_here mount "$container")
    buildah_here inspect --type image "$image" >"$work/inspect.json"
    .venv/bin/python -c 'import json, sys; json.dump(json.load(sys.stdin)["Docker"]["config"], sys.stdout)' \
        <"$work/inspect.json" >"$work/config.json"
}

[ "$(id -u)" = 0 ] || fail "make image-check enters the image with chroot, which needs root."
mkdir -p "$work"
make_bundle
"unpack_with_$(container_engine)"
echo "Checking $image"
unshare --mount --net --pid --fork --kill-child --mount-proc \
    .venv/bin/python scripts/check_image.py --tree "$tree" --config "$work/config.json" --bundles "$work/bundles" --work "$work"
