//! A peer without a conscience: a socket, and the bytes that one likes.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use ucrpc::transport::proto::{
    header::{Credit, FrameHeader, Kind, MAX_HEADER, encode_prefix},
    hello::{self, Accept, ClientHello, Message, Want},
};

use crate::relay::read_message;

/// How long the server may take to close what it must close.
const CLOSES: Duration = Duration::from_secs(20);

pub(super) struct Raw {
    pub(super) stream: TcpStream,
    /// What the server said of the connection, once it was accepted.
    pub(super) accept: Option<Accept>,
}

/// A hello as our clients send it, for plain TCP.
pub(super) fn hello(want: Want) -> ClientHello {
    ClientHello {
        want,
        required_features: 0,
        supported_features: 0,
        process_id: [7; 16],
        conn: 0,
        generation: 1,
        max_message: 64 << 20,
        max_head: 4 << 20,
        credit: Credit { messages: 1024, bytes: 16 << 20 },
        ucx: None,
        no_ucx_reason: None,
        keepalive_ms: 0,
        least_endpoint: None,
    }
}

impl Raw {
    /// Connects and says nothing.
    pub(super) fn connect(port: &str) -> Self {
        let stream = TcpStream::connect(port).expect("the server listens");
        stream.set_read_timeout(Some(CLOSES)).expect("a timeout");
        Self { stream, accept: None }
    }

    /// Connects and shakes hands for TCP.
    pub(super) fn open(port: &str) -> Self {
        let mut raw = Self::connect(port);
        raw.say(&Message::ClientHello(hello(Want::Tcp)));
        match read_message(&mut raw.stream) {
            Some((Message::Accept(accept), _)) => raw.accept = Some(accept),
            other => panic!("no accept but {other:?}"),
        }
        raw
    }

    pub(super) fn say(&mut self, message: &Message) {
        self.write(&hello::encode(message));
    }

    /// Writes; that the server may have closed already is part of the game.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// A header for this connection.
    pub(super) fn header(&self, kind: Kind, seq: u32) -> FrameHeader {
        let accept = self.accept.as_ref().expect("open");
        FrameHeader::new(kind, accept.conn, accept.generation, seq)
    }

    /// Writes a frame that may say what it likes about its payload.
    pub(super) fn frame(&mut self, header: &FrameHeader, payload: &[u8]) {
        self.write(&frame(header, payload));
    }

    /// Says that no more comes.
    pub(super) fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The server closes, whatever it says before.
    pub(super) fn expect_closed(&mut self, what: &str) {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{what}: the server did not close: {error}"),
            }
        }
    }
}

/// A frame's bytes.
pub(super) fn frame(header: &FrameHeader, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [0; MAX_HEADER];
    let len = header.encode(&mut bytes);
    let mut out = encode_prefix(len, payload.len() as u64).to_vec();
    out.extend_from_slice(&bytes[..len]);
    out.extend_from_slice(payload);
    out
}
