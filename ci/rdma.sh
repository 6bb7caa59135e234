#!/bin/bash
# ci/rdma.sh: builds the tests and runs them over RDMA in guests with Soft-RoCE, in one and between two; `cargo xtask test --rdma` runs it.
# UCRPC_RDMA_ALL=1: all of RPC also under emulation. UCRPC_RDMA_SUITES="wake close contract rpc faults red nodes": only these.
# UCRPC_RDMA_BACKENDS=ucx-ud: contract and rpc only over this. UCRPC_RDMA_CASES="cycles echo": of these suites only these cases.
# UCRPC_RDMA_LIMIT=SECONDS: for all that runs in one guest.
# UCRPC_RDMA_SHORT=1, as in `cargo xtask test` and CI: a few cases of each suite over rc and ud, and the check of the checks.
set -euo pipefail
cd "$(dirname "$0")/.."
share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
mkdir "$share/bin"
# Built here: the guest is slow. They are copied because a later build may remove them.
cargo test -p ucrpc --test contract --test rpc --test two_process --no-run 2>&1 | tee "$share/log"
for name in contract rpc two_process; do
    file=$(sed -n "s/.*Executable tests\/$name\/main.rs (\(.*\))/\1/p" "$share/log" | tail -n 1)
    cp "$file" "$share/bin/$name"
done
cargo build -p ucrpc-cli
cp "$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug/ucrpc" "$share/bin/"
cargo test -p ucrpc-transport --lib --no-run 2>&1 | tee "$share/log"
cp "$(sed -n 's/.*Executable unittests src\/lib.rs (\(.*\))/\1/p' "$share/log" | tail -n 1)" "$share/bin/transport"
limit=${UCRPC_RDMA_LIMIT:-$([ -z "${UCRPC_RDMA_ALL:-}" ] && echo 3000 || echo 7200)}
[ "${UCRPC_RDMA_SUITES:-}" = nodes ] || ci/rdma-vm.sh --mem 2048 --timeout $limit -- bash "$PWD/ci/rdma-guest.sh" "$share/bin"
case " ${UCRPC_RDMA_SUITES:-all} " in *" all "* | *" nodes "*) ;; *) exit 0 ;; esac
ci/rdma-vm.sh --nodes 2 --may-crash 0 --env CI --mem 1024 --timeout 900 -- bash "$PWD/ci/rdma-nodes.sh" "$share/bin" | sed -u 's/^\[1\] //'
