#!/bin/bash
# ci/rdma-nodes.sh FOLDER: runs in two guests at once. Node 1 has the tests and their clients, node 0 an agent that starts the servers
# for them (tests/two_process/far.rs). The last test stops node 0 dead.
set -u
folder=$1
ulimit -l unlimited
if [ "$RDMA_VM_NODE" = 0 ]; then exec "$folder/two_process" agent "$RDMA_VM_CONTROL_IP:7000"; fi
export UCRPC_TEST_RDMA=1 UCRPC_TEST_AGENT=$RDMA_VM_PEER_CONTROL_IP:7000
agent=/dev/tcp/$RDMA_VM_PEER_CONTROL_IP/7000
until (: <"$agent") 2>/dev/null; do
    [ $SECONDS -lt 150 ] || { echo "rdma: FAILED: the other guest has no agent"; exit 1; }
    sleep 0.3
done
# What RoCE sends over the link, whichever device it is: one is removed and made again on the way.
tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress protocol ip flower ip_proto udp dst_port 4791 action ok || exit
carried() { tc -s filter show dev eth0 egress | sed -n 's/.*Sent [0-9]* bytes \([0-9]*\) pkt.*/\1/p'; }
before=$SECONDS sent=$(carried)
filter=${UCRPC_RDMA_FILTER:-}
[ -z "${UCRPC_RDMA_SHORT:-}" ] || filter=guests/
# shellcheck disable=SC2086
"$folder/two_process" $filter
status=$?
# Whether it was the tests: the guests' link is QEMU's.
[ $status = 0 ] || ping -c 3 -W 2 "$RDMA_VM_PEER_IP" >/run/ping || echo "rdma: between two guests: the link itself is dead, or the other guest: $(tail -n 2 /run/ping | head -n 1)"
# The agent ends when it is asked for nothing; if all went well, its machine is no more.
timeout 3 "$folder/two_process" far 2>/dev/null
sent=$(($(carried) - sent))
echo "rdma: between two guests: $([ $status = 0 ] && echo ok || echo FAILED) in $((SECONDS - before)) s; this one sent $sent RoCE packets over the link"
if [ -z "${UCRPC_RDMA_FILTER:-}" ] && [ "$sent" -lt 500 ]; then echo "rdma: between two guests: FAILED: hardly a packet went over RDMA"; exit 1; fi
exit $status
