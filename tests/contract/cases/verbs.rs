//! Over verbs: that bodies really go the way that the connection says, by the device's own counters.

use ucrpc::transport::ConnectionConfig;

use crate::{
    bed::Bed,
    cases::{Case, On},
    tools::{exchange, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::on("large_bodies_by_rdma_read", On::Verbs, large_bodies),
    Case::on("small_bodies_by_send", On::Verbs, small_bodies),
];

/// What the device has counted since it was made.
#[derive(Debug, Clone, Copy)]
struct Counters {
    /// Packets of any kind.
    packets: u64,
    /// Send operations; RDMA reads and writes are none.
    sends: u64,
}

impl Counters {
    fn now() -> Self {
        // The kernel shows what it has read up to 10 ms ago (`hw_counters/lifespan`).
        std::thread::sleep(std::time::Duration::from_millis(30));
        let read = |name: &str| {
            let path = format!("/sys/class/infiniband/rxe0/ports/1/hw_counters/{name}");
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            text.trim().parse::<u64>().expect("a number")
        };
        Self { packets: read("sent_pkts"), sends: read("rdma_sends") }
    }

    fn since(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, sends: self.sends - before.sends }
    }
}

const COUNT: u64 = 16;

/// Moves bodies of a size one after another, and counts.
fn moved(bed: &Bed, size: usize) -> Counters {
    let (client, mut server) = bed.pair(&ConnectionConfig::default());
    let sender = client.sender();
    exchange(&sender, &mut server, random_bytes(0, 16), random_bytes(1, size));
    let before = Counters::now();
    for i in 0..COUNT {
        exchange(&sender, &mut server, random_bytes(i, 16), random_bytes(i + 7, size));
    }
    let counted = Counters::now().since(before);
    println!("{COUNT} bodies of {size} bytes over {}: {counted:?}", bed.backend.name);
    counted
}

/// A megabyte is 256 packets or more however it travels. Sent as messages it would be a send of at most 8 KiB for each part;
/// read by the receiver it is the announcement, the answer, and credit.
fn large_bodies(bed: &Bed) {
    let counted = moved(bed, 1 << 20);
    assert!(counted.packets >= COUNT * 256, "{counted:?}");
    if bed.backend.name == "ucx-rc" {
        assert!(counted.sends <= COUNT * 16, "not by rdma read: {counted:?}");
    } else {
        // UD has no RDMA read: this is what the check above would see.
        assert!(counted.sends >= COUNT * 128, "{counted:?}");
    }
}

fn small_bodies(bed: &Bed) {
    let counted = moved(bed, 100);
    assert!(counted.sends >= COUNT, "{counted:?}");
}
