use proptest::{option, prelude::*};

use super::{codec::field, *};

fn hello() -> ClientHello {
    ClientHello {
        want: Want::Auto,
        required_features: 1,
        supported_features: 3,
        process_id: *b"0123456789abcdef",
        conn: 5,
        generation: 6,
        max_message: 0x0100_0000,
        max_head: 0x1_0000,
        credit: Credit { messages: 64, bytes: 0x20_0000 },
        ucx: Some(UcxInfo {
            version: (1, 13, 1),
            fingerprint: 0xabcd,
            settings: "s=1".into(),
            worker_address: vec![9, 8],
        }),
        no_ucx_reason: None,
        keepalive_ms: 750,
        least_endpoint: Some(0x0302),
    }
}

#[rustfmt::skip]
const HELLO: &[u8] = &[
    b'U', b'C', b'R', b'P', 1, 1, 0, 0, 132, 0, 0, 0,
    1, 0, 1, 0,  0,
    2, 0, 8, 0,  1, 0, 0, 0, 0, 0, 0, 0,
    3, 0, 8, 0,  3, 0, 0, 0, 0, 0, 0, 0,
    4, 0, 16, 0, b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'8', b'9', b'a', b'b', b'c', b'd', b'e', b'f',
    5, 0, 8, 0,  5, 0, 0, 0,  6, 0, 0, 0,
    6, 0, 12, 0, 0, 0, 0, 1, 0, 0, 0, 0,  0, 0, 1, 0,
    7, 0, 12, 0, 64, 0, 0, 0,  0, 0, 0x20, 0, 0, 0, 0, 0,
    8, 0, 4, 0,  0xee, 2, 0, 0,
    14, 0, 2, 0, 2, 3,
    9, 0, 21, 0, 1, 0, 13, 0, 1, 0,  0xcd, 0xab, 0, 0, 0, 0, 0, 0,  3, 0, b's', b'=', b'1',  9, 8,
];

/// A message of `message_type` with `fields`.
fn raw(message_type: u8, fields: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, value) in fields {
        body.extend(field.to_le_bytes());
        body.extend((value.len() as u16).to_le_bytes());
        body.extend_from_slice(value);
    }
    let mut bytes = [&b"UCRP"[..], &[1, message_type, 0, 0], &(body.len() as u32).to_le_bytes()].concat();
    bytes.extend(body);
    bytes
}

#[test]
fn golden_client_hello() {
    let message = Message::ClientHello(hello());
    assert_eq!(encode(&message), HELLO);
    assert_eq!(decode(HELLO), Ok(Decoded::Message(message, HELLO.len())));
}

#[test]
fn golden_small_messages() {
    let cases: [(Message, &[u8]); 6] = [
        (Message::Ready(Ready), b"UCRP\x01\x04\0\0\0\0\0\0"),
        (
            Message::Reject(Reject { code: 0x0201, text: "no".into() }),
            b"UCRP\x01\x03\0\0\x08\0\0\0\x0a\0\x04\0\x01\x02no",
        ),
        (Message::Fallback(Fallback { code: 7, text: String::new() }), b"UCRP\x01\x05\0\0\x06\0\0\0\x0a\0\x02\0\x07\0"),
        (
            Message::Ping(0x0102_0304_0506_0708),
            b"UCRP\x01\x07\0\0\x0c\0\0\0\x0d\0\x08\0\x08\x07\x06\x05\x04\x03\x02\x01",
        ),
        (Message::Pong(1), b"UCRP\x01\x08\0\0\x0c\0\0\0\x0d\0\x08\0\x01\0\0\0\0\0\0\0"),
        (Message::Nak(Nak { text: "bye".into() }), b"UCRP\x01\x06\0\0\x07\0\0\0\x0c\0\x03\0bye"),
    ];
    for (message, bytes) in cases {
        assert_eq!(encode(&message), bytes, "{message:?}");
        assert_eq!(decode(bytes), Ok(Decoded::Message(message, bytes.len())));
    }
}

#[test]
fn another_minor_version_and_unknown_fields_are_skipped() {
    let mut bytes = raw(4, &[(100, b"new"), (0x7fff, b"")]);
    bytes[6] = 9;
    assert_eq!(decode(&bytes), Ok(Decoded::Message(Message::Ready(Ready), bytes.len())));
}

#[test]
fn each_mistake_has_its_error() {
    assert_eq!(decode(b"PRPC"), Err(HelloError::Magic));
    assert_eq!(decode(b"UX"), Err(HelloError::Magic));
    assert_eq!(decode(b"UCRP\x02"), Err(HelloError::Major(2)));
    assert_eq!(decode(b"UCRP\x01\0"), Err(HelloError::MessageType(0)));
    assert_eq!(decode(b"UCRP\x01\x09"), Err(HelloError::MessageType(9)));
    assert_eq!(decode(b"UCRP\x01\x04\0\0\x01\x20\0\0"), Err(HelloError::TooLong(8193)));
    assert_eq!(decode(b"UCRP\x01\x04\0\0\xff\xff\xff\xff"), Err(HelloError::TooLong(u32::MAX)));
    assert_eq!(decode(b"UCRP\x01\x04\0\0\x03\0\0\0\x01\0\0"), Err(HelloError::Truncated));
    assert_eq!(decode(b"UCRP\x01\x04\0\0\x04\0\0\0\x01\0\x01\0"), Err(HelloError::Truncated));
    assert_eq!(decode(&raw(4, &[(0x8001, b"")])), Err(HelloError::RequiredField(0x8001)));
    assert_eq!(decode(&raw(4, &[(12, b""), (12, b"")])), Err(HelloError::Duplicate(12)));
    assert_eq!(decode(&raw(4, &[(500, b""), (500, b"")])), Err(HelloError::Duplicate(500)));
    let many: Vec<(u16, &[u8])> = (100..100 + MAX_FIELDS as u16 + 1).map(|field| (field, &b""[..])).collect();
    assert_eq!(decode(&raw(4, &many)), Err(HelloError::TooManyFields));
    assert!(decode(&raw(4, &many[1..])).is_ok());
    assert_eq!(decode(&raw(6, &[])), Err(HelloError::Missing(field::TEXT)));
    assert_eq!(decode(&raw(6, &[(12, &[0xff])])), Err(HelloError::NotUtf8(12)));
    assert!(decode(&raw(6, &[(12, &[b'x'; 512])])).is_ok());
    assert_eq!(decode(&raw(6, &[(12, &[b'x'; 513])])), Err(HelloError::FieldLength { field: 12, len: 513 }));
    assert_eq!(decode(&raw(3, &[(10, b"x")])), Err(HelloError::FieldLength { field: 10, len: 1 }));
    assert_eq!(decode(&raw(1, &[])), Err(HelloError::Missing(field::WANT)));
    assert_eq!(decode(&raw(1, &[(1, &[3])])), Err(HelloError::Value { field: 1, value: 3 }));
    assert_eq!(decode(&raw(2, &[(11, &[0])])), Err(HelloError::Value { field: 11, value: 0 }));
    assert_eq!(decode(&raw(2, &[(11, &[2])])), Err(HelloError::Missing(field::UCX)));
}

#[test]
fn the_ucx_field_has_limits() {
    let ucx = |settings: &[u8], address: &[u8]| {
        let value = [&[0; 14][..], &(settings.len() as u16).to_le_bytes(), settings, address].concat();
        decode(&raw(2, &[(9, &value)]))
    };
    let passed = Err(HelloError::Missing(field::TRANSPORT));
    assert_eq!(ucx(b"", b"a"), passed);
    assert_eq!(ucx(b"", &[0; MAX_WORKER_ADDRESS]), passed);
    assert!(matches!(ucx(b"", b""), Err(HelloError::FieldLength { field: 9, .. })));
    assert!(matches!(ucx(b"", &[0; MAX_WORKER_ADDRESS + 1]), Err(HelloError::FieldLength { field: 9, .. })));
    assert!(matches!(ucx(&[b'x'; 513], b"a"), Err(HelloError::FieldLength { field: 9, len: 513 })));
    assert_eq!(ucx(&[0xc0], b"a"), Err(HelloError::NotUtf8(9)));
    assert!(matches!(decode(&raw(2, &[(9, &[0; 15])])), Err(HelloError::FieldLength { .. })));
    let beyond = [&[0; 14][..], &[9, 0], b"short"].concat();
    assert!(matches!(decode(&raw(2, &[(9, &beyond)])), Err(HelloError::FieldLength { .. })));
    let both = [&[0; 14][..], &[0, 0], b"a"].concat();
    assert_eq!(decode(&raw(1, &[(9, &both), (10, b"xx")])), Err(HelloError::Contradiction(9, 10)));
    assert_eq!(decode(&raw(2, &[(11, &[2]), (9, &both), (10, b"xx")])), Err(HelloError::Contradiction(11, 10)));
}

#[test]
fn the_longest_message_fits() {
    let long = "é".repeat(MAX_TEXT);
    let info = UcxInfo {
        version: (u16::MAX, u16::MAX, u16::MAX),
        fingerprint: u64::MAX,
        settings: long.clone(),
        worker_address: vec![1; MAX_WORKER_ADDRESS],
    };
    let Message::Accept(accept) = accept_of(Transport::Tcp, Some((1, long)), Some(info)) else { unreachable!() };
    let bytes = encode(&Message::Accept(accept));
    assert!(bytes.len() <= ENVELOPE + MAX_FIELDS_LEN);
    let Ok(Decoded::Message(Message::Accept(read), used)) = decode(&bytes) else { panic!("not read back") };
    assert_eq!(used, bytes.len());
    assert_eq!(read.fallback.unwrap().1.len(), MAX_TEXT);
    assert_eq!(read.ucx.unwrap().worker_address.len(), MAX_WORKER_ADDRESS);
}

#[test]
fn an_address_that_is_too_long_is_not_sent() {
    let mut hello = hello();
    hello.ucx.as_mut().unwrap().worker_address = vec![0; MAX_WORKER_ADDRESS + 1];
    hello.no_ucx_reason = Some((8, "too long".into()));
    let Ok(Decoded::Message(Message::ClientHello(read), _)) = decode(&encode(&Message::ClientHello(hello))) else {
        panic!("not read back")
    };
    assert_eq!((read.ucx, read.no_ucx_reason), (None, Some((8, "too long".into()))));
}

fn accept_of(transport: Transport, fallback: Option<(u16, String)>, ucx: Option<UcxInfo>) -> Message {
    Message::Accept(Accept {
        transport,
        fallback,
        ucx,
        required_features: 0,
        supported_features: u64::MAX,
        process_id: [7; 16],
        conn: 1,
        generation: 2,
        max_message: 3,
        max_head: 4,
        credit: Credit { messages: 5, bytes: 6 },
        keepalive_ms: 7,
        endpoint: (transport == Transport::Ucx).then_some(9),
    })
}

fn ucx_info() -> impl Strategy<Value = UcxInfo> {
    (any::<(u16, u16, u16)>(), any::<u64>(), "[ -~é]{0,200}", prop::collection::vec(any::<u8>(), 1..300)).prop_map(
        |(version, fingerprint, settings, worker_address)| UcxInfo { version, fingerprint, settings, worker_address },
    )
}

fn reason() -> impl Strategy<Value = (u16, String)> {
    (any::<u16>(), "\\PC{0,100}")
}

fn messages() -> impl Strategy<Value = Message> {
    let client = (
        prop::sample::select(vec![Want::Auto, Want::Tcp, Want::Ucx]),
        any::<(u64, u64, [u8; 16], u32, u32)>(),
        any::<(u64, u32, u32, u64, u32)>(),
        option::of(ucx_info()),
        option::of(reason()),
    );
    let client = client.prop_map(|(want, a, b, ucx, reason)| {
        Message::ClientHello(ClientHello {
            want,
            required_features: a.0,
            supported_features: a.1,
            process_id: a.2,
            conn: a.3,
            generation: a.4,
            max_message: b.0,
            max_head: b.1,
            credit: Credit { messages: b.2, bytes: b.3 },
            no_ucx_reason: reason.filter(|_| ucx.is_none()),
            ucx,
            keepalive_ms: b.4,
            least_endpoint: (b.3 % 3 == 0).then_some(b.4 as u16),
        })
    });
    prop_oneof![
        client,
        (option::of(reason()), option::of(ucx_info())).prop_map(|(reason, ucx)| accept_of(Transport::Tcp, reason, ucx)),
        ucx_info().prop_map(|info| accept_of(Transport::Ucx, None, Some(info))),
        reason().prop_map(|(code, text)| Message::Reject(Reject { code, text })),
        Just(Message::Ready(Ready)),
        reason().prop_map(|(code, text)| Message::Fallback(Fallback { code, text })),
        "\\PC{0,100}".prop_map(|text| Message::Nak(Nak { text })),
        any::<u64>().prop_map(Message::Ping),
        any::<u64>().prop_map(Message::Pong),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in messages(), trailing in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut bytes = encode(&message);
        let len = bytes.len();
        for cut in 0..len {
            let needs = if cut < ENVELOPE { ENVELOPE } else { len };
            prop_assert_eq!(decode(&bytes[..cut]), Ok(Decoded::NeedMore(needs)));
        }
        bytes.extend(trailing);
        prop_assert_eq!(decode(&bytes), Ok(Decoded::Message(message, len)));
    }

    #[test]
    fn one_changed_byte_never_panics(message in messages(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = encode(&message);
        let at = at.index(bytes.len());
        bytes[at] = value;
        match decode(&bytes) {
            // What is understood can be said again and means the same.
            Ok(Decoded::Message(message, _)) => {
                let again = encode(&message);
                let len = again.len();
                prop_assert_eq!(decode(&again), Ok(Decoded::Message(message, len)));
            }
            Ok(Decoded::NeedMore(need)) => {
                prop_assert!(need > bytes.len() && need <= ENVELOPE + MAX_FIELDS_LEN);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), message_type in 0u8..8) {
        let _ = decode(&bytes);
        let fields = bytes.clone();
        bytes = [&b"UCRP\x01"[..], &[message_type, 0, 0], &(fields.len() as u32).to_le_bytes(), &fields].concat();
        let _ = decode(&bytes);
    }
}
