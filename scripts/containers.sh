# Sourced by build-image.sh and check-image.sh: which engine there is, and buildah with a storage of the project's own.

fail() {
    echo "error: $*" >&2
    exit 1
}

# docker where an engine answers, else buildah.
container_engine() {
    if docker info >/dev/null 2>&1; then
        echo docker
    elif command -v buildah >/dev/null; then
        [ "$(id -u)" = 0 ] || fail "without a Docker engine the images are built by buildah, which needs root here."
        echo buildah
    else
        fail "neither a Docker engine nor buildah: start one, or install the other."
    fi
}

buildah_here() {
    buildah --storage-driver vfs --root "$PWD/build/containers/storage" --runroot "$PWD/build/containers/run" "$@"
}
