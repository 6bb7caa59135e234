#!/bin/bash
# ci/rdma-nodes.sh FOLDER: runs in two guests at once. Node 1 talks to node 0 over RDMA, then node 0's machine stops dead.
set -u
export UCRPC_TEST_RDMA=1 UCRPC_TEST_PEER=node UCX_NET_DEVICES=rxe0:1 UCX_TLS=$2
peer=$1/two_process port=7471 share=$RDMA_VM_SHARE
patient='connect_timeout_ms=30000 prove_timeout_ms=29000'
wait_for() { # FILE PATTERN SECONDS
    local n=0
    until grep -q "$2" "$1" 2>/dev/null; do
        n=$((n + 1))
        if [ $n -gt $(($3 * 10)) ]; then echo "rdma: node $RDMA_VM_NODE: FAILED: no '$2' in $3 s"; cat "$1"; exit 1; fi
        sleep 0.1
    done
}
if [ "$RDMA_VM_NODE" = 0 ]; then
    (echo "listen ucx://10.77.0.1:$port mode=echo $patient"; sleep 600) | "$peer" >/run/server 2>&1 &
    wait_for /run/server '^@listening.*ok=true' 60
    : >"$share/listening"
    while [ ! -e "$share/echoed" ]; do sleep 0.1; done
    echo c >/proc/sysrq-trigger
    sleep 60
    exit 1
fi
while [ ! -e "$share/listening" ]; do sleep 0.1; done
(
    echo "connect ucx://10.77.0.1:$port mode=ping $patient"
    while [ ! -e /run/ended ]; do sleep 0.2; done
    echo 'balance within_ms=20000'
    echo "connect auto://10.77.0.1:$port connect_timeout_ms=3000"
    sleep 8
    echo quit
) | "$peer" >/run/client 2>&1 &
client=$!
wait_for /run/client '^@connected.*ok=true' 60
wait_for /run/client '^@echoed' 60
sleep 1
start=$SECONDS
sent=$(cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts)
: >"$share/echoed"
wait_for /run/client '^@ended' 20
: >/run/ended
wait_for /run/client '^@balance.*ok=true' 40
wait_for /run/client '^@connected.*ok=false' 20
wait $client
status=$?
field() { grep -m1 "^@$1" /run/client | tr '\t' '\n' | sed -n "s/^$2=//p"; }
lane=$(field connected transport)
echo "rdma: between two guests over $2: $lane, $(field echoed count) echo, $sent packets; the peer's machine died: $(field ended kind) within $((SECONDS - start)) s"
case $lane in *_verbs/rxe0*) ;; *) echo "rdma: FAILED: not over RDMA"; exit 1 ;; esac
[ "$sent" -gt 20 ] && [ $status = 0 ]
