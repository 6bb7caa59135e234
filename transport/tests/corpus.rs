//! Replays the kept fuzzing corpus with a plain build: each file must be read as its name says.
//!
//! Names start with `ok-` (decodes), `more-` (incomplete) or `bad-` (refused).

use std::{fs, path::PathBuf};

use ucrpc_transport::proto::{
    curve::{self, Command, CurveError, Features, Header},
    header,
    hello::{self, Decoded},
};

fn files(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    for outcome in ["ok-", "more-", "bad-"] {
        assert!(files.iter().any(|(name, _)| name.starts_with(outcome)), "{target} has no {outcome} file");
    }
    files
}

fn check(target: &str, name: &str, outcome: &str) {
    assert!(name.starts_with(outcome), "{target}/{name} came out as {outcome}");
}

#[test]
fn headers() {
    for (name, bytes) in files("transport_header") {
        let outcome = match header::decode(&bytes) {
            Ok((read, used)) => {
                let mut out = [0; header::MAX_HEADER];
                let len = read.encode(&mut out);
                assert_eq!(out[..len], bytes[..used], "{name}");
                "ok-"
            }
            Err(header::HeaderError::Truncated { .. }) => "more-",
            Err(_) => "bad-",
        };
        check("transport_header", &name, outcome);
    }
}

#[test]
fn hellos() {
    for (name, bytes) in files("transport_hello") {
        let outcome = match hello::decode(&bytes) {
            Ok(Decoded::Message(message, _)) => {
                let again = hello::encode(&message);
                assert_eq!(hello::decode(&again), Ok(Decoded::Message(message, again.len())), "{name}");
                "ok-"
            }
            Ok(Decoded::NeedMore(need)) => {
                assert!(need > bytes.len());
                "more-"
            }
            Err(_) => "bad-",
        };
        check("transport_hello", &name, outcome);
    }
}

#[test]
fn curve_messages() {
    fn read(bytes: &[u8]) -> Result<(), CurveError> {
        let (header, payload) = bytes.split_at(bytes.len().min(curve::HEADER));
        let header = Header::decode(header)?;
        let content = &payload[header.content(payload.len())?..];
        match header.command {
            Command::Hello | Command::HelloReply => Features::OURS.agree(&Features::decode(content)?),
            Command::Data | Command::Ping | Command::Pong => Ok(()),
        }
    }
    for (name, bytes) in files("transport_curve") {
        let outcome = match read(&bytes) {
            Ok(()) => "ok-",
            Err(CurveError::Length(_)) => "more-",
            Err(_) => "bad-",
        };
        check("transport_curve", &name, outcome);
    }
}
