//! What an RDMA device has counted since it was made.

/// Of the device `rxe0` of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counters {
    /// Packets of any kind.
    pub(crate) packets: u64,
    /// Send operations; RDMA reads and writes are none.
    pub(crate) sends: u64,
}

impl Counters {
    pub(crate) fn now() -> Self {
        // The kernel shows what it has read up to 10 ms ago (`hw_counters/lifespan`).
        std::thread::sleep(std::time::Duration::from_millis(30));
        let read = |name: &str| {
            let path = format!("/sys/class/infiniband/rxe0/ports/1/hw_counters/{name}");
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            text.trim().parse::<u64>().expect("a number")
        };
        Self { packets: read("sent_pkts"), sends: read("rdma_sends") }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, sends: self.sends - before.sends }
    }

    /// Checks that bodies of a megabyte were moved by RDMA read, or else by sends. A megabyte is 256 packets or more however it
    /// travels. Sent as messages it would be a send of at most 8 KiB for each part; read by the receiver it is the announcement,
    /// the answer, and credit.
    pub(crate) fn check_megabytes(self, count: u64, by_read: bool) {
        assert!(self.packets >= count * 256, "{self:?}");
        if by_read {
            assert!(self.sends <= count * 16, "not by rdma read: {self:?}");
        } else {
            // UD has no RDMA read: this is what the check above would see.
            assert!(self.sends >= count * 128, "{self:?}");
        }
    }
}
