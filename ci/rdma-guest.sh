#!/bin/bash
# ci/rdma-guest.sh FOLDER: the checks over RDMA, inside a guest of ci/rdma-vm.sh; FOLDER has the test programs.
# Prints what the devices counted for each suite, and ends with a check of the checks: broken verbs must make them fail.
set -u
folder=$1
export UCRPC_TEST_RDMA=1
ulimit -l unlimited
bad=0
counter() { cat "/sys/class/infiniband/$1/ports/1/hw_counters/$2" 2>/dev/null || echo 0; }
# What the links under the devices have sent. It stays when a device is made anew, and nothing but RDMA goes over them.
carried() { local sum=0 d; for d in eth0 eth1; do sum=$((sum + $(cat /sys/class/net/$d/statistics/tx_packets))); done; echo $sum; }
total() { local sum=0 d; for d in rxe0 rxe1; do sum=$((sum + $(counter $d "$1"))); done; echo $sum; }

suite() { # NAME PROGRAM ARGUMENT...
    local name=$1 sent sends before=$SECONDS status
    shift
    sent=$(total sent_pkts) sends=$(total rdma_sends)
    "$@"
    status=$?
    echo "rdma: $name: $([ $status = 0 ] && echo ok || echo FAILED) in $((SECONDS - before)) s;" \
        "the devices sent $(($(total sent_pkts) - sent)) packets for $(($(total rdma_sends) - sends)) sends"
    [ $status = 0 ] || bad=1
    # A suite that passes without the device has tested something else.
    if [ "$(total sent_pkts)" -le "$sent" ]; then echo "rdma: $name: FAILED: no packet went over RDMA"; bad=1; fi
}

# Bursts between two sleeping workers, with each ritual of falling asleep. The one that we use loses no wake-up.
rally() { # UCX_TLS RITUAL
    local out
    out=$(UCX_TLS=$1 UCX_NET_DEVICES=rxe0:1 UCX_KEEPALIVE_INTERVAL=60s UCRPC_TEST_UCX_SCENARIO=rally UCRPC_RITUAL=$2 \
        UCRPC_RALLY_SECONDS="${UCRPC_RALLY_SECONDS:-8}" timeout $((${UCRPC_RALLY_SECONDS:-8} + 90)) \
        "$folder/transport" --exact ucx::tests::child --ignored --nocapture --test-threads=1 2>&1) || { echo "$out"; return 1; }
    echo "rdma: wake-ups over $1, ritual $2: $(echo "$out" | grep '^SLEEPS')"
    [ "$2" = bare ] || echo "$out" | grep -q 'LOST 0$'
}

# Endpoints that are given up while UCX's own thread answers the peer: 1.13.1 aborts on a close that does not wait for that.
closing() { # UCX_TLS
    local out
    out=$(UCX_TLS=$1 UCX_NET_DEVICES=rxe0:1 UCRPC_TEST_UCX_SCENARIO=unproven timeout 100 \
        "$folder/transport" --exact ucx::tests::child --ignored --nocapture --test-threads=1 2>&1) || { echo "$out"; return 1; }
    echo "$out" | grep -q 'scenario passed: unproven'
}

# All of the contract.
part=''
# Left out of RPC under emulation: what measures timers (deadlines, hedging, budgets) and what repeats another case by another interface.
rpc_part='unary sizes failures interceptors credentials received_in_place beside_the_message deadline_travels client_gone
    cancel server_gone limits graceful_shutdown hard_shutdown shutdown_under_load stream_both_ways stream_window
    reconnect retries random_faults'
[ "${RDMA_VM_ACCEL:-}" != kvm ] && [ -z "${UCRPC_RDMA_ALL:-}" ] || rpc_part=''

# The short way: what shows that the path is there, used and checked.
short_contract='echo large_bodies_by_rdma_read small_bodies_by_send plan_later abort_with_data_in_flight'
short_rpc='unary sizes cancel stream_both_ways'
if [ -n "${UCRPC_RDMA_SHORT:-}" ]; then part=$short_contract rpc_part=$short_rpc; fi

[ -z "${UCRPC_RDMA_CASES:-}" ] || part=$UCRPC_RDMA_CASES rpc_part=$UCRPC_RDMA_CASES

cases() { # PROGRAM BACKEND CASE...
    local case status=0 program=$1 backend=$2
    shift 2
    if [ $# = 0 ] && [ "${RDMA_VM_ACCEL:-}" = kvm ]; then "$folder/$program" "$backend/"; return; fi
    # Under emulation one at a time, and each is told.
    # shellcheck disable=SC2046
    [ $# != 0 ] || set -- $("$folder/$program" --list | sed -n "s|^$backend/\(.*\): test$|\1|p")
    one() { UCRPC_TIMES=1 "$folder/$program" --exact "$backend/$1" >/run/case 2>&1 && grep -q '1 passed' /run/case; }
    for case; do
        if ! one "$case"; then
            cat /run/case
            # As everywhere in CI: once more, and it is said. But an abort or a crash is never a matter of time.
            if ! grep -q '^signal: ' /run/case && one "$case"; then echo "FLAKY: $backend/$case failed once and passed when it was run again."; else status=1; cat /run/case; fi
        fi
        grep -E '^ +[0-9.]+ s  ' /run/case
    done
    return $status
}

case ${UCRPC_RDMA_SUITES:-all} in
all) suites="wake close contract rpc faults red"; [ -z "${UCRPC_RDMA_SHORT:-}" ] || suites="close contract rpc red" ;;
*) suites=$UCRPC_RDMA_SUITES ;;
esac
for suite in $suites; do
    case $suite in
    wake)
        for tls in rc ud_verbs; do
            for ritual in bare twice; do suite "sleep over $tls" rally $tls $ritual; done
        done ;;
    close) suite 'closing over ud_verbs' closing ud_verbs ;;
    contract)
        for backend in ${UCRPC_RDMA_BACKENDS:-ucx-rc ucx-ud}; do
            # shellcheck disable=SC2086
            suite "${part:+part of }the contract over $backend" cases contract "$backend" $part
        done ;;
    rpc)
        for backend in ${UCRPC_RDMA_BACKENDS:-ucx-rc ucx-ud}; do
            # shellcheck disable=SC2086
            suite "${rpc_part:+part of }rpc over $backend" cases rpc "$backend" $rpc_part
        done ;;
    faults)
        # These make devices anew, whose counters begin at zero.
        before=$SECONDS sent=$(carried)
        "$folder/two_process" "${UCRPC_RDMA_FILTER:-verbs/}" || bad=1
        sent=$(($(carried) - sent))
        echo "rdma: faults of the RDMA path: $([ $bad = 0 ] && echo ok || echo FAILED, here or before) in $((SECONDS - before)) s; the links carried $sent packets"
        # Neighbours and multicast alone are a few dozen.
        if [ "$sent" -lt 500 ]; then echo "rdma: faults of the RDMA path: FAILED: hardly a packet went over RDMA"; bad=1; fi ;;
    red)
        # Broken on purpose: each of these must fail.
        red() { # WHAT COMMAND...
            local what=$1
            shift
            if timeout 100 "$@" >/run/red.log 2>&1; then
                echo "rdma: $what: FAILED: the checks pass all the same"
                bad=1
            else
                echo "rdma: $what: the checks fail, as they must: $(grep -m1 -oE 'ucx not available.*|unreachable.*|panicked.*' /run/red.log | cut -c1-150)"
            fi
        }
        red 'wrong GID' env UCX_IB_GID_INDEX=9 "$folder/contract" --exact ucx-rc/echo
        rdma link delete rxe0
        red 'no device, rc' "$folder/contract" --exact ucx-rc/echo
        red 'no device, ud' "$folder/contract" --exact ucx-ud/echo
        rdma link add rxe0 type rxe netdev eth0
        suite 'the device is back' "$folder/contract" --exact ucx-rc/echo ;;
    nodes) ;; # In two guests: ci/rdma-nodes.sh.
    *) echo "rdma: FAILED: no suite $suite"; bad=1 ;;
    esac
done
exit $bad
