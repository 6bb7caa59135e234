//! Over verbs: that bodies really go the way that the connection says, by the device's own counters.

use ucrpc::transport::ConnectionConfig;

use crate::{
    bed::Bed,
    cases::{Case, On},
    counters::Counters,
    tools::{exchange, random_bytes},
};

pub const CASES: &[Case] = &[
    Case::on("large_bodies_by_rdma_read", On::Verbs, large_bodies),
    Case::on("small_bodies_by_send", On::Verbs, small_bodies),
];

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

fn large_bodies(bed: &Bed) {
    moved(bed, 1 << 20).check_megabytes(COUNT, bed.backend.name == "ucx-rc");
}

fn small_bodies(bed: &Bed) {
    let counted = moved(bed, 100);
    assert!(counted.sends >= COUNT, "{counted:?}");
}
