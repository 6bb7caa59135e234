#!/bin/sh
# Fetches the UCX versions that the version tests meet, from the wheels of PyPI (no verbs, no GPU needed), and unpacks them to
# DIR/VERSION/libucx/lib. DIR is the first argument, UCRPC_UCX_WHEELS, or ~/.cache/ucrpc/ucx. Needs python3 with pip, and unzip
# is not needed.
set -eu
dir=${1:-${UCRPC_UCX_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/ucrpc/ucx}}
mkdir -p "$dir"
for version in 1.16 1.19 1.22; do
    test -e "$dir/$version/libucx/lib/libucp.so.0" && continue
    wheels=$(mktemp -d "$dir/tmp.XXXXXX")
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheels" "libucx-cu12==$version.*"
    python3 -m zipfile -e "$wheels"/libucx_cu12-*.whl "$wheels/out"
    rm -rf "${dir:?}/$version"
    mv "$wheels/out" "$dir/$version"
    rm -rf "$wheels"
    test -e "$dir/$version/libucx/lib/libucp.so.0"
done
echo "$dir"
