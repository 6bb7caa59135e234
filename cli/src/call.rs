//! `ucrpc call`: one call from the command line, with its message as JSON or as bytes.

mod schema;

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ucrpc::{
    Channel, Code, Deadline, Metadata, Status,
    rpc::{
        call::{CallOptions, CallStats, MethodName, RawResponse},
        channel::{RetryOn, RetryPolicy},
        client::{RawCall, RawCaller},
        wire::MessageBuf,
    },
};

use crate::{
    Done,
    exit::{Exit, Failure},
};

pub(crate) const HELP: &str = "\
Examples:
  ucrpc call node7:8000 demo.Echo/Say --proto demo.proto --data '{\"text\": \"hello\"}'
  ucrpc call ucx://node7:8000 Echo/Say --proto api/demo.proto -I api --data @request.json --timeout 0.5
  ucrpc call node7:8000 store.Blob/Put --proto store.proto --attachment picture.jpg --metadata tenant=7
  ucrpc call node7:8000 store.Blob/Get --proto store.proto --data '{\"id\": 3}' --attachment-out blob.bin
  ucrpc call unix:///run/app.sock demo.Echo/Say --raw request.bin > response.bin

JSON is protobuf's own mapping: bytes are base64, 64-bit numbers may be strings, enums are names.
The response goes to stdout; everything else goes to stderr. A call is not repeated by itself.

Exit codes:
  0  the server answered
  1  failed: the message says why (a deadline that passed, a file that cannot be read)
  2  the command line, the .proto file or the JSON makes no sense
  3  the server can't be reached
  4  the server was there and went away
  5  ucx:// was demanded and can't be had
  6  the server answered with an error; its code and text are on stderr";

/// Arguments of `ucrpc call`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the server is: node7:8000, ucx://node7:8000, tcp://node7:8000, unix:///path
    #[arg(value_name = "ADDR")]
    address: String,
    /// What to call: package.Service/Method; with --proto the package may be left out
    #[arg(value_name = "SERVICE/METHOD")]
    method: String,
    /// The request as JSON, @FILE to read it from a file, or - for stdin. Default: {}
    #[arg(short, long, value_name = "JSON", conflicts_with = "raw")]
    data: Option<String>,
    /// The .proto file that declares the method; may be repeated
    #[arg(short, long, value_name = "FILE")]
    proto: Vec<PathBuf>,
    /// Where imports of .proto files are looked for; may be repeated
    #[arg(short = 'I', long = "include", value_name = "DIR", requires = "proto")]
    include: Vec<PathBuf>,
    /// The request as serialized bytes from a file, or - for stdin; the response's bytes go to stdout as they are
    #[arg(long, value_name = "FILE", conflicts_with = "proto")]
    raw: Option<PathBuf>,
    /// Sends a file beside the message, or - for stdin
    #[arg(short, long, value_name = "FILE")]
    attachment: Option<PathBuf>,
    /// Writes the response's attachment into a file, or - for stdout in place of the message
    #[arg(long, value_name = "FILE")]
    attachment_out: Option<PathBuf>,
    /// Gives up after so many seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "5", value_parser = timeout)]
    timeout: Duration,
    /// Adds metadata; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Says on stderr what the call took, over which transport, and the response's metadata
    #[arg(short, long)]
    stats: bool,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds, such as 0.5".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("more than 0 seconds".to_owned()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE".to_owned()),
    }
}

/// Makes the call and prints the response.
pub(crate) fn run(args: &Args) -> Done {
    let stdin_readers = [&args.raw, &args.attachment].into_iter().flatten().filter(|path| is_dash(path)).count();
    if stdin_readers + usize::from(args.data.as_deref() == Some("-")) > 1 {
        return Err(Failure::usage("stdin can be read once: only one of --data, --raw and --attachment may be -"));
    }
    let (service, method) =
        args.method.rsplit_once('/').filter(|(s, m)| !s.is_empty() && !m.is_empty()).ok_or_else(|| {
            Failure::usage(format!("{} is not SERVICE/METHOD", args.method)).hint("ucrpc call ADDR demo.Echo/Say ...")
        })?;
    if let Some(path) = &args.raw {
        let message = read(path)?;
        let response = call(
            args,
            MethodName::new(service.to_owned(), method.to_owned()),
            MessageBuf::copy_from_slice(&message, 0),
        )?;
        return finish(args, &response, |out| out.write_all(&response.message));
    }
    if args.proto.is_empty() {
        return Err(Failure::usage("the types of the method are not known")
            .hint("--proto FILE names the file that declares it; --raw FILE sends bytes that are serialized already"));
    }
    let method = schema::Method::find(&args.proto, &args.include, service, method)?;
    let request = method.request(&data(args)?)?;
    let response = call(args, MethodName::new(method.service(), method.name()), MessageBuf::encode(&request, 0))?;
    let json = method.response(&response.message)?;
    finish(args, &response, |out| writeln!(out, "{json}"))
}

/// A method's full names and its request, serialized from JSON, as a `.proto` file declares them.
pub(crate) fn serialize(
    proto: &[PathBuf],
    include: &[PathBuf],
    (service, method): (&str, &str),
    json: &str,
) -> Result<((String, String), Bytes), Failure> {
    let method = schema::Method::find(proto, include, service, method)?;
    let message = MessageBuf::encode(&method.request(json)?, 0);
    Ok(((method.service(), method.name()), Bytes::copy_from_slice(message.as_slice())))
}

/// The request's JSON.
fn data(args: &Args) -> Result<String, Failure> {
    let (text, name) = match args.data.as_deref() {
        None => return Ok("{}".to_owned()),
        Some("-") => (read(Path::new("-"))?, "stdin"),
        Some(text) => match text.strip_prefix('@') {
            Some(path) => (read(Path::new(path))?, path),
            None => return Ok(text.to_owned()),
        },
    };
    String::from_utf8(text.into()).map_err(|_| Failure::usage(format!("{name} is not UTF-8, and JSON must be")))
}

fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn read(path: &Path) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    let done = if is_dash(path) {
        std::io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    match done {
        Ok(()) => Ok(bytes.into()),
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot read {}: {error}", path.display()))),
    }
}

fn call(args: &Args, method: MethodName, message: MessageBuf) -> Result<RawResponse, Failure> {
    let mut metadata = Metadata::new();
    for (key, value) in &args.metadata {
        metadata.insert(key.clone(), value.clone()).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let mut options = CallOptions::default();
    options.metadata = metadata;
    if let Some(path) = &args.attachment {
        options.attachment = read(path)?.into();
    }
    // Whether a call may run twice only its method's author knows.
    let mut never = RetryPolicy::default();
    never.on = RetryOn::Never;
    let channel = Channel::builder(&args.address).timeout(args.timeout).retry(never).connect_lazy()?;
    let deadline = Deadline::after(Instant::now(), args.timeout);
    channel.block_on(channel.connected()).map_err(|status| unreachable(args, &status))?;
    options.deadline = deadline;
    channel
        .block_on(channel.call(RawCall { method, message, options: Box::new(options) }))
        .map_err(|status| failed(args, &status))
}

/// No connection.
fn unreachable(args: &Args, status: &Status) -> Failure {
    let failure = match status.code() {
        Code::ERDMA => Failure::new(Exit::NoUcx, status.message().to_owned())
            .hint("ucrpc doctor says what is missing; auto:// in place of ucx:// goes on over TCP"),
        Code::EINVAL => Failure::usage(status.message().to_owned()),
        Code::EPROTO => Failure::new(Exit::Failed, status.to_string())
            .hint("is it a ucrpc server? a plain brpc server needs tcp:// in place of auto://"),
        _ => Failure::new(Exit::Unreachable, status.to_string())
            .hint("is the server running there, and on that port? ucrpc doctor --peer ADDR looks closer"),
    };
    failure.while_doing(format!("connecting to {}", args.address))
}

/// A connection, and no response.
fn failed(args: &Args, status: &Status) -> Failure {
    let took = status.stats().map(|stats| stats.latency).unwrap_or_default();
    let text = |what: &str| format!("{what}: {status}");
    match status.code() {
        Code::ERPCTIMEDOUT => {
            Failure::new(Exit::Failed, text(&format!("no response within {} s", args.timeout.as_secs_f64())))
                .hint("--timeout SECONDS waits longer")
        }
        Code::EFAILEDSOCKET | Code::EEOF | Code::ECLOSE | Code::ECONNRESET | Code::ECONNABORTED | Code::EPIPE => {
            Failure::new(Exit::Lost, text("the server went away")).hint("whether it ran the call is not known")
        }
        Code::EMSGSIZE => Failure::new(Exit::Failed, text("the request is too large")),
        code => {
            if args.stats {
                eprintln!("answered in {:.1} us", took.as_secs_f64() * 1e6);
            }
            let name = code.name().map_or_else(String::new, |name| format!("{name} "));
            let failure = Failure::new(
                Exit::Bad,
                format!("the server answered {name}({}): {}", code.to_wire(), status.message()),
            );
            match code {
                Code::ENOSERVICE | Code::ENOMETHOD => {
                    failure.hint("compare SERVICE/METHOD with the server's .proto file")
                }
                Code::EREQUEST => {
                    failure.hint("the server could not read the request: is the .proto file the server's?")
                }
                Code::ELIMIT | Code::ELOGOFF => failure.hint("the server is busy or stopping: try again later"),
                _ => failure,
            }
        }
    }
}

/// Prints a response.
fn finish(args: &Args, response: &RawResponse, print: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Done {
    let mut out = std::io::stdout().lock();
    let attachment = &response.attachment;
    match &args.attachment_out {
        Some(path) if is_dash(path) => out.write_all(attachment)?,
        other => {
            if let Some(path) = other {
                std::fs::write(path, attachment)
                    .map_err(|e| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display())))?;
            } else if !attachment.is_empty() {
                eprintln!("attachment of {} bytes: --attachment-out FILE keeps it", attachment.len());
            }
            print(&mut out)?;
        }
    }
    out.flush()?;
    if args.stats {
        eprintln!("{}", stats(&response.stats));
        for (key, value) in response.metadata.iter() {
            eprintln!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        }
    }
    Ok(())
}

fn stats(stats: &CallStats) -> String {
    let CallStats { latency, bytes_sent, bytes_received, transport, .. } = stats;
    let us = latency.as_secs_f64() * 1e6;
    format!("over {transport} in {us:.1} us, {bytes_sent} bytes sent, {bytes_received} received")
}
