#!/bin/sh
# Runs the contract suite with the UCX versions of ci/wheels.sh. Arguments, if any, are the backends (default: ucx-tcp
# ucx-posix ucx-all). UCRPC_UCX_WHEELS names the folder where the versions are, or will be put. Any failure fails.
set -eu
cd "$(dirname "$0")/.."
dir=$(sh ci/wheels.sh | tail -n 1)
[ $# -gt 0 ] || set -- ucx-tcp ucx-posix ucx-all
failed=
for version in 1.16 1.19 1.22; do
    for backend; do
        echo "== UCX $version, $backend"
        UCRPC_UCX_LIBRARY="$dir/$version/libucx/lib/libucp.so.0" \
            cargo test -p ucrpc --test contract -- "$backend/" || failed="$failed $version/$backend"
    done
done
if [ -n "$failed" ]; then
    echo "ci/ucx-matrix.sh: failed:$failed" >&2
    exit 1
fi
