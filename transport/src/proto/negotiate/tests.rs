use proptest::prelude::*;

use super::*;
use crate::proto::hello::{Decoded, Message, Reject, decode, encode};

fn info(version: (u16, u16, u16), fingerprint: u64) -> UcxInfo {
    UcxInfo { version, fingerprint, settings: format!("seg={fingerprint}"), worker_address: vec![1, 2, 3] }
}

fn local(policy: Policy, ucx: Result<UcxInfo, FallbackReason>) -> Local {
    Local {
        policy,
        required_features: 0b01,
        supported_features: 0b11,
        process_id: [1; 16],
        ucx,
        max_message: 1 << 30,
        max_head: 1 << 16,
        credit: Credit { messages: 64, bytes: 1 << 20 },
        keepalive_ms: 750,
    }
}

fn ok() -> Result<UcxInfo, FallbackReason> {
    Ok(info((1, 13, 1), 7))
}

fn off() -> Result<UcxInfo, FallbackReason> {
    Err(FallbackReason::Disabled("UCRPC_TRANSPORT=tcp".into()))
}

fn missing() -> Result<UcxInfo, FallbackReason> {
    Err(FallbackReason::NoLibrary("libucp.so.0 not found".into()))
}

/// What each side ends with: the server's answer and the client's verdict on what went over the wire.
fn meet(client: &Local, server: &Local) -> (Option<Answer>, Result<Verdict>) {
    let hello = match client.client_hello(1, 2) {
        Ok(hello) => hello,
        Err(error) => return (None, Err(error)),
    };
    let Message::ClientHello(hello) = over_the_wire(Message::ClientHello(hello)) else { unreachable!() };
    let answer = answer(server, &hello);
    let reply = match &answer {
        Answer::AcceptTcp(reason) => Message::Accept(server.accept(Transport::Tcp, reason.as_ref(), 3, 4)),
        Answer::TryUcx(_) => Message::Accept(server.accept(Transport::Ucx, None, 3, 4)),
        Answer::Reject { code, text } => Message::Reject(Reject { code: code.to_wire(), text: text.clone() }),
    };
    let verdict = match over_the_wire(reply) {
        Message::Accept(accept) => judge(client, &accept),
        Message::Reject(reject) => Err(reject_error(reject.code, &reject.text)),
        other => panic!("{other:?}"),
    };
    (Some(answer), verdict)
}

fn over_the_wire(message: Message) -> Message {
    match decode(&encode(&message)) {
        Ok(Decoded::Message(message, _)) => message,
        other => panic!("{other:?}"),
    }
}

fn error_of(verdict: Result<Verdict>) -> (ErrorKind, String) {
    let error = verdict.unwrap_err();
    (error.kind(), error.text().to_owned())
}

#[test]
fn equals_take_ucx() {
    for (client, server) in [
        (Policy::Auto, Policy::Auto),
        (Policy::UcxRequired, Policy::Auto),
        (Policy::Auto, Policy::UcxRequired),
        (Policy::UcxRequired, Policy::UcxRequired),
    ] {
        let (answer, verdict) = meet(&local(client, ok()), &local(server, Ok(info((1, 13, 9), 7))));
        assert_eq!(answer, Some(Answer::TryUcx(info((1, 13, 1), 7))));
        assert_eq!(verdict, Ok(Verdict::TryUcx(info((1, 13, 9), 7))), "patch versions may differ");
    }
}

#[test]
fn who_asks_for_tcp_gets_it_without_a_reason() {
    let (answer, verdict) = meet(&local(Policy::TcpOnly, ok()), &local(Policy::Auto, ok()));
    assert_eq!((answer, verdict), (Some(Answer::AcceptTcp(None)), Ok(Verdict::Tcp(None))));
    let (_, verdict) = meet(&local(Policy::TcpOnly, off()), &local(Policy::UcxRequired, ok()));
    let (kind, text) = error_of(verdict);
    assert_eq!(kind, ErrorKind::NoUcx);
    assert!(text.contains("this server takes ucx only"), "{text}");
}

#[test]
fn each_side_sees_the_reason_from_where_it_stands() {
    let auto = |ucx| local(Policy::Auto, ucx);
    let cases = [
        (
            auto(off()),
            auto(ok()),
            "the peer has no ucx: switched off: UCRPC_TRANSPORT=tcp",
            "ucx is switched off on this side (UCRPC_TRANSPORT=tcp)",
        ),
        (
            auto(missing()),
            auto(ok()),
            "the peer has no ucx: no library: libucp.so.0 not found",
            "no ucx library on this side: libucp.so.0 not found",
        ),
        (
            auto(ok()),
            auto(off()),
            "ucx is switched off on this side (UCRPC_TRANSPORT=tcp)",
            "the peer has no ucx: switched off: UCRPC_TRANSPORT=tcp",
        ),
        (
            auto(ok()),
            auto(missing()),
            "no ucx library on this side: libucp.so.0 not found",
            "the peer has no ucx: no library: libucp.so.0 not found",
        ),
        (
            auto(missing()),
            auto(off()),
            "ucx is switched off on this side (UCRPC_TRANSPORT=tcp)",
            "no ucx library on this side: libucp.so.0 not found",
        ),
        (
            auto(ok()),
            local(Policy::TcpOnly, ok()),
            "ucx is switched off on this side (the policy is tcp only)",
            "the peer has no ucx: switched off: the policy is tcp only",
        ),
        (
            auto(ok()),
            auto(Ok(info((1, 16, 0), 7))),
            "ucx versions differ: 1.16.0 here, 1.13.1 there",
            "ucx versions differ: 1.13.1 here, 1.16.0 there",
        ),
        (
            auto(ok()),
            auto(Ok(info((2, 13, 1), 7))),
            "ucx versions differ: 2.13.1 here, 1.13.1 there",
            "ucx versions differ: 1.13.1 here, 2.13.1 there",
        ),
        (
            auto(ok()),
            auto(Ok(info((1, 13, 1), 8))),
            "ucx settings differ: seg=8 [0000000000000008] here, seg=7 [0000000000000007] there",
            "ucx settings differ: seg=7 [0000000000000007] here, seg=8 [0000000000000008] there",
        ),
    ];
    for (client, server, at_server, at_client) in cases {
        let (answer, verdict) = meet(&client, &server);
        let Some(Answer::AcceptTcp(Some(reason))) = answer else { panic!("{answer:?}") };
        assert_eq!(reason.to_string(), at_server);
        let Ok(Verdict::Tcp(Some(reason))) = verdict else { panic!("{verdict:?}") };
        assert_eq!(reason.to_string(), at_client);
    }
}

#[test]
fn required_ucx_never_falls_back() {
    let required = |ucx| local(Policy::UcxRequired, ucx);
    let cases = [
        (required(missing()), local(Policy::Auto, ok()), "no ucx library on this side: libucp.so.0 not found"),
        (required(ok()), local(Policy::Auto, off()), "the peer has no ucx: switched off: UCRPC_TRANSPORT=tcp"),
        (required(ok()), local(Policy::TcpOnly, ok()), "the peer has no ucx: switched off: the policy is tcp only"),
        (
            required(ok()),
            local(Policy::Auto, Ok(info((1, 14, 1), 7))),
            "ucx versions differ: 1.13.1 here, 1.14.1 there",
        ),
        (required(ok()), local(Policy::Auto, Ok(info((1, 13, 1), 8))), "ucx settings differ: seg=7"),
        (local(Policy::Auto, missing()), required(ok()), "no ucx library on this side: libucp.so.0 not found"),
    ];
    for (client, server, expected) in cases {
        let (kind, text) = error_of(meet(&client, &server).1);
        assert_eq!(kind, ErrorKind::NoUcx);
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
    }
}

#[test]
fn features_and_limits() {
    let mut client = local(Policy::Auto, ok());
    let server = local(Policy::Auto, ok());
    client.supported_features = 0b10;
    let (kind, text) = error_of(meet(&client, &server).1);
    assert_eq!(kind, ErrorKind::Version);
    assert!(text.contains("the client lacks features 0x1 that the server requires"), "{text}");
    client.supported_features = u64::MAX;
    client.required_features = 1 << 63;
    let (kind, text) = error_of(meet(&client, &server).1);
    assert_eq!(kind, ErrorKind::Version);
    assert!(text.contains("the server lacks features 0x8000000000000000"), "{text}");
    client.required_features = 0;
    for spoil in [
        (|it| it.max_message = 0) as fn(&mut Local),
        |it| it.max_message = u64::MAX,
        |it| it.max_head = 0,
        |it| it.credit.messages = 0,
        |it| it.credit.bytes = 0,
    ] {
        let mut odd = client.clone();
        spoil(&mut odd);
        assert_eq!(error_of(meet(&odd, &server).1).0, ErrorKind::Limit);
        assert_eq!(
            error_of(
                meet(&client, &{
                    let mut odd = server.clone();
                    spoil(&mut odd);
                    odd
                })
                .1
            )
            .0,
            ErrorKind::Protocol
        );
    }
}

#[test]
fn a_server_out_of_its_mind() {
    let client = local(Policy::TcpOnly, ok());
    let accept = local(Policy::Auto, ok()).accept(Transport::Ucx, None, 0, 0);
    assert_eq!(error_of(judge(&client, &accept)).0, ErrorKind::Protocol);
    assert_eq!(error_of(judge(&local(Policy::Auto, missing()), &accept)).0, ErrorKind::Protocol);
    let accept = local(Policy::Auto, Ok(info((1, 20, 0), 7))).accept(Transport::Ucx, None, 0, 0);
    let verdict = judge(&local(Policy::Auto, ok()), &accept);
    assert!(matches!(verdict, Ok(Verdict::Decline(FallbackReason::VersionMismatch { .. }))), "{verdict:?}");
    assert_eq!(error_of(judge(&local(Policy::UcxRequired, ok()), &accept)).0, ErrorKind::NoUcx);
    let accept = local(Policy::Auto, ok()).accept(Transport::Tcp, None, 0, 0);
    let verdict = judge(&local(Policy::Auto, ok()), &accept);
    assert!(matches!(verdict, Ok(Verdict::Tcp(Some(FallbackReason::PeerHasNone(_))))), "{verdict:?}");
    assert_eq!(error_of(judge(&local(Policy::UcxRequired, ok()), &accept)).0, ErrorKind::NoUcx);
}

#[test]
fn an_address_that_does_not_fit_is_a_reason() {
    let mut big = info((1, 13, 1), 7);
    big.worker_address = vec![0; 5000];
    let (answer, verdict) = meet(&local(Policy::Auto, Ok(big.clone())), &local(Policy::Auto, ok()));
    let Some(Answer::AcceptTcp(Some(reason))) = answer else { panic!("{answer:?}") };
    assert!(reason.to_string().contains("5000 bytes"));
    assert!(matches!(verdict, Ok(Verdict::Tcp(Some(FallbackReason::Failed(_))))), "{verdict:?}");
    assert_eq!(error_of(meet(&local(Policy::UcxRequired, Ok(big)), &local(Policy::Auto, ok())).1).0, ErrorKind::NoUcx);
}

#[test]
fn reject_codes_round_trip() {
    for code in [RejectCode::Refused, RejectCode::Version, RejectCode::Limit, RejectCode::NoUcx, RejectCode::Protocol] {
        assert_eq!(RejectCode::from_wire(code.to_wire()), code);
    }
    assert_eq!(RejectCode::from_wire(999), RejectCode::Refused);
    assert_eq!(reject_error(2, "x").kind(), ErrorKind::Version);
}

fn reasons() -> impl Strategy<Value = FallbackReason> {
    let text = "[ -~]{0,120}";
    prop_oneof![
        text.prop_map(|t| FallbackReason::Disabled(t.into())),
        text.prop_map(|t| FallbackReason::NoLibrary(t.into())),
        text.prop_map(|t| FallbackReason::PeerHasNone(format!("{}{t}", "no library: ").into())),
        text.prop_map(|t| FallbackReason::PeerHasNone(format!("{}{t}", "switched off: ").into())),
        (text, text).prop_map(|(ours, theirs)| FallbackReason::VersionMismatch { ours, theirs }),
        (text, text).prop_map(|(ours, theirs)| FallbackReason::SettingsMismatch { ours, theirs }),
        text.prop_map(|t| FallbackReason::Unreachable(t.into())),
        any::<u64>().prop_map(FallbackReason::ProofTimedOut),
        text.prop_map(|t| FallbackReason::Failed(t.into())),
    ]
}

proptest! {
    /// Seen from there and back again it is the same reason.
    #[test]
    fn mirroring_twice_changes_nothing(reason in reasons()) {
        prop_assert_eq!(mirror(&mirror(&reason)), reason);
    }

    #[test]
    fn any_code_and_text_is_a_reason(code in 0u16..12, text in "\\PC{0,700}|[\\n0-9]{0,20}") {
        let reason = from_wire(code, &text);
        prop_assert!(!reason.to_string().is_empty());
        prop_assert!(to_wire(&reason).1.len() <= MAX_TEXT);
        let _ = mirror(&reason);
    }
}
