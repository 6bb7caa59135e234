#!/bin/sh
# The long version of the contract suite's soaks and cycles, over every backend. The first argument is how many seconds each
# soak (four wait policies per backend) lasts: default 60. 10,000 connect/use/close cycles, orderly and aborted, per backend.
# The suite fails on any lost wake-up and on anything that has not returned to where it was.
set -eu
cd "$(dirname "$0")/.."
UCRPC_SOAK_SECONDS="${1:-60}" UCRPC_CYCLES=10000 \
    exec cargo test --release -p ucrpc --test contract -- soak cycles --test-threads 1
