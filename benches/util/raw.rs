//! The floor under the stream transports: the same bytes over a bare socket, with no framing but a fixed size.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

use super::{
    CLIENT_CPU, SERVER_CPU,
    process::{self, Figures, Mode},
    sample::{Flood, RoundTrips},
};

/// How the bare socket waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Reads again and again.
    Spin,
    /// Sleeps in the kernel.
    Block,
}

/// Bytes that a sink reads at once.
const READ: usize = 256 << 10;
/// What framing puts in front of each message, for floods.
const LEAD: usize = 24;

/// Runs one measurement (`ping` or `flood`) in two processes, over `tcp` or `unix`.
pub(crate) fn measure(what: &str, family: &str, wait: Wait, size: usize, time: Duration) -> Result<Figures, String> {
    measure_in(Mode::Spin, what, family, wait, size, time)
}

/// The same, with the processes where `mode` says.
pub(crate) fn measure_in(
    mode: Mode,
    what: &str,
    family: &str,
    wait: Wait,
    size: usize,
    time: Duration,
) -> Result<Figures, String> {
    let env = [mode.env()];
    let wait = if wait == Wait::Spin { "spin" } else { "block" };
    let (size, millis) = (size.to_string(), time.as_millis().to_string());
    let server = process::role(&["raw", "serve", family, wait, what, &size], &env);
    process::run_pair(server, |address| {
        process::role(&["raw", "client", family, wait, what, &size, address, &millis], &env)
    })
}

/// A child's part.
pub(crate) fn run(args: &[&str]) {
    let result = match args {
        ["serve", family, wait, what, size] => {
            process::pin(SERVER_CPU);
            serve(family, wait, what, size.parse().expect("a size"))
        }
        ["client", family, wait, what, size, address, millis] => {
            process::pin(CLIENT_CPU);
            let time = Duration::from_millis(millis.parse().expect("a time"));
            client(family, wait, what, size.parse().expect("a size"), address, time)
        }
        other => panic!("no such role: {other:?}"),
    };
    result.expect("the measurement");
}

fn serve(family: &str, wait: &str, what: &str, size: usize) -> io::Result<()> {
    let mut socket = if family == "unix" {
        let path = std::env::temp_dir().join(format!("ucrpc-bench-raw-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        println!("{}", path.display());
        let stream = listener.accept()?.0;
        std::fs::remove_file(&path)?;
        Socket::new(Stream::Unix(stream), wait)?
    } else {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        println!("{}", listener.local_addr()?);
        Socket::new(Stream::Tcp(listener.accept()?.0), wait)?
    };
    if what == "ping" {
        let mut message = vec![0; size];
        while socket.read_all(&mut message)? {
            socket.write_all(&message)?;
        }
        return Ok(());
    }
    let mut buffer = vec![0; READ.max(size + LEAD)];
    while socket.read_some(&mut buffer)? > 0 {}
    socket.write_all(b"k")
}

fn client(family: &str, wait: &str, what: &str, size: usize, address: &str, time: Duration) -> io::Result<()> {
    let stream = match family {
        "unix" => Stream::Unix(UnixStream::connect(address)?),
        _ => Stream::Tcp(TcpStream::connect(address)?),
    };
    let mut socket = Socket::new(stream, wait)?;
    let message = vec![7; size];
    if what == "ping" {
        return ping(&mut socket, &message, time);
    }
    let lead = [0; LEAD];
    let mut warm = Flood::begin(size, time / 4);
    loop {
        socket.write_both(&lead, &message)?;
        if !warm.count() {
            break;
        }
    }
    let mut flood = Flood::begin(size, time);
    loop {
        socket.write_both(&lead, &message)?;
        if !flood.count() {
            break;
        }
    }
    socket.stream.shutdown()?;
    socket.read_all(&mut [0])?;
    flood.tell(size);
    Ok(())
}

fn ping(socket: &mut Socket, message: &[u8], time: Duration) -> io::Result<()> {
    let mut trips = RoundTrips::begin(message.len(), time);
    let mut answer = vec![0; message.len()];
    let mut start = Instant::now();
    loop {
        for _ in 0..trips.batch() {
            socket.write_all(message)?;
            assert!(socket.read_all(&mut answer)?, "the server went away");
        }
        let end = Instant::now();
        if !trips.record(start, end) {
            break;
        }
        start = end;
    }
    trips.tell();
    Ok(())
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*stream).read(bytes),
            Self::Unix(stream) => (&*stream).read(bytes),
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, parts) {
            (Self::Tcp(stream), [one]) => (&*stream).write(one),
            (Self::Unix(stream), [one]) => (&*stream).write(one),
            (Self::Tcp(stream), parts) => (&*stream).write_vectored(parts),
            (Self::Unix(stream), parts) => (&*stream).write_vectored(parts),
        }
    }
}

/// A socket that spins on `WouldBlock`, if it is non-blocking.
struct Socket {
    stream: Stream,
}

impl Socket {
    fn new(stream: Stream, wait: &str) -> io::Result<Self> {
        let spin = wait == "spin";
        match &stream {
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(spin)?;
            }
            Stream::Unix(stream) => stream.set_nonblocking(spin)?,
        }
        Ok(Self { stream })
    }

    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                other => return other,
            }
        }
    }

    /// `false` at the stream's end.
    fn read_all(&mut self, bytes: &mut [u8]) -> io::Result<bool> {
        let mut at = 0;
        while at < bytes.len() {
            match self.read_some(&mut bytes[at..])? {
                0 => return Ok(false),
                n => at += n,
            }
        }
        Ok(true)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_both(&[], bytes)
    }

    fn write_both(&mut self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let mut parts = [IoSlice::new(first), IoSlice::new(second)];
        let mut left: &mut [IoSlice<'_>] = if first.is_empty() { &mut parts[1..] } else { &mut parts };
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(n) => IoSlice::advance_slices(&mut left, n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
