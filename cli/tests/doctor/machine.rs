//! A planted machine: two sockets, an RDMA device on the first, all as it should be.

use std::{fs, path::PathBuf, process::Command};

use serde_json::{Value, json};

use super::{Said, doctor, run};

pub(crate) struct Machine {
    root: tempfile::TempDir,
    ucx: Value,
}

const FILES: &[(&str, &str)] = &[
    (
        "proc/self/limits",
        "Limit Soft Hard Units\nMax locked memory         unlimited            unlimited            bytes\nMax open files            1048576              1048576              files\n",
    ),
    ("proc/self/status", "Name:\tprogram\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n"),
    ("proc/self/cgroup", "0::/service\n"),
    ("proc/loadavg", "0.10 0.20 0.30 1/100 1000\n"),
    ("proc/meminfo", "MemTotal: 1000 kB\nHugePages_Total:     512\nHugePages_Free:      512\n"),
    ("proc/sys/kernel/hostname", "planted\n"),
    ("proc/sys/kernel/osrelease", "6.1.0\n"),
    ("proc/sys/kernel/numa_balancing", "0\n"),
    ("proc/sys/kernel/shmmax", "18446744073692774399\n"),
    ("proc/sys/kernel/shmall", "18446744073692774399\n"),
    ("proc/sys/kernel/yama/ptrace_scope", "0\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
    ("proc/sys/vm/overcommit_memory", "0\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("sys/class/net/lo/flags", "0x9\n"),
    ("sys/class/net/eth5/mtu", "9000\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/link_layer", "Ethernet\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/0", "IB/RoCE v1\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/3", "0000:0000:0000:0000:0000:ffff:0a00:0001\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/3", "RoCE v2\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0", "eth5\n"),
    ("sys/class/infiniband/mlx5_0/device/numa_node", "0\n"),
    ("sys/class/infiniband/mlx5_0/device/current_link_speed", "16.0 GT/s PCIe\n"),
    ("sys/class/infiniband/mlx5_0/device/max_link_speed", "16.0 GT/s PCIe\n"),
    ("sys/class/infiniband/mlx5_0/device/current_link_width", "16\n"),
    ("sys/class/infiniband/mlx5_0/device/max_link_width", "16\n"),
    ("sys/devices/system/node/node0/cpulist", "0-3\n"),
    ("sys/devices/system/node/node0/distance", "10 21\n"),
    ("sys/devices/system/node/node1/cpulist", "4-7\n"),
    ("sys/devices/system/node/node1/distance", "21 10\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "acpi-cpufreq\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0\n"),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("sys/fs/cgroup/service/cpu.max", "max 100000\n"),
    ("dev/infiniband/uverbs0", ""),
    ("dev/infiniband/rdma_cm", ""),
];

impl Machine {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let ucx = json!({
            "facts": {
                "library": {
                    "version": [1, 18, 0], "path": "/usr/lib/libucp.so.0", "assertions": false, "multi_threaded": true,
                    "plugins": ["cma", "ib", "rdmacm"], "missing_symbols": [], "was_in_process": false, "settings": [],
                },
                "unusable": null,
                "resources": ["posix/memory", "rc_mlx5/mlx5_0:1", "tcp/eth5", "ud_mlx5/mlx5_0:1"],
                "must_agree": "ucx=1.18 error_handling=peer",
                "loopback": {"transport": "ucx", "lanes": ["posix"], "fallback": null, "error": null},
                "peer": null,
            },
            "log": [], "ended": null, "alone": [],
        });
        let machine = Self { root, ucx };
        FILES.iter().for_each(|(path, text)| machine.write(path, text));
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).expect("it was planted");
    }

    pub(crate) fn remove_all(&self, path: &str) {
        fs::remove_dir_all(self.path(path)).expect("it was planted");
    }

    /// What UCX would say.
    pub(crate) fn ucx(&mut self) -> &mut Value {
        &mut self.ucx
    }

    pub(crate) fn command(&self) -> Command {
        self.write("ucx.json", &self.ucx.to_string());
        let mut command = doctor();
        command.arg("--sysroot").arg(self.root.path());
        command
    }

    pub(crate) fn run(&self) -> Said {
        run(self.command())
    }
}
