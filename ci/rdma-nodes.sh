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
before=$SECONDS
filter=${UCRPC_RDMA_FILTER:-}
[ -z "${UCRPC_RDMA_SHORT:-}" ] || filter=guests/
# shellcheck disable=SC2086
"$folder/two_process" $filter
status=$?
# The agent ends when it is asked for nothing; if all went well, its machine is no more.
timeout 3 "$folder/two_process" far 2>/dev/null
echo "rdma: between two guests: $([ $status = 0 ] && echo ok || echo FAILED) in $((SECONDS - before)) s"
exit $status
