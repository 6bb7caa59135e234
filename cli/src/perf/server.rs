//! `ucrpc perf server`.

use std::io::Read;

use ucrpc::{
    Address, Dispatcher, DispatcherConfig, Dispatchers,
    rpc::server::ServeError,
    transport::{ListenConfig, Listener, Placement},
};

use super::{
    Wait, address, dispatcher,
    service::{PerfServer, Service, all},
    session::raw_address,
    wire,
};
use crate::{
    Done,
    exit::{Exit, Failure},
    out, process,
};

pub(crate) const HELP: &str = "\
Examples:
  ucrpc perf server                                     # RPC and the transport's own benchmark, UCX where clients ask for it
  ucrpc perf server --listen unix:///tmp/perf.sock --wait busy --pin 2
  UCX_TLS=rc,ud UCX_NET_DEVICES=mlx5_0:1 ucrpc perf server --listen ucx://0.0.0.0:7471

The first line on stdout is `listening ADDRESS`. One port serves tcp://, ucx:// and auto:// clients; the benchmarks
below RPC (--mode pingpong and send) have another one, which clients ask for.";

/// Arguments of `perf server`.
#[derive(clap::Args)]
pub(crate) struct Server {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "auto://127.0.0.1:7471", value_parser = address)]
    listen: Address,
    /// Where to listen for the benchmarks below RPC; by default a port that the system chooses, or the path with .raw
    #[arg(long, value_name = "ADDR", value_parser = address)]
    raw_listen: Option<Address>,
    /// How it waits
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
    /// The CPU to pin it to; with several threads the first of theirs
    #[arg(long, value_name = "CPU")]
    pin: Option<usize>,
    /// Threads; connections are spread over them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Ends with its standard input, and lets clients choose how it waits
    #[arg(long, hide = true)]
    child: bool,
}

/// Serves until the process is ended.
pub(crate) fn run(args: &Server) -> Done {
    process::raise_files();
    if args.child {
        end_with_stdin();
    }
    if args.threads > 1 {
        let config = DispatcherConfig { wait: args.wait.policy(), pin: args.pin, ..DispatcherConfig::default() };
        let set = Dispatchers::spawn(args.threads.into(), &config, Placement::RoundRobin)?;
        let raw = set.listen(&raw_listen(args)?, ListenConfig::default()).map_err(cannot_listen)?;
        let service = service(args, all(&set), &raw);
        let server = ucrpc::Server::builder().service(service).on(set.clone()).listen(args.listen.clone()).start();
        let server = server.map_err(|error| cannot_serve(&error, &args.listen))?;
        set.all()[0].spawn_task(move || wire::serve(raw));
        announce(server.address())?;
        loop {
            std::thread::park();
        }
    }
    let local = dispatcher(args.wait, args.pin)?;
    local.block_on(async {
        let handle: Dispatcher = local.handle().clone();
        let raw = handle.listen(&raw_listen(args)?, ListenConfig::default()).map_err(cannot_listen)?;
        let service = service(args, vec![handle.clone()], &raw);
        let server = ucrpc::Server::builder().service(service).on(&handle).listen(args.listen.clone()).start();
        let server = server.map_err(|error| cannot_serve(&error, &args.listen))?;
        ucrpc::transport::spawn_local(wire::serve(raw))?;
        announce(server.address())?;
        server.stopped().await;
        Ok(())
    })
}

fn service(args: &Server, dispatchers: Vec<Dispatcher>, raw: &Listener) -> PerfServer<Service> {
    let raw_port = raw.local_address().host_port().map_or(0, |host_port| host_port.port);
    PerfServer::new(Service { dispatchers, raw_port, obeys: args.child })
}

fn raw_listen(args: &Server) -> Result<Address, Failure> {
    match &args.raw_listen {
        Some(address) => Ok(address.clone()),
        None => raw_address(&args.listen, 0),
    }
}

fn announce(address: &Address) -> Done {
    Ok(out::line(&format!("listening {address}"))?)
}

fn cannot_listen(error: ucrpc::transport::Error) -> Failure {
    let failure = Failure::new(Exit::Unreachable, format!("cannot listen: {error}"));
    failure.hint("port 0 lets the system choose; ss -ltnp shows who has a port")
}

fn cannot_serve(error: &ServeError, address: &Address) -> Failure {
    let failure = Failure::new(Exit::Unreachable, format!("cannot listen on {address}: {error}"));
    failure.hint("port 0 lets the system choose; ss -ltnp shows who has a port")
}

/// Whoever started this process holds the other end; when it is gone, so is this process.
pub(crate) fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
}
