//! Negotiation messages: no bytes make the decoder or the decisions panic, and what is read can be said again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ucrpc_transport::{
    FallbackReason,
    proto::{
        header::Credit,
        hello::{self, Decoded, Message, UcxInfo},
        negotiate::{self, Local, Policy},
    },
};

fn local(policy: Policy, ucx: bool) -> Local {
    let info =
        UcxInfo { version: (1, 13, 1), fingerprint: 7, settings: "seg=8256".to_owned(), worker_address: vec![1, 2, 3] };
    Local {
        policy,
        required_features: 1,
        supported_features: 3,
        process_id: [1; 16],
        ucx: if ucx { Ok(info) } else { Err(FallbackReason::NoLibrary("none".into())) },
        max_message: 1 << 30,
        max_head: 1 << 16,
        credit: Credit { messages: 64, bytes: 1 << 20 },
        keepalive_ms: 750,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (message, used) = match hello::decode(bytes) {
        Ok(Decoded::Message(message, used)) => (message, used),
        Ok(Decoded::NeedMore(need)) => {
            assert!(need > bytes.len() && need <= hello::ENVELOPE + hello::MAX_FIELDS_LEN);
            return;
        }
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(used <= bytes.len());
    for policy in [Policy::Auto, Policy::TcpOnly, Policy::UcxRequired] {
        for ucx in [false, true] {
            match &message {
                Message::ClientHello(hello) => drop(negotiate::answer(&local(policy, ucx), hello)),
                Message::Accept(accept) => drop(negotiate::judge(&local(policy, ucx), accept)),
                Message::Reject(reject) => drop(negotiate::reject_error(reject.code, &reject.text)),
                Message::Fallback(fallback) => {
                    drop(negotiate::mirror(&negotiate::from_wire(fallback.code, &fallback.text)));
                }
                Message::Ready(_) | Message::Nak(_) | Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }
    let again = hello::encode(&message);
    assert_eq!(hello::decode(&again), Ok(Decoded::Message(message, again.len())));
});
