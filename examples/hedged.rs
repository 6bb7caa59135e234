//! Two replicas, one of them slow: a second request after 5 ms hides it.

#[path = "util/echo.rs"]
mod echo;

use std::time::{Duration, Instant};

use ucrpc::rpc::channel::BudgetConfig;
use ucrpc::{Channel, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let serve = |ms| {
        let service = echo::echo_server::EchoServer::new(echo::Echo { delay: Duration::from_millis(ms) });
        Server::builder().service(service).listen("tcp://127.0.0.1:0").start()
    };
    let (fast, slow) = (serve(0)?, serve(100)?);
    for hedged in [false, true] {
        let mut builder = Channel::builder(fast.address()).address(slow.address());
        // Every other call meets the slow one; by default a fifth of the calls may be hedged.
        builder = builder.budget(BudgetConfig { per_call: 1.0, burst: 100 });
        if hedged {
            builder = builder.hedge_after(Duration::from_millis(5));
        }
        let channel = builder.connect_lazy()?;
        let client = echo::echo_client::EchoClient::new(channel.clone());
        let mut times = Vec::new();
        for _ in 0..100 {
            let start = Instant::now();
            client.echo(echo::EchoRequest::default()).blocking()?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("hedged {hedged}: p50 {:?}, p99 {:?}, {} hedges", times[50], times[98], channel.stats().hedges);
    }
    Ok(())
}
