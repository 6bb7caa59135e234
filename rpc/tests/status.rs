//! Codes and statuses, deadlines, metadata.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use ucrpc_rpc::call::{Deadline, Inherited, Metadata};
use ucrpc_rpc::{Code, Status};

#[test]
fn codes_have_brpcs_numbers() {
    // Copied from the table of the format, not from the code.
    let table = [
        (1001, Code::ENOSERVICE),
        (1002, Code::ENOMETHOD),
        (1003, Code::EREQUEST),
        (1004, Code::ERPCAUTH),
        (1005, Code::ETOOMANYFAILS),
        (1007, Code::EBACKUPREQUEST),
        (1008, Code::ERPCTIMEDOUT),
        (1009, Code::EFAILEDSOCKET),
        (1010, Code::EHTTP),
        (1011, Code::EOVERCROWDED),
        (1014, Code::EEOF),
        (1016, Code::ESSL),
        (1018, Code::EREJECT),
        (2001, Code::EINTERNAL),
        (2002, Code::ERESPONSE),
        (2003, Code::ELOGOFF),
        (2004, Code::ELIMIT),
        (2005, Code::ECLOSE),
        (3001, Code::ERDMA),
        (3002, Code::ERDMAMEM),
        (125, Code::ECANCELED),
    ];
    for (number, code) in table {
        assert_eq!(code.to_wire(), number);
        assert_eq!(Code::from_wire(number), code);
        assert!(code.name().is_some());
    }
    let numbers: HashSet<_> = Code::ALL.iter().map(|code| code.to_wire()).collect();
    assert_eq!(numbers.len(), Code::ALL.len(), "no number twice");
    assert!(Code::ELOGOFF.is_retryable() && !Code::ERPCTIMEDOUT.is_retryable() && !Code::EREQUEST.is_retryable());
    for code in Code::ALL {
        let text = code.to_string();
        assert!(text.starts_with(char::is_lowercase) && !text.ends_with('.'), "{text}");
    }
}

#[test]
fn unknown_codes_are_kept() {
    let status = Status::from_wire(-77, b"odd").unwrap();
    assert_eq!((status.code().to_wire(), status.message()), (-77, "odd"));
    assert_eq!(status.to_string(), "error -77: odd");
    assert_eq!(format!("{:?} {:?}", status.code(), Code::ELIMIT), "Code(-77) ELIMIT(2004)");
    assert!(!status.is_retryable());
    assert_eq!(Status::from_wire(0, b"text of a success"), None);
    assert_eq!(Status::new(Code::OK, "no").code(), Code::EINTERNAL);
    assert_eq!(Status::from(Code::ELIMIT).to_string(), "server is at its limit");
    assert_eq!(Status::new(Code::ELIMIT, "50 calls").to_string(), "server is at its limit: 50 calls");
    assert!(size_of::<Status>() <= 40, "small enough to be moved about");
}

#[test]
fn io_errors_become_codes() {
    let os = |errno| Status::from(io::Error::from_raw_os_error(errno)).code();
    assert_eq!((os(111), os(104), os(32)), (Code::ECONNREFUSED, Code::ECONNRESET, Code::EPIPE));
    let kind = |kind: io::ErrorKind| Code::from(&io::Error::from(kind));
    assert_eq!(kind(io::ErrorKind::UnexpectedEof), Code::EEOF);
    assert_eq!(kind(io::ErrorKind::TimedOut), Code::ETIMEDOUT);
    assert_eq!(kind(io::ErrorKind::Other), Code::EIO);
}

#[test]
fn deadlines_travel_as_remaining_milliseconds() {
    let now = Instant::now();
    let after = |micros| Deadline::after(now, Duration::from_micros(micros)).to_wire(now);
    assert_eq!(after(1), Ok(Some(1)), "rounded up, zero would mean none");
    assert_eq!(after(1000), Ok(Some(1)));
    assert_eq!(after(1001), Ok(Some(2)));
    assert!(after(0).is_err());
    assert_eq!(Deadline::NEVER.to_wire(now), Ok(None));
    assert_eq!(Deadline::after(now, Duration::MAX), Deadline::NEVER);
    for none in [None, Some(0), Some(-1), Some(i32::MIN)] {
        assert_eq!(Deadline::from_wire(none, now), Deadline::NEVER);
    }
    let second = Deadline::from_wire(Some(1000), now);
    assert_eq!(second.remaining(now), Some(Duration::from_secs(1)));
    assert!(!second.is_expired(now) && second.is_expired(now + Duration::from_secs(1)));
    assert_eq!(second.remaining(now + Duration::from_secs(9)), Some(Duration::ZERO));
    assert_eq!(second.min(Deadline::NEVER), second);
    assert_eq!(second.min(Deadline::at(now)), Deadline::at(now));
}

#[test]
fn what_is_inherited_is_restored_even_on_a_panic() {
    let outer = Inherited { log_id: Some(1), ..Inherited::NONE };
    let inner = Inherited { log_id: Some(2), ..Inherited::NONE };
    outer.enter(|| {
        inner.enter(|| assert_eq!(Inherited::current(), inner));
        assert_eq!(Inherited::current(), outer);
        let panicked = std::panic::catch_unwind(|| inner.enter(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(Inherited::current(), outer);
    });
    assert_eq!(Inherited::current(), Inherited::NONE);
}

#[test]
fn metadata_is_a_small_map() {
    let mut metadata = Metadata::new();
    metadata.insert("a", "1").unwrap();
    metadata.insert("b", vec![0xff]).unwrap();
    metadata.insert("a", "2").unwrap();
    assert_eq!((metadata.len(), metadata.get("a"), metadata.get("b")), (2, Some("2"), None));
    assert_eq!(&metadata.get_bytes("b").unwrap()[..], [0xff]);
    assert!(metadata.insert("long", vec![0; Metadata::MAX_ENTRY]).is_err());
    assert_eq!(metadata.len(), 2);
    assert_eq!(Metadata::from(metadata.as_user_fields()), metadata);
}
