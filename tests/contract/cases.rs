//! The contract, case by case; one file per theme.

mod cancel;
mod close;
mod flow;
mod foreign;
mod limits;
mod many;
mod order;
mod pipe;
mod places;
mod planner;
mod sizes;
mod soak;
mod stall;
mod verbs;
mod wire;

use crate::bed::Bed;

/// Which backends a case is for.
#[derive(Debug, Clone, Copy)]
pub enum On {
    All,
    /// TCP and Unix sockets: the case speaks the wire itself, or brings a framing of its own.
    Streams,
    /// What has a socket: all but mem.
    Sockets,
    /// UCX over RDMA devices.
    Verbs,
}

/// One promise of the transport.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub on: On,
    /// It also runs where the transport is negotiated.
    pub on_auto: bool,
    pub run: fn(&Bed),
}

impl Case {
    const fn all(name: &'static str, run: fn(&Bed)) -> Self {
        Self { name, on: On::All, on_auto: false, run }
    }

    const fn on(name: &'static str, on: On, run: fn(&Bed)) -> Self {
        Self { name, on, on_auto: false, run }
    }

    const fn and_auto(self) -> Self {
        Self { on_auto: true, ..self }
    }
}

pub fn all() -> impl Iterator<Item = &'static Case> {
    let themes = [
        sizes::CASES,
        order::CASES,
        flow::CASES,
        planner::CASES,
        close::CASES,
        cancel::CASES,
        limits::CASES,
        wire::CASES,
        foreign::CASES,
        pipe::CASES,
        stall::CASES,
        places::CASES,
        many::CASES,
        verbs::CASES,
        soak::CASES,
    ];
    themes.into_iter().flatten()
}
