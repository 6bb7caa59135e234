//! Bare sockets: the same bytes with no framing but a fixed size, which the client announces before each measurement.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

use super::control::{Answer, Ask, Kind, round_trips};

/// Bytes that a sink reads at once.
const READ: usize = 256 << 10;
/// Largest message that a server takes, bytes.
const LARGEST: u64 = 1 << 30;
/// The first byte of the last message of a ping-pong; others have another one.
const LAST: u8 = 0xff;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn spin(&self, spin: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(spin),
            Self::Unix(stream) => stream.set_nonblocking(spin),
        }
    }

    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read(bytes),
            Self::Unix(stream) => (&*stream).read(bytes),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).write(bytes),
            Self::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn read_some(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                other => return other,
            }
        }
    }

    fn read_all(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            at += self.read_some(&mut bytes[at..])?;
        }
        Ok(())
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            match self.write(left) {
                Ok(n) => left = &left[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// What comes next: 24 bytes on the wire.
struct Plan {
    spin: bool,
    size: u64,
    /// Bytes of a flood in all; 0 is a ping-pong.
    total: u64,
}

impl Plan {
    const BYTES: usize = 24;

    fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&u64::from(self.spin).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    fn read(stream: &Stream) -> io::Result<Self> {
        let mut bytes = [0; Self::BYTES];
        stream.read_all(&mut bytes)?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let plan = Self { spin: number(0) == 1, size: number(8), total: number(16) };
        if plan.size == 0 || plan.size > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {} bytes", plan.size)));
        }
        Ok(plan)
    }
}

/// Serves one client: says where with `announce`, and sleeps between measurements.
pub(super) fn serve(kind: Kind, announce: impl FnOnce(&str) -> io::Result<()>) -> io::Result<()> {
    let stream = match kind {
        Kind::Unix => {
            let path = std::env::temp_dir().join(format!("ucrpc-control-{}.sock", std::process::id()));
            let listener = UnixListener::bind(&path)?;
            announce(&path.to_string_lossy())?;
            let stream = listener.accept()?.0;
            std::fs::remove_file(&path)?;
            Stream::Unix(stream)
        }
        _ => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            announce(&listener.local_addr()?.to_string())?;
            let stream = listener.accept()?.0;
            stream.set_nodelay(true)?;
            Stream::Tcp(stream)
        }
    };
    loop {
        stream.spin(false)?;
        let plan = Plan::read(&stream)?;
        stream.spin(plan.spin)?;
        if plan.total == 0 {
            let mut message = vec![0; plan.size as usize];
            loop {
                stream.read_all(&mut message)?;
                stream.write_all(&message)?;
                if message[0] == LAST {
                    break;
                }
            }
        } else {
            let (mut buffer, mut left) = (vec![0; READ], plan.total);
            while left > 0 {
                let room = (buffer.len() as u64).min(left) as usize;
                left -= stream.read_some(&mut buffer[..room])? as u64;
            }
            stream.write_all(b"k")?;
        }
    }
}

/// The side that measures.
pub(super) struct Client {
    stream: Stream,
}

impl Client {
    pub(super) fn connect(kind: Kind, address: &str) -> io::Result<Self> {
        let stream = match kind {
            Kind::Unix => Stream::Unix(UnixStream::connect(address)?),
            _ => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        };
        Ok(Self { stream })
    }

    pub(super) fn measure(&mut self, ask: &Ask) -> io::Result<Answer> {
        if !ask.one_way {
            self.stream.write_all(&Plan { spin: ask.spin, size: ask.size as u64, total: 0 }.to_bytes())?;
            self.stream.spin(ask.spin)?;
            let (mut message, mut answer) = (vec![7; ask.size], vec![0; ask.size]);
            let result = round_trips(ask.time, |last| {
                if last {
                    message[0] = LAST;
                }
                self.stream.write_all(&message)?;
                self.stream.read_all(&mut answer)
            });
            self.stream.spin(false)?;
            return result;
        }
        // A short flood tells how many bytes fill the time.
        let message = vec![7; ask.size];
        let first = (4 << 20) / ask.size.max(1) as u64 + 1;
        let took = self.flood(ask, &message, first)?;
        let count = (ask.time.as_secs_f64() / took.as_secs_f64().max(1e-6) * first as f64) as u64 + 1;
        let took = self.flood(ask, &message, count)?;
        let mb_s = count as f64 * ask.size as f64 / took.as_secs_f64() / 1e6;
        Ok(Answer { mb_s: Some(mb_s), ..Answer::default() })
    }

    fn flood(&mut self, ask: &Ask, message: &[u8], count: u64) -> io::Result<Duration> {
        let total = count * ask.size as u64;
        self.stream.write_all(&Plan { spin: ask.spin, size: ask.size as u64, total }.to_bytes())?;
        self.stream.spin(ask.spin)?;
        let start = Instant::now();
        for _ in 0..count {
            self.stream.write_all(message)?;
        }
        self.stream.read_all(&mut [0])?;
        let took = start.elapsed();
        self.stream.spin(false)?;
        Ok(took)
    }
}
