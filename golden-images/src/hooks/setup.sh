#!/bin/sh
# mmdebstrap setup hook: package files and lists come from (and stay in) a cache outside the root directory.
# The mounts live in this run's private mount namespace.
set -eu
mkdir -p "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"
mount --bind "$MAYFLY_APT_CACHE/archives" "$1/var/cache/apt/archives"
mount --bind "$MAYFLY_APT_CACHE/lists" "$1/var/lib/apt/lists"
