#!/usr/bin/env bash
# Build the images `equipoise:TARGET`: scripts/build-image.sh [serve|train]...
#
# With a Docker engine: docker build. Without one: buildah as root, no daemon, its storage in build/containers; and where
# the official Python image cannot be pulled, on a base that debootstrap makes from the mirror this machine uses for apt.
#   BASE=IMAGE    another base: any Linux image with Python 3.11 to 3.13 and venv as `python3`
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/containers.sh

debian_base=localhost/equipoise-base:bookworm

# The mirror of the bookworm suite in the host's own apt configuration, whatever its format.
apt_mirror() {
    apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(SITE)' | awk '$1 == "Packages" && $2 == "bookworm" { print $3; exit }'
}

make_debian_base() {
    local mirror container root
    command -v debootstrap >/dev/null || fail "no base image: install debootstrap, or name one with BASE=IMAGE."
    mirror=$(apt_mirror)
    [ -n "$mirror" ] || fail "this machine's apt knows no mirror of Debian bookworm: name a base with BASE=IMAGE."
    echo "Making the base $debian_base with debootstrap (about a minute)"
    container=$(buildah_here from scratch)
    root=$(buildah_here mount "$container")
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" "$mirror" \
        >build/debootstrap.log || fail "debootstrap failed: see build/debootstrap.log."
    # What debootstrap took from this machine, and what is of no use in a container.
    rm -rf "$root"/etc/{resolv.conf,hostname,apt/sources.list} "$root"/var/{cache/apt,lib/apt/lists,log/bootstrap.log}
    find "$root/dev" -mindepth 1 -delete
    buildah_here config --cmd /bin/bash "$container"
    buildah_here commit --rm --quiet --format docker "$container" "$debian_base" >/dev/null
}

choose_base() {
    if [ -n "${BASE:-}" ]; then
        return
    fi
    BASE=$(sed -n 's/^ARG BASE=//p' Dockerfile)
    if ! buildah_here pull --quiet "$BASE" >/dev/null 2>build/pull.log; then
        echo "The base $BASE cannot be pulled from here (build/pull.log)."
        BASE=$debian_base
        buildah_here inspect --type image "$BASE" >/dev/null 2>&1 || make_debian_base
    fi
}

# The host's own pip settings, so that an index, a proxy or a certificate set up for it serves the build as well.
pip_secrets() {
    secrets=$(mktemp -d)
    trap 'rm -rf "$secrets"' EXIT
    touch "$secrets/pip.conf" "$secrets/cert.pem"
    if python3 -m pip --version >/dev/null 2>&1; then
        python3 scripts/pip_settings.py "$secrets"
    fi
}

build() { # TARGET
    local command=(docker build)
    [ "$engine" = docker ] || command=(buildah_here bud --isolation chroot --format docker)
    [ -z "${BASE:-}" ] || command+=(--build-arg "BASE=$BASE")
    # BuildKit is the default only since Docker 23.
    DOCKER_BUILDKIT=1 "${command[@]}" --secret "id=pip_conf,src=$secrets/pip.conf" --secret "id=pip_cert,src=$secrets/cert.pem" \
        --target "$1" --tag "equipoise:$1" .
}

mkdir -p build
engine=$(container_engine)
[ "$engine" = docker ] || choose_base
pip_secrets
for target in "${@:-serve}"; do
    echo "Building equipoise:$target with $engine${BASE:+ on $BASE}"
    build "$target"
    [ "$engine" = docker ] || buildah_here rmi --prune >/dev/null # what an earlier build left without a name
    echo "Built equipoise:$target in $SECONDS s"
done
