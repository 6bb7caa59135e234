//! Calls an `echo_server`: `echo_client ucx://127.0.0.1:7000 some words`.

use ucrpc::Channel;

ucrpc::rpc::include_proto!("ucrpc.example");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "auto://127.0.0.1:7000".to_owned());
    let words: Vec<String> = arguments.collect();
    let payload = if words.is_empty() { "hello".to_owned() } else { words.join(" ") };
    let client = echo_client::EchoClient::new(Channel::builder(&address).connect_lazy()?);
    let response = client.echo(EchoRequest { payload: payload.into(), ..EchoRequest::default() }).blocking()?;
    let stats = response.stats();
    println!("{:?} over {} in {:?}", response.payload, stats.transport, stats.latency);
    Ok(())
}
