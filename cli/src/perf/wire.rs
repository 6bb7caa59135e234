//! Benchmarks below RPC: frames of the transport.
//!
//! The first frame of a connection says what the server is to do: [`ECHO`] each frame, or take them in and answer
//! [`END`] ones.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::transport::{
    Body, Connection, ConnectionConfig, Dispatcher, ErrorKind, Frame, Listener, Result, spawn_local,
};

use super::run::{Flight, Run, Tally};
use crate::exit::Failure;

/// Frames up to this size are all head, as RPC sends small messages; the rest of larger ones is a body.
const HEAD: usize = 4 << 10;
/// Asks for an echo.
const ECHO: &[u8] = b"ucrpc perf: echo";
/// Asks for a sink.
const SINK: &[u8] = b"ucrpc perf: sink";
/// Asks the sink whether it has everything. No data looks like it: its bytes are all [`FILL`].
const END: &[u8] = b"ucrpc perf: end?";
/// What messages are made of.
pub(crate) const FILL: u8 = 7;

/// Serves connections for ever.
pub(crate) async fn serve(mut listener: Listener) {
    loop {
        match listener.accept().await {
            Ok(connection) => {
                if let Err(error) = spawn_local(async { serve_one(connection).await.unwrap_or(()) }) {
                    eprintln!("ucrpc: {error}");
                }
            }
            Err(error) => return eprintln!("ucrpc: no more benchmarks below RPC: {error}"),
        }
    }
}

async fn serve_one(mut connection: Connection) -> Result<()> {
    let first = connection.recv().await?;
    let echo = first.head == ECHO;
    loop {
        let frame = connection.recv().await?;
        if echo || frame.head == END {
            connection.send_wait(frame).await?;
        }
    }
}

/// A connection to such a server.
pub(crate) struct Wire {
    connection: Connection,
}

impl Wire {
    /// Opens one for ping-pong, or for messages one way.
    pub(crate) async fn open(dispatcher: &Dispatcher, address: &ucrpc::Address, one_way: bool) -> Result<Self> {
        let connection = dispatcher.connect(address, ConnectionConfig::default()).await?;
        connection.send_wait(Bytes::from_static(if one_way { SINK } else { ECHO })).await?;
        Ok(Self { connection })
    }

    /// What it is.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends frames there and back for a while, `depth` at a time.
    pub(crate) async fn pingpong(&mut self, run: &Rc<Run>, payload: &Bytes, depth: usize) -> Result<(), Failure> {
        if depth == 1 {
            let mut start = Instant::now();
            loop {
                self.connection.send_wait(frame(payload)).await?;
                let back = self.connection.recv().await?;
                debug_assert_eq!(back.len(), payload.len() as u64);
                let now = Instant::now();
                if !run.done(start, now) {
                    return Ok(());
                }
                start = now;
            }
        }
        let flight = Rc::new(Flight::new(depth));
        let (sender, payload) = (self.connection.sender(), payload.clone());
        let (writer_flight, writer_run) = (flight.clone(), run.clone());
        spawn_local(async move {
            while writer_flight.launch(&writer_run).await {
                if sender.send_wait(frame(&payload)).await.is_err() {
                    // The reader hears why.
                    break;
                }
            }
        })?;
        while flight.is_under_way().await {
            self.connection.recv().await?;
            flight.land(run);
        }
        Ok(())
    }

    /// Sends frames one way for `time`, and returns how many there were and how long the peer took to have them all.
    pub(crate) async fn send(&mut self, payload: &Bytes, time: Duration) -> Result<(u64, Duration), Failure> {
        // The clock is read now and then only: small frames are faster than it.
        let every = if payload.len() <= HEAD { 64 } else { 1 };
        let start = Instant::now();
        let mut sent = 0;
        loop {
            for _ in 0..every {
                self.connection.send_wait(frame(payload)).await?;
            }
            sent += every;
            if start.elapsed() >= time {
                break;
            }
        }
        self.connection.send_wait(Bytes::from_static(END)).await?;
        self.connection.recv().await?;
        Ok((sent, start.elapsed()))
    }

    /// Closes it; an end that came before is none of the benchmark's business.
    pub(crate) async fn close(self) -> Result<()> {
        match self.connection.close().await {
            Err(error) if !matches!(error.kind(), ErrorKind::PeerClosed | ErrorKind::Closed) => Err(error),
            _ => Ok(()),
        }
    }
}

fn frame(payload: &Bytes) -> Frame {
    if payload.len() <= HEAD { payload.clone().into() } else { Frame::new("", Body::Bytes(payload.clone())) }
}

/// Counts of messages one way, as a [`Tally`] without latencies.
pub(crate) fn one_way(sent: u64, time: Duration) -> Tally {
    Tally { count: sent, elapsed: time, ..Tally::default() }
}
