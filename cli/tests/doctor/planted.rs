//! What this machine cannot have: RDMA hardware, sockets, governors, other builds of UCX.

use serde_json::json;

use super::{Said, machine::Machine, run};

/// Plants something in a machine that is well, and expects it to be found.
#[track_caller]
fn plant(id: &str, severity: &str, plant: impl FnOnce(&mut Machine)) -> String {
    let mut machine = Machine::new();
    let before = machine.run();
    assert_eq!((before.count("error"), before.count("warning")), (0, 0), "{:?}", before.findings());
    assert!(before.find(id, severity).is_none());
    plant(&mut machine);
    machine.run().expect(id, severity)
}

const DEVICE: &str = "sys/class/infiniband/mlx5_0";

#[test]
fn a_machine_that_is_well_has_no_findings_but_says_what_it_saw() {
    let said = Machine::new().run();
    assert_eq!(said.code, Some(0));
    assert_eq!((said.count("error"), said.count("warning"), said.count("info")), (0, 0, 0), "{:?}", said.findings());
    assert!(said.count("ok") >= 15, "{:?}", said.findings());
    assert!(said.report["machine"].as_str().is_some_and(|text| text.starts_with("planted: Linux 6.1.0, 4 CPUs")));
}

#[test]
fn locked_memory() {
    let limits = "Max locked memory         65536                65536                bytes\n";
    let said = plant("memlock", "error", |machine| machine.write("proc/self/limits", limits));
    assert!(said.contains("64 KiB") && said.contains("ulimit -l unlimited"), "{said}");
}

#[test]
fn locked_memory_does_not_bind_who_may_lock() {
    let machine = Machine::new();
    machine.write("proc/self/limits", "Max locked memory 65536 65536 bytes\n");
    machine.write("proc/self/status", "CapEff:\t0000000000004000\nCpus_allowed_list:\t0-3\n");
    let said = machine.run();
    assert!(said.find("memlock", "error").is_none() && said.find("memlock", "info").is_some());
}

#[test]
fn a_port_that_is_down() {
    let said = plant("rdma-port", "error", |machine| machine.write(&format!("{DEVICE}/ports/1/state"), "1: DOWN\n"));
    assert!(said.contains("mlx5_0:1 is DOWN") && said.contains("ip link set eth5 up"), "{said}");
}

#[test]
fn an_infiniband_port_without_a_subnet_manager() {
    let said = plant("rdma-port", "error", |machine| {
        machine.write(&format!("{DEVICE}/ports/1/link_layer"), "InfiniBand\n");
        machine.write(&format!("{DEVICE}/ports/1/state"), "2: INIT\n");
    });
    assert!(said.contains("opensm"), "{said}");
}

#[test]
fn only_roce_v1() {
    plant("rdma-gid", "error", |machine| {
        machine.write(&format!("{DEVICE}/ports/1/gid_attrs/types/3"), "IB/RoCE v1\n");
    });
}

#[test]
fn only_link_local_addresses() {
    plant("rdma-gid", "warning", |machine| {
        machine.write(&format!("{DEVICE}/ports/1/gids/3"), "fe80:0000:0000:0000:0000:0000:0000:0002\n");
    });
}

#[test]
fn a_gid_index_of_the_wrong_type() {
    let machine = Machine::new();
    assert!(machine.run().find("rdma-gid", "warning").is_none());
    let with = |value: &str| -> Said {
        let mut command = machine.command();
        command.env("UCX_IB_GID_INDEX", value);
        run(command)
    };
    let said = with("0").expect("rdma-gid", "warning");
    assert!(said.contains("RoCE v1") && said.contains("set it to 3"), "{said}");
    with("9").expect("rdma-gid", "error");
    assert!(with("3").find("rdma-gid", "ok").is_some());
}

#[test]
fn a_small_mtu() {
    let said = plant("rdma-mtu", "warning", |machine| machine.write("sys/class/net/eth5/mtu", "1500\n"));
    assert!(said.contains("packets of 1024 bytes") && said.contains("ip link set eth5 mtu"), "{said}");
}

#[test]
fn a_device_on_the_other_socket() {
    let said = plant("numa", "warning", |machine| machine.write(&format!("{DEVICE}/device/numa_node"), "1\n"));
    assert!(said.contains("0 of 4 CPUs") && said.contains("distance 21"), "{said}");
}

#[test]
fn a_narrow_slot() {
    let said = plant("pcie", "warning", |machine| machine.write(&format!("{DEVICE}/device/current_link_width"), "4\n"));
    assert!(said.contains("25 %"), "{said}");
}

#[test]
fn no_verbs_files() {
    plant("rdma-verbs", "error", |machine| machine.remove_all("dev/infiniband"));
}

#[test]
fn a_card_without_its_driver() {
    let said = plant("rdma-driver", "error", |machine| {
        machine.remove_all(DEVICE);
        machine.write("sys/bus/pci/devices/0000:41:00.0/vendor", "0x15b3\n");
        machine.write("sys/bus/pci/devices/0000:41:00.0/class", "0x020000\n");
    });
    assert!(said.contains("modprobe mlx5_ib"), "{said}");
}

#[test]
fn a_ucx_without_verbs() {
    let said = plant("rdma-used", "error", |machine| {
        machine.ucx()["facts"]["library"]["plugins"] = json!(["cma"]);
        machine.ucx()["facts"]["resources"] = json!(["posix/memory", "tcp/eth5"]);
    });
    assert!(said.contains("no verbs"), "{said}");
}

#[test]
fn soft_roce_whose_ud_drops_everything() {
    let mut machine = Machine::new();
    machine.write("sys/class/infiniband/rxe0/parent", "eth5\n");
    machine.write("sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n");
    machine.ucx()["facts"]["resources"] = json!(["posix/memory", "rc_mlx5/mlx5_0:1", "ud_verbs/rxe0:1"]);
    let with = |value: &str| {
        let mut command = machine.command();
        command.env("UCX_UD_VERBS_ETH_DGID_CHECK", value);
        run(command)
    };
    assert!(with("n").find("soft-roce-ud", "error").is_none());
    with("y").expect("soft-roce-ud", "error");
    // Our default is for machines with nothing else.
    machine.run().expect("soft-roce-ud", "error");
    machine.remove_all(DEVICE);
    assert!(machine.run().find("soft-roce-ud", "error").is_none());
}

#[test]
fn a_slow_governor() {
    let path = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    plant("cpu-governor", "warning", |machine| machine.write(path, "powersave\n"));
    // With its own driver the CPU raises its clock by itself.
    plant("cpu-governor", "info", |machine| {
        machine.write(path, "powersave\n");
        machine.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate\n");
    });
}

#[test]
fn a_quota_below_the_dispatchers() {
    let said = plant("cpu-quota", "warning", |machine| {
        machine.write("sys/fs/cgroup/service/cpu.max", "150000 100000\n");
    });
    assert!(said.contains("1.5 CPUs"), "{said}");
}

#[test]
fn a_slow_clock() {
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    plant("clock-source", "warning", |machine| machine.write(path, "hpet\n"));
}

#[test]
fn deep_idle_states() {
    let path = "sys/devices/system/cpu/cpu0/cpuidle/state3";
    plant("idle-states", "info", |machine| machine.write(&format!("{path}/latency"), "133\n"));
    let machine = Machine::new();
    machine.write(&format!("{path}/latency"), "133\n");
    machine.write(&format!("{path}/disable"), "1\n");
    assert!(machine.run().find("idle-states", "info").is_none());
}

#[test]
fn no_huge_pages() {
    let none = "HugePages_Total:       0\nHugePages_Free:        0\n";
    plant("huge-pages", "info", |machine| machine.write("proc/meminfo", none));
    let machine = Machine::new();
    machine.write("proc/meminfo", none);
    let mut command = machine.command();
    command.env("UCX_POSIX_HUGETLB_MODE", "y");
    run(command).expect("huge-pages", "error");
}

#[test]
fn kernel_settings() {
    plant("ptrace-scope", "info", |machine| machine.write("proc/sys/kernel/yama/ptrace_scope", "1\n"));
    plant("numa-balancing", "info", |machine| machine.write("proc/sys/kernel/numa_balancing", "1\n"));
    plant("overcommit", "warning", |machine| machine.write("proc/sys/vm/overcommit_memory", "2\n"));
    plant("sysv-shm", "warning", |machine| machine.write("proc/sys/kernel/shmmax", "33554432\n"));
    plant("transparent-huge-pages", "info", |machine| {
        machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    });
    plant("ephemeral-ports", "warning", |machine| {
        machine.write("proc/sys/net/ipv4/ip_local_port_range", "60000\t60100\n");
    });
    plant("tcp-buffers", "warning", |machine| machine.write("proc/sys/net/ipv4/tcp_wmem", "4096 16384 65536\n"));
    plant("rdma-cm", "info", |machine| machine.remove("dev/infiniband/rdma_cm"));
    plant("load", "info", |machine| machine.write("proc/loadavg", "17.5 1 1 1/1 1\n"));
}

#[test]
fn a_ucx_that_crashes() {
    let said = plant("ucx-crash", "error", |machine| {
        *machine.ucx() = json!({
            "facts": null, "alone": [], "ended": "killed by signal 6 (SIGABRT)",
            "log": [{"level": "FATAL", "text": "Assertion failed"}],
        });
    });
    assert!(said.contains("SIGABRT") && said.contains("Assertion failed"), "{said}");
}

#[test]
fn memory_events_off_with_a_version_that_crashes_so() {
    let machine = Machine::new();
    let mut command = machine.command();
    command.env("UCX_MEM_EVENTS", "n");
    run(command).expect("memory-events", "error");
}

#[test]
fn a_peer_with_another_version() {
    let mut machine = Machine::new();
    machine.ucx()["facts"]["peer"] = json!({
        "transport": "tcp", "lanes": [], "error": null,
        "fallback": {"kind": "version_mismatch", "text": "ucx versions differ: 1.18.0 here, 1.13.1 there"},
    });
    let mut command = machine.command();
    command.args(["--peer", "node7:8000"]);
    let said = run(command).expect("peer", "warning");
    assert!(said.contains("1.13.1 there") && said.contains("one version of UCX"), "{said}");
}

#[test]
fn a_peer_over_tcp_lanes_beside_rdma() {
    let mut machine = Machine::new();
    machine.ucx()["facts"]["peer"] =
        json!({"transport": "ucx", "lanes": ["tcp/eth5"], "fallback": null, "error": null});
    let mut command = machine.command();
    command.args(["--peer", "node7:8000"]);
    run(command).expect("peer", "warning");
}

#[test]
fn keepalive_over_rdma_or_without() {
    let machine = Machine::new();
    let with = |machine: &Machine, value: &str| {
        let mut command = machine.command();
        command.env("UCX_KEEPALIVE_INTERVAL", value);
        run(command)
    };
    with(&machine, "1s").expect("keepalive", "warning");
    assert!(with(&machine, "inf").find("keepalive", "warning").is_none());
    machine.remove_all(DEVICE);
    assert!(with(&machine, "1s").find("keepalive", "warning").is_none());
    with(&machine, "inf").expect("keepalive", "warning");
}
