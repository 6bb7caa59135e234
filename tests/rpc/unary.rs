//! Calls with one request and one response.

use ucrpc::rpc::client::RawCaller;
use ucrpc::{ConnectionType, Server};

use crate::bed::{Bed, Case};
pub(crate) use crate::calls::{bytes_of, request};
use crate::calls::{check_failures, check_payloads, check_sizes};
use crate::echo::{EchoClient, EchoServer, Seen, Service, Way};

pub const CASES: &[Case] = &[("unary", unary), ("concurrent", concurrent), ("sizes", sizes), ("failures", failures)];

const CONNECTIONS: [ConnectionType; 3] =
    [ConnectionType::Shared(1), ConnectionType::Shared(3), ConnectionType::Pooled(3)];

/// Runs `check` with each kind of connection and each way that handlers run.
fn everywhere(bed: &Bed, check: impl Fn(&EchoClient, &Server)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    for way in [Way::Inline, Way::Local, Way::Tokio] {
        let (service, seen) = Service::new(way);
        let mut server = Server::builder().service(EchoServer::new(service));
        if way == Way::Tokio {
            server = server.handlers_on(runtime.handle().clone());
        }
        let server = bed.serve(server);
        for connections in CONNECTIONS {
            let channel = bed.channel(&server).connections(connections).connect_lazy().unwrap();
            let client = EchoClient::new(channel.clone());
            check(&client, &server);
            assert!(channel.transports().iter().all(|t| *t == bed.backend.transport), "{:?}", channel.transports());
            assert_eq!((channel.stats().in_flight, channel.stats().stray_responses), (0, 0));
        }
        assert_eq!(Seen::get(&seen.started), Seen::get(&seen.ended) + Seen::get(&seen.dropped));
        assert_eq!(server.stats().running, 0);
    }
}

fn unary(bed: &Bed) {
    everywhere(bed, |client, _| check_payloads(client, bed.backend.transport));
}

fn concurrent(bed: &Bed) {
    everywhere(bed, |client, _| {
        let calls: Vec<_> = (0..200).map(|i| client.echo(request(bytes_of(i, 64))).into_future()).collect();
        for (i, call) in calls.into_iter().enumerate() {
            assert_eq!(client.caller().block_on(call).unwrap().payload, bytes_of(i, 64));
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for i in 0..50 {
                        let payload = bytes_of(thread * 1000 + i, 100);
                        assert_eq!(client.echo(request(payload.clone())).blocking().unwrap().payload, payload);
                    }
                });
            }
        });
    });
}

fn sizes(bed: &Bed) {
    let (service, _) = Service::new(Way::Inline);
    let server = bed.serve(Server::builder().service(EchoServer::new(service)));
    check_sizes(&EchoClient::new(bed.channel(&server).connect_lazy().unwrap()));
}

fn failures(bed: &Bed) {
    everywhere(bed, |client, server| {
        let panicked = server.stats().panicked;
        check_failures(client);
        assert_eq!(server.stats().panicked, panicked + 1);
    });
}
