//! One attempt of a call, on one connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use ucrpc_transport::{Frame, RecvBuf, SendError};

use super::calls::{Answer, Polled};
use super::conn::Conn;
use crate::Status;
use crate::call::Decoded;
use crate::frames::status_of;

type Room = Pin<Box<dyn Future<Output = ucrpc_transport::Result<()>> + Send>>;

/// One attempt, on one connection.
pub(super) struct Attempt {
    pub(super) conn: Arc<Conn>,
    pub(super) lane: usize,
    id: i64,
    /// The transport had no room for the frame.
    pub(super) unsent: Option<Box<(Frame, Option<Room>)>>,
    /// A buffer of the caller's waits for the attachment.
    lands: bool,
    over: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        drop(self.reclaim());
        if !self.over {
            self.conn.leave(self.id);
        }
    }
}

/// What an attempt came to.
pub(super) enum Outcome {
    Pending,
    /// Its time to be woken has come.
    Due,
    Answered(Result<Decoded, Status>, u64),
    /// It failed, and the handler surely did not run.
    NotStarted(Status),
}

impl Attempt {
    pub(super) fn new(conn: Arc<Conn>, lane: usize, id: i64) -> Self {
        Self { conn, lane, id, unsent: None, lands: false, over: false }
    }

    /// Receives the attachment into `buf`.
    pub(super) fn land_in(&mut self, buf: RecvBuf) {
        self.lands = true;
        self.conn.landings.put(self.id, buf);
    }

    /// The caller's buffer, if nothing came for it.
    pub(super) fn reclaim(&mut self) -> Option<RecvBuf> {
        if std::mem::take(&mut self.lands) { self.conn.landings.take(self.id) } else { None }
    }

    pub(super) fn poll(&mut self, wake_at: Option<Instant>, cx: &mut Context<'_>) -> Outcome {
        while let Some((frame, room)) = self.unsent.take().map(|unsent| *unsent) {
            let sender = self.conn.sender.clone();
            let mut room = room.unwrap_or_else(|| Box::pin(async move { sender.ready().await }));
            if room.as_mut().poll(cx).is_pending() {
                self.unsent = Some(Box::new((frame, Some(room))));
                break;
            }
            match self.conn.sender.send(frame) {
                Ok(()) => {}
                Err(SendError::Full(frame)) => self.unsent = Some(Box::new((frame, None))),
                Err(SendError::Closed(_, error) | SendError::TooLarge(_, error) | SendError::Invalid(_, error)) => {
                    self.abandon();
                    return Outcome::NotStarted(status_of(&error));
                }
            }
        }
        let polled = self.conn.calls().poll(self.id, wake_at, cx);
        match polled {
            Polled::Pending { rearm } => {
                if rearm {
                    self.conn.wake_reader();
                }
                Outcome::Pending
            }
            Polled::Due => Outcome::Due,
            Polled::Answer(answer, bytes) => {
                self.over = true;
                match answer {
                    Answer::Lost(status) if self.unsent.is_some() => Outcome::NotStarted(status),
                    answer => Outcome::Answered(self.conn.decode(answer), bytes),
                }
            }
        }
    }

    /// Takes it out of the table: the server never heard of it.
    pub(super) fn abandon(&mut self) {
        self.over = true;
        self.conn.calls().leave(self.id);
    }
}
