//! What a channel's connections are.

use ucrpc_transport::ConnectionInfo;

use super::Channel;

impl Channel {
    /// What is known of each open connection: what it really runs over, and why not over UCX.
    pub fn connection_infos(&self) -> Vec<ConnectionInfo> {
        let open = self.inner.lanes.iter().filter_map(|lane| lane.open());
        open.filter_map(|conn| conn.sender.info().cloned()).collect()
    }
}
