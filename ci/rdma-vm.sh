#!/bin/bash
# ci/rdma-vm.sh [options] [--] COMMAND [ARG...]
#
# Runs COMMAND inside a short-lived QEMU guest that has a working Soft-RoCE
# device (rdma_rxe), and exits with COMMAND's exit status. `cargo xtask rdma-vm`
# installs what it needs and runs it; docs/rdma.md tells the rest.
set -eu
umask 077

usage() {
    cat <<'EOF'
usage: rdma-vm.sh [options] [--] COMMAND [ARG...]
  --nodes N        1 or 2 guests; with 2, COMMAND runs in both (see RDMA_VM_NODE)
  --cpus N         virtual CPUs per guest              (default 2; 1 with --nodes 2)
  --mem MIB        memory per guest                    (default 1024)
  --timeout S      wall-clock bound, boot included     (default 600)
  --mtu N          MTU of the guests' Ethernet         (default 4200: RDMA MTU 4096)
  --net MODE       veth: two joined devices in each guest, rxe0 + rxe1
                   eth:  one device, rxe0              (default veth if 1 node)
  --accel A        auto, kvm or tcg                    (default auto)
  --env NAME       also hand this variable to COMMAND  (repeatable)
  --share DIR      host folder, writable in the guest at the same path
  --work DIR       keep run files (console log, monitor sockets) here
  --may-crash N    node N may vanish without reporting an exit status
  --prepare        only fetch the kernel and build the initramfs
  --verbose        the guest's console on stderr
with 2 nodes: eth0 (10.77.0.x, rxe0) joins them, and eth1 (10.78.0.x, RDMA_VM_CONTROL_IP), which rdma-vm-link leaves alone
environment: RDMA_VM_CACHE (default ~/.cache/ucrpc/rdma-vm), RDMA_VM_KERNEL_DEB
exit status: that of COMMAND (of the lowest failing node); 124 out of time;
             125 the guest failed; 126 bad usage or missing host tool
EOF
}

die() { echo "rdma-vm: $*" >&2; exit 126; }

nodes=1 cpus='' mem=1024 limit=600 mtu=4200 net='' accel=auto share='' work=''
crash='' prepare='' verbose='' names=''
while [ $# -gt 0 ]; do
    case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --mem) mem=$2; shift 2 ;;
    --timeout) limit=$2; shift 2 ;;
    --mtu) mtu=$2; shift 2 ;;
    --net) net=$2; shift 2 ;;
    --accel) accel=$2; shift 2 ;;
    --env) names="$names $2"; shift 2 ;;
    --share) share=$(cd "$2" && pwd -P); shift 2 ;;
    --work) work=$2; shift 2 ;;
    --may-crash) crash=$2; shift 2 ;;
    --prepare) prepare=1; shift ;;
    --verbose) verbose=1; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    -*) usage >&2; exit 126 ;;
    *) break ;;
    esac
done
[ -n "$prepare" ] || [ $# -gt 0 ] || { usage >&2; exit 126; }
case $nodes in 1) ;; 2) ;; *) die "--nodes is 1 or 2" ;; esac
[ -n "$cpus" ] || cpus=$((nodes == 1 ? 2 : 1))
[ -n "$net" ] || net=$([ "$nodes" = 1 ] && echo veth || echo eth)

missing=''
for t in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio \
    depmod:kmod modprobe:kmod rdma:iproute2 dpkg:dpkg; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${t%%:*}" >/dev/null || missing="$missing ${t##*:}"
done
[ -z "$missing" ] || die "please install:$missing"
PATH=$PATH:/usr/sbin:/sbin

# ---- the kernel: a Debian package, unpacked, never installed --------------
cache=${RDMA_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ucrpc/rdma-vm}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P)
exec 9>"$cache/lock"
flock 9
if ! ls "$cache"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
    rm -rf "$cache/kernel.tmp"
    mkdir -p "$cache/kernel.tmp/deb"
    deb=${RDMA_VM_KERNEL_DEB:-}
    if [ -z "$deb" ]; then
        pkg=$(apt-cache depends linux-image-amd64 |
            sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)
        [ -n "$pkg" ] || die "apt does not know linux-image-amd64 (apt-get update?)"
        (cd "$cache/kernel.tmp/deb" && apt-get -q -o "APT::Sandbox::User=$(id -un)" download "$pkg") >&2
        deb=$(echo "$cache"/kernel.tmp/deb/*.deb)
    fi
    dpkg -x "$deb" "$cache/kernel.tmp"
    rm -rf "$cache/kernel.tmp/deb" "$cache/kernel"
    ver=$(basename "$cache"/kernel.tmp/boot/vmlinuz-*)
    depmod -b "$cache/kernel.tmp" "${ver#vmlinuz-}"
    # Unpacked here, the kernel need not unpack itself under emulation (3 s).
    k=$cache/kernel.tmp/boot/$ver
    number() { od -An -t "u$2" -j "$1" -N "$2" "$k" | tr -d ' '; }
    from=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
    tail -c +$((from + 1)) "$k" | head -c $(($(number 588 4) - 4)) |
        xz -dc >"$cache/kernel.tmp/vmlinux" 2>/dev/null || rm -f "$cache/kernel.tmp/vmlinux"
    mv "$cache/kernel.tmp" "$cache/kernel"
fi
ver=$(basename "$cache"/kernel/boot/vmlinuz-*)
ver=${ver#vmlinuz-}
image=$cache/kernel/vmlinux
[ -e "$image" ] || image=$cache/kernel/boot/vmlinuz-$ver

# ---- the initramfs: busybox, the modules, and the init below --------------
boot_modules='virtio_pci virtio_console 9pnet_virtio 9p overlay'
rdma_modules='virtio_net veth crc32_generic rdma_rxe rdma_ucm ib_umad'
guest_init() {
    cat <<'INIT'
#!/bin/busybox sh
export PATH=/bin
bb=/bin/busybox
stage() { read -r t _ </proc/uptime; echo "rdma-vm: $t $*" >/dev/kmsg; }
give_up() { echo "rdma-vm: guest: $*" >/dev/console; $bb poweroff -f; }
opt() { for w in $($bb cat /proc/cmdline); do case $w in rdmavm.$1=*) echo "${w#*=}" ;; esac; done; }
$bb mkdir -p /proc /sys /dev /host /up /run /tmp
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
while read -r m; do $bb insmod "/mod/$m" || give_up "insmod $m"; done </mod/order.boot
p9=trans=virtio,version=9p2000.L,msize=262144
$bb mount -t 9p -o $p9,ro,cache=loose host /host || give_up 'mount host'
$bb mount -t tmpfs tmpfs /up
$bb mkdir /up/u /up/w /up/root
$bb mount -t overlay -o lowerdir=/host,upperdir=/up/u,workdir=/up/w overlay /up/root || give_up 'mount overlay'
r=/up/root
for d in proc sys dev run tmp; do [ -d $r/$d ] || $bb mkdir -p $r/$d; done
$bb mount -t proc proc $r/proc
$bb mount -t sysfs sys $r/sys
$bb mount -t devtmpfs dev $r/dev
$bb mkdir -p $r/dev/pts $r/dev/shm
$bb mount -t devpts devpts $r/dev/pts
$bb mount -t tmpfs tmpfs $r/dev/shm
$bb mount -t tmpfs tmpfs $r/run
$bb mkdir -p $r/run/rdma-vm
$bb mount -t 9p -o $p9,cache=none run $r/run/rdma-vm || give_up 'mount run'
share=$($bb cat $r/run/rdma-vm/share 2>/dev/null)
if [ -n "$share" ]; then $bb mount -t 9p -o $p9,cache=none share "$r$share" || give_up 'mount share'; fi
ver=$($bb uname -r)
$bb mkdir -p $r/lib/modules
$bb ln -sfn "$(opt kernel)/lib/modules/$ver" $r/lib/modules/$ver
stage root
while read -r m; do $bb insmod "/mod/$m" || give_up "insmod $m"; done </mod/order.rdma
node=$(opt node) mtu=$(opt mtu) net=$(opt net)
$bb hostname node$node
# By way of env: busybox would run its own applet for a bare name.
in_root() { $bb chroot $r /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
if [ -e /dev/infiniband/rdma_cm ]; then :; else give_up 'no /dev/infiniband/rdma_cm'; fi
# Starting a program is slow under emulation, so: one ip and one rdma process.
# Neighbours are fixed: an RDMA connection made before ARP has its answer can
# take ten seconds more.
mac=52:54:00:77:00:0
links() {
    if [ "$net" = eth ]; then
        echo "link set eth0 up
neigh replace 10.77.0.$((2 - node)) lladdr $mac$((2 - node)) dev eth0 nud permanent"
        [ ! -d /sys/class/net/eth1 ] || echo "link set eth1 up"
        return
    fi
    for i in 0 1; do echo "link set eth$i up"; done
    for i in 0 1; do
        me=10.77.0.$((i + 1)) other=10.77.0.$((2 - i))
        echo "neigh replace $other lladdr $mac$((2 - i)) dev eth$i nud permanent
route replace $other/32 dev eth$i src $me table $((100 + i))"
    done
}
first() {
    echo "link set lo up"
    if [ "$net" = eth ]; then
        echo "link set eth0 mtu $mtu
addr add 10.77.0.$((node + 1))/24 dev eth0"
        [ ! -d /sys/class/net/eth1 ] || echo "addr add 10.78.0.$((node + 1))/24 dev eth1"
        return
    fi
    # Two devices with a real (shapeable, breakable) link between them in one
    # guest. Both addresses are local, so the kernel would short-cut through
    # lo; the rules send each one's traffic out of its own device.
    echo "link add eth0 mtu $mtu address ${mac}1 type veth peer name eth1 mtu $mtu address ${mac}2"
    for i in 0 1; do
        me=10.77.0.$((i + 1)) other=10.77.0.$((2 - i)) table=$((100 + i))
        echo "addr add $me/24 dev eth$i
rule add pref 10 iif eth$i lookup local
rule add pref 20 from $me to $other lookup $table
rule add pref 21 oif eth$i to $other lookup $table"
    done
    echo "rule add pref 100 lookup local
rule del pref 0 lookup local"
}
if [ "$net" = eth ]; then devs=eth0; else devs='eth0 eth1'; fi
for i in all default; do
    echo 1 >/proc/sys/net/ipv4/conf/$i/accept_local
    echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter
done
first >$r/run/net.first
links >$r/run/net.links
$bb cat $r/run/net.first $r/run/net.links >$r/run/net.all
for d in $devs; do echo "link add rxe${d#eth} type rxe netdev $d"; done >$r/run/net.rdma
in_root ip -batch /run/net.all || give_up 'ip failed'
in_root rdma -b /run/net.rdma || give_up 'rdma failed'
# For fault tests: the state of this guest's link(s).
$bb mkdir -p $r/usr/local/bin
{
    echo "#!/bin/sh
devs='$devs'"
    $bb cat <<'LINK'
# rdma-vm-link cut | loss PERCENT | delay MS | ok | down [DEV] | up | unplug | plug
netem() { for d in $devs; do tc qdisc replace dev $d root netem limit 100000 "$@" || exit; done; }
case $1 in
cut) netem loss 100% ;;
loss) netem loss "$2%" ;;
delay) netem delay "$2ms" ;;
ok) for d in $devs; do tc qdisc del dev $d root 2>/dev/null; done; : ;;
down) for d in ${2:-$devs}; do ip link set $d down || exit; done ;;
up) # The CM's queue pair may have failed on the dead link: new RDMA devices.
    for d in $devs; do rdma link delete "rxe${d#eth}"; done
    ip -batch /run/net.links && rdma -b /run/net.rdma ;;
unplug | plug) # The cable of eth0, which is the host's to pull.
    [ "$devs" = eth0 ] || { echo "rdma-vm-link: $1 needs --net eth" >&2; exit 2; }
    echo $1 >/run/rdma-vm/cable.new && mv /run/rdma-vm/cable.new /run/rdma-vm/cable || exit
    want=$([ $1 = plug ] && echo 1 || echo 0) n=0
    until [ "$(cat /sys/class/net/eth0/carrier)" = $want ]; do
        n=$((n + 1))
        [ $n -lt 100 ] || { echo "rdma-vm-link: the host does not $1" >&2; exit 1; }
        sleep 0.1
    done ;;
*) echo "usage: rdma-vm-link cut|loss PERCENT|delay MS|ok|down [DEV]|up|unplug|plug" >&2; exit 2 ;;
esac
LINK
} >$r/usr/local/bin/rdma-vm-link
$bb chmod 755 $r/usr/local/bin/rdma-vm-link
# Modules the kernel asks for later (sch_netem, nf_tables...) come from the package.
$bb mkdir -p /sbin
printf '#!/bin/busybox sh\nexec /bin/busybox chroot %s /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin modprobe "$@"\n' $r >/sbin/modprobe
$bb chmod 755 /sbin/modprobe
ulimit -l unlimited
ulimit -c 0
port() { for p in /sys/class/virtio-ports/*; do [ "$($bb cat $p/name)" != "$1" ] || echo "/dev/${p##*/}"; done; }
$bb mkfifo /run/out /run/err
$bb cat </run/out >"$(port out)" & cat_out=$!
$bb cat </run/err >"$(port err)" & cat_err=$!
stage ready
: >$r/run/rdma-vm/up
in_root /bin/sh /run/rdma-vm/command </dev/null >/run/out 2>/run/err
rc=$?
stage "exit status $rc"
# What COMMAND left running may hold the pipes open.
wait_gone() { n=0; while [ -d /proc/$1 ] && [ $n -lt 20 ]; do $bb usleep 100000; n=$((n + 1)); done; }
wait_gone $cat_out
wait_gone $cat_err
echo $rc >$r/run/rdma-vm/rc.new
$bb mv $r/run/rdma-vm/rc.new $r/run/rdma-vm/rc
$bb poweroff -f
INIT
}
stamp=$( (guest_init; echo "$ver $boot_modules $rdma_modules") | cksum | tr -d ' ')
initrd=$cache/initramfs-$stamp.cpio
if [ ! -e "$initrd" ]; then
    t=$(mktemp -d)
    trap 'rm -rf "$t"' EXIT
    mkdir -p "$t/bin" "$t/mod"
    cp "$(command -v busybox)" "$t/bin/busybox"
    guest_init >"$t/init"
    chmod 755 "$t/init"
    : >"$t/seen"
    for set in boot rdma; do
        list=$([ $set = boot ] && echo "$boot_modules" || echo "$rdma_modules")
        for m in $list; do
            modprobe -d "$cache/kernel" -S "$ver" --show-depends "$m"
        done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | while read -r f; do
            if ! grep -qx "$f" "$t/seen"; then
                echo "$f" >>"$t/seen"
                cp "$f" "$t/mod/"
                basename "$f"
            fi
        done >"$t/mod/order.$set"
    done
    rm "$t/seen"
    (cd "$t" && find . | cpio -o -H newc -R 0:0 --quiet) >"$initrd.tmp"
    mv "$initrd.tmp" "$initrd"
    rm -rf "$t"
    trap - EXIT
fi
exec 9>&-
[ -z "$prepare" ] || exit 0

# ---- one run ---------------------------------------------------------------
keep=$work
[ -n "$work" ] || work=$(mktemp -d)
mkdir -p "$work"
work=$(cd "$work" && pwd -P)
pids=() cats=()
finish() {
    for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null || :; done
    for p in "${pids[@]}" "${cats[@]}"; do wait "$p" 2>/dev/null || :; done
    [ -n "$keep" ] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

quote() { printf "'%s' " "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

use=$accel
if [ "$accel" = auto ]; then
    use=tcg
    # kvm_pvm, a KVM without help from the CPU, runs only kernels made for it: Debian's did not start within two minutes.
    if [ -r /dev/kvm ] && [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo && [ ! -e /sys/module/kvm_pvm ]; then
        use=kvm
    fi
fi

# Under emulation the guest's TSC is the host's. On a busy host the guest measures its frequency wrongly, and then its clock runs
# several times too fast; so it is told, where the host's kernel says it.
slow_clock() {
    local mhz
    mhz=$(dmesg 2>/dev/null | sed -n 's/.*tsc: \(Detected\|Refined TSC clocksource calibration:\) \([0-9.]*\) MHz.*/\2/p' | tail -n 1)
    if [ -z "$mhz" ] && grep -qw tsc_known_freq /proc/cpuinfo; then
        mhz=$(sed -n 's/^cpu MHz[^0-9]*//p' /proc/cpuinfo | head -n 1)
    fi
    # Nor can it check the timer's interrupt in time: "IO-APIC + timer doesn't work!"
    echo no_timer_check
    [ -z "$mhz" ] || echo "$mhz" | awk '{ printf "tsc_early_khz=%d", $1 * 1000 }'
}

start_node() { # NODE ACCEL
    local n=$1 d=$work/node$1 a link=()
    rm -rf "$d"
    mkdir -p "$d"
    {
        for v in PATH HOME LANG LC_ALL TERM TZ $names \
            $(compgen -v | grep -E '^(UCX_|UCRPC_|RUST|CARGO_|NEXTEST|RDMAV_|LD_LIBRARY_PATH$)' || :); do
            [ -z "${!v+x}" ] || echo "export $v=$(quote "${!v}")"
        done
        echo "export RDMA_VM=1 RDMA_VM_NODE=$n RDMA_VM_NODES=$nodes RDMA_VM_NET=$net RDMA_VM_ACCEL=$2"
        if [ "$net" = eth ]; then
            echo "export RDMA_VM_IP=10.77.0.$((n + 1)) RDMA_VM_PEER_IP=10.77.0.$((2 - n))"
            [ "$nodes" = 1 ] || echo "export RDMA_VM_CONTROL_IP=10.78.0.$((n + 1)) RDMA_VM_PEER_CONTROL_IP=10.78.0.$((2 - n))"
        else
            echo "export RDMA_VM_IP=10.77.0.1 RDMA_VM_PEER_IP=10.77.0.2"
        fi
        [ -z "$share" ] || echo "export RDMA_VM_SHARE=$(quote "$share")"
        echo "cd $(quote "$PWD")|| exit 125"
        for a in "${cmd[@]}"; do quote "$a"; done
        echo
    } >"$d/command"
    [ -z "$share" ] || printf '%s\n' "$share" >"$d/share"
    mkfifo "$d.out" "$d.err" "$d.cable.in" "$d.cable.out" 2>/dev/null || :
    if [ "$nodes" = 1 ]; then
        cat "$d.out" & cats+=($!)
        cat "$d.err" >&2 & cats+=($!)
    else
        sed -u "s/^/[$n] /" "$d.out" & cats+=($!)
        sed -u "s/^/[$n] /" "$d.err" >&2 & cats+=($!)
    fi
    # event_idx=off: QEMU 7.2 can wait for ever for receive buffers that the guest has already added (docs/rdma.md).
    local nic=event_idx=off,romfile=
    if [ "$nodes" = 2 ]; then
        if [ "$n" = 0 ]; then a=on; else a=off; fi
        link=(-netdev "stream,id=net0,server=$a,addr.type=unix,addr.path=link"
            -netdev "stream,id=net1,server=$a,addr.type=unix,addr.path=control")
    elif [ "$net" = eth ]; then
        link=(-netdev "hubport,id=net0,hubid=0")
    fi
    [ "$net" != eth ] ||
        link+=(-device "virtio-net-pci,netdev=net0,mac=52:54:00:77:00:0$((n + 1)),host_mtu=$mtu,$nic")
    # Second, so that it is eth1: for what must get through whatever happens to the link.
    [ "$nodes" = 1 ] || link+=(-device "virtio-net-pci,netdev=net1,mac=52:54:00:78:00:0$((n + 1)),$nic")
    local q=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
        -name "rdma-vm-$n" -m "$mem" -smp "$cpus"
        -kernel "$image" -initrd "$initrd"
        -append "console=ttyS0 quiet ${verbose:+loglevel=6} panic=-1 mitigations=off nokaslr tsc=reliable $([ "$2" != tcg ] || slow_clock | tr '\n' ' ') rcupdate.rcu_expedited=1 rdmavm.node=$n rdmavm.mtu=$mtu rdmavm.net=$net rdmavm.kernel=$cache/kernel"
        "${link[@]}" -device virtio-serial-pci
        -chardev "file,id=out,path=$d.out" -device virtserialport,chardev=out,name=out
        -chardev "file,id=err,path=$d.err" -device virtserialport,chardev=err,name=err
        -monitor "unix:node$n.mon,server=on,wait=off"
        -chardev "pipe,id=cable,path=$d.cable" -mon chardev=cable
        -virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=$d,mount_tag=run,security_model=none"
        -chardev "file,id=con,path=$d.console" -serial chardev:con)
    [ -z "$share" ] || q+=(-virtfs "local,path=$share,mount_tag=share,security_model=none")
    if [ "$2" = kvm ]; then q+=(-accel kvm -cpu host); else q+=(-accel tcg,thread=multi -cpu max); fi
    cat "$d.cable.out" >/dev/null & pids+=($!)
    : >"$d.console"
    if [ -n "$verbose" ]; then tail -f "$d.console" >&2 & cats+=($!); pids+=($!); fi
    # From its own folder: the path of a socket may be 107 bytes at most.
    (cd "$work" && exec "${q[@]}") </dev/null >"$d.qemu" 2>&1 &
    node_pid[$n]=$!
    pids+=($!)
}

alive() { kill -0 "$1" 2>/dev/null; }

cmd=("$@")
node_pid=()
t0=$SECONDS
start_all() {
    local n
    rm -f "$work/link" "$work/control"
    for ((n = 0; n < nodes; n++)); do
        start_node "$n" "$use"
        if [ "$nodes" = 2 ] && [ "$n" = 0 ]; then
            while [ ! -S "$work/control" ] && alive "${node_pid[0]}"; do sleep 0.05; done
        fi
    done
}
start_all
# /dev/kvm may open and still be of no use: go back to emulation if so.
if [ "$accel" = auto ] && [ "$use" = kvm ]; then
    while [ ! -e "$work/node0/up" ] && alive "${node_pid[0]}" && [ $((SECONDS - t0)) -lt 20 ]; do sleep 0.1; done
    if [ ! -e "$work/node0/up" ]; then
        echo 'rdma-vm: no start under KVM; trying emulation' >&2
        finish_keep=$keep; keep=1; finish; keep=$finish_keep
        pids=() cats=() use=tcg
        start_all
    fi
fi

running() {
    local p
    for p in "${node_pid[@]}"; do if alive "$p"; then return 0; fi; done
    return 1
}
# What `rdma-vm-link unplug` and `plug` ask for.
pull_cables() {
    local n
    for ((n = 0; n < nodes; n++)); do
        [ -e "$work/node$n/cable" ] || continue
        echo "set_link net0 $([ "$(cat "$work/node$n/cable")" = plug ] && echo on || echo off)" >"$work/node$n.cable.in"
        rm -f "$work/node$n/cable"
    done
}
while running; do
    pull_cables
    # Our output is no longer read: end as a program in a pipeline would.
    if [ "$nodes" = 1 ] && ! { alive "${cats[0]}" && alive "${cats[1]}"; }; then
        sleep 1
        if running; then exit 141; fi
    fi
    if [ $((SECONDS - t0)) -ge "$limit" ]; then
        echo "rdma-vm: out of time after $limit s" >&2
        exit 124
    fi
    sleep 0.1
done
for p in "${pids[@]}"; do if alive "$p"; then kill "$p" 2>/dev/null || :; fi; done
for p in "${cats[@]}"; do wait "$p" 2>/dev/null || :; done

code=0
for ((n = 0; n < nodes; n++)); do
    if [ -s "$work/node$n/rc" ]; then
        rc=$(cat "$work/node$n/rc")
    elif [ "$n" = "$crash" ]; then
        rc=0
    else
        echo "rdma-vm: node $n gave no exit status; its console ends:" >&2
        tail -n 20 "$work/node$n.console" "$work/node$n.qemu" >&2
        rc=125
    fi
    [ "$code" != 0 ] || code=$rc
done
exit "$code"
