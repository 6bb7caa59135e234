//! Ping-pong between two processes over any transport: `pingpong server ADDR [CPU]`, `pingpong client ADDR SIZE COUNT [CPU]`.
use std::time::Instant;

use ucrpc::transport::{
    Address, Body, ConnectionConfig, DispatcherConfig, Frame, ListenConfig, LocalDispatcher, WaitPolicy,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let address: Address = args[2].parse()?;
    let pin = args.get(if args[1] == "server" { 3 } else { 5 }).map(|cpu| cpu.parse()).transpose()?;
    let config = DispatcherConfig { wait: WaitPolicy::Busy, pin, ..DispatcherConfig::default() };
    let local = LocalDispatcher::new(config)?;
    let dispatcher = local.handle();
    let connection = ConnectionConfig { max_message: 1 << 30, ..ConnectionConfig::default() };
    local.block_on(async {
        if args[1] == "server" {
            let config = ListenConfig { connection, ..ListenConfig::default() };
            let mut listener = dispatcher.listen(&address, config)?;
            println!("{}", listener.local_address());
            let mut connection = listener.accept().await?;
            while let Ok(frame) = connection.recv().await {
                connection.send(frame)?;
            }
            return Ok(());
        }
        let (size, count): (usize, u32) = (args[3].parse()?, args[4].parse()?);
        let mut connection = dispatcher.connect(&address, connection).await?;
        let payload = bytes::Bytes::from(vec![7_u8; size]);
        let mut times = Vec::with_capacity(count as usize);
        for i in 0..count + count / 10 {
            let start = Instant::now();
            let frame =
                if size <= 4096 { Frame::from(payload.clone()) } else { Frame::new("", Body::Bytes(payload.clone())) };
            connection.send(frame)?;
            connection.recv().await?;
            if i >= count / 10 {
                times.push(start.elapsed());
            }
        }
        times.sort_unstable();
        let at = |p: f64| times[(times.len() as f64 * p) as usize].as_nanos() as f64 / 1000.0;
        println!("{} {size} B: rtt p50 {:.2} us, p99 {:.2} us", connection.transport().unwrap(), at(0.5), at(0.99));
        connection.close().await?;
        Ok(())
    })
}
