//! What a backend is.
//!
//! Required of each (ucx, tcp, mem), beside the opening of connections, which differs too much to be one method:
//!
//! - [`Backend::pump`]: sends what credit, room and the turn's budget allow, in order;
//! - [`Backend::control`]: sends a control frame, ahead of data that has not begun;
//! - [`Backend::flush`]: goes on after the system or the device made room;
//! - [`Backend::is_idle`]: nothing is queued and no operation is in flight;
//! - [`Backend::give`]: takes credit that the peer returned;
//! - [`Backend::sent`]: how many data frames were taken, for the goodbye;
//! - [`Backend::fetch`]: fetches or refuses a body that was announced and set aside;
//! - [`Backend::waits_for_credit`], [`Backend::waits_for_pool`]: what keeps it from going on, for the stall watchdog;
//! - [`Backend::close`]: lets go of everything at once; what is in flight ends with events or not at all.

use crate::{
    Result,
    driver::{ConnCore, Io, Pumped},
    plan::{FetchReply, PendingId},
    proto::header::{Credit, FrameHeader},
};

/// One connection's way to its peer. See the module's list.
pub(crate) trait Backend {
    fn pump(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped>;
    fn control(&mut self, core: &mut ConnCore, io: &mut Io, header: FrameHeader, payload: &[u8]) -> Result<()>;
    fn flush(&mut self, core: &mut ConnCore, io: &mut Io) -> Result<Pumped>;
    fn is_idle(&self, core: &ConnCore) -> bool;
    fn give(&mut self, credit: Credit) -> Result<()>;
    fn sent(&self) -> u32;
    fn fetch(&mut self, core: &mut ConnCore, io: &mut Io, id: PendingId, reply: FetchReply) -> Result<()>;
    fn waits_for_credit(&self) -> bool;
    fn waits_for_pool(&self) -> bool;
    fn close(&mut self, core: &mut ConnCore, io: &mut Io);
}
