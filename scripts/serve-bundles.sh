#!/bin/sh
# The serving image's command: register every bundle (a folder or a .tar) mounted in /bundles, then serve.
# Without any, the service goes on with what its state folder holds.
set -eu
for bundle in /bundles/*; do
    case $bundle in
    *.tar) set -- "$@" "$bundle" ;;
    *) if [ -f "$bundle/manifest.json" ]; then set -- "$@" "$bundle"; fi ;;
    esac
done
exec equipoise serve "$@"
