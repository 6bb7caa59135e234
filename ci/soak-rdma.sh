#!/bin/sh
# The long version of what looks for lost wake-ups over verbs, in a guest with Soft-RoCE: rallies of two bare workers with each ritual
# of falling asleep, and the soaks of the contract, bursts between real dispatchers that sleep, over RC and UD. The first argument is how
# many seconds each of these ten lasts: default 120. It fails if our ritual loses one wake-up, or a dispatcher's detector finds one.
set -eu
cd "$(dirname "$0")/.."
each="${1:-120}"
UCRPC_RDMA_SUITES="wake contract" UCRPC_RDMA_CASES="soak_event soak_adaptive soak_mixed" UCRPC_RALLY_SECONDS="$each" \
    UCRPC_SOAK_SECONDS="$each" UCRPC_RDMA_LIMIT=$((each * 20 + 600)) exec bash ci/rdma.sh
