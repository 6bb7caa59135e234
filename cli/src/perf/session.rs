//! A client's side: its channels to a server, and the measurements made on them.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use ucrpc::{
    Address, Channel, Code, Dispatcher,
    rpc::channel::{RetryOn, RetryPolicy},
    transport::{ConnectionInfo, HostPort, spawn_local},
};

use super::{
    Drive, Mode, Schedule, Wait,
    closed::{self, Caller},
    drive,
    point::{About, Point},
    run::{Run, Tally},
    service::{PerfClient, StatsReply, StatsRequest},
    streams::Echoes,
    wire::{self, FILL, Wire},
};
use crate::{
    exit::{Exit, Failure},
    out::Progress,
    process, units,
};

/// One measurement, as it was asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) mode: Mode,
    pub(crate) size: usize,
    pub(crate) depth: usize,
    pub(crate) time: Duration,
    pub(crate) warmup: Duration,
    /// Calls per second; none is a closed loop.
    pub(crate) rate: Option<f64>,
}

/// Open channels to one server.
pub(crate) struct Session {
    dispatcher: Dispatcher,
    address: Address,
    timeout: Duration,
    channels: Vec<Channel>,
    raw_port: u16,
    echoes: Vec<Echoes>,
    pingpongs: Vec<Wire>,
    sends: Vec<Wire>,
}

impl Session {
    /// Connects, and finds out that it is the benchmark's server.
    pub(crate) async fn open(
        dispatcher: &Dispatcher,
        address: &Address,
        conns: usize,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut channels = Vec::with_capacity(conns);
        for _ in 0..conns {
            channels.push(connect(dispatcher, address, timeout).await?);
        }
        let mut session = Self {
            dispatcher: dispatcher.clone(),
            address: address.clone(),
            timeout,
            channels,
            raw_port: 0,
            echoes: Vec::new(),
            pingpongs: Vec::new(),
            sends: Vec::new(),
        };
        session.raw_port = session.stats(None).await?.raw_port as u16;
        Ok(session)
    }

    fn client(&self) -> PerfClient {
        PerfClient::new(self.channels[0].clone())
    }

    /// What the connections run over, and why not over UCX.
    pub(crate) fn transport(&self) -> (String, Option<String>) {
        let infos: Vec<ConnectionInfo> = self.channels.iter().flat_map(Channel::connection_infos).collect();
        let mut names: Vec<String> = infos.iter().map(|info| info.transport.to_string()).collect();
        names.sort();
        names.dedup();
        let reason = infos.iter().find_map(|info| info.fallback_reason.as_ref());
        (names.join(", "), reason.map(ToString::to_string))
    }

    /// What the server has used; and how it is to wait from now on, if it lets others choose.
    pub(crate) async fn stats(&self, wait: Option<Wait>) -> Result<StatsReply, Failure> {
        let request = StatsRequest { wait: wait.map(Wait::name).unwrap_or_default().to_owned() };
        let reply = self.client().stats(request).timeout(self.timeout).await;
        let reply = reply.map_err(|status| match status.code() {
            Code::ENOSERVICE | Code::ENOMETHOD => {
                let text = format!("{} is no `ucrpc perf server`: {status}", self.address);
                Failure::new(Exit::Unreachable, text).hint("ucrpc press measures any service")
            }
            _ => Failure::from(status).while_doing("the server's statistics"),
        });
        Ok(reply?.into_message())
    }

    /// Measures, after a warm-up that is not counted.
    pub(crate) async fn measure(&mut self, load: &Load) -> Result<Point, Failure> {
        let what = format!("{} {}", load.mode.name(), units::size_name(load.size));
        if !load.warmup.is_zero() {
            let progress = Progress::over(load.warmup, &format!("{what}, warm-up"));
            self.run(load, load.warmup, progress).await?;
        }
        let before = (process::cpu_time(), self.stats(None).await?);
        let tally = self.run(load, load.time, Progress::over(load.time, &what)).await?;
        let cpu = process::cpu_time() - before.0;
        let server = self.stats(None).await?.cpu_ns.saturating_sub(before.1.cpu_ns);
        let (transport, fallback_reason) = self.carried(load.mode);
        let about = About {
            mode: load.mode,
            size: load.size,
            depth: load.depth,
            conns: self.channels.len(),
            rate: load.rate,
            transport,
            fallback_reason,
        };
        Ok(Point::new(about, &tally, (cpu.as_secs_f64(), server as f64 / 1e9)))
    }

    /// As [`Self::transport`], of the connections that this mode used.
    fn carried(&self, mode: Mode) -> (String, Option<String>) {
        let wires = match mode {
            Mode::Pingpong => &self.pingpongs,
            Mode::Send => &self.sends,
            _ => return self.transport(),
        };
        let Some(connection) = wires.first().map(Wire::connection) else { return self.transport() };
        let transport = connection.transport().map(ToString::to_string).unwrap_or_default();
        (transport, connection.fallback_reason().map(ToString::to_string))
    }

    async fn run(&mut self, load: &Load, time: Duration, progress: Progress) -> Result<Tally, Failure> {
        let payload = Bytes::from(vec![FILL; load.size]);
        match load.mode {
            Mode::Send => return self.send(&payload, time).await,
            Mode::Pingpong => self.open_wires(false).await?,
            Mode::Stream if self.echoes.is_empty() => {
                for channel in &self.channels {
                    self.echoes.push(Echoes::open(&PerfClient::new(channel.clone())).await?);
                }
            }
            _ => {}
        }
        let run = Run::begin(time, progress);
        match (load.mode, load.rate) {
            (Mode::Pingpong, _) => {
                let depth = load.depth;
                let (run, wires) = (run.clone(), std::mem::take(&mut self.pingpongs));
                self.pingpongs = each(wires, move |mut wire| {
                    let (run, payload) = (run.clone(), payload.clone());
                    async move {
                        let result = wire.pingpong(&run, &payload, depth).await;
                        (wire, result)
                    }
                })
                .await?;
            }
            (Mode::Stream, _) => {
                let depth = load.depth;
                let (run, echoes) = (run.clone(), std::mem::take(&mut self.echoes));
                self.echoes = each(echoes, move |mut echoes| {
                    let (run, payload) = (run.clone(), payload.clone());
                    async move {
                        let result = echoes.drive(&run, &payload, depth).await;
                        (echoes, result)
                    }
                })
                .await?;
            }
            (mode, rate) => {
                let caller = |channel: &Channel| {
                    Caller::new(PerfClient::new(channel.clone()), mode, payload.clone(), self.timeout)
                };
                let callers: Vec<Caller> = self.channels.iter().map(caller).collect();
                match rate {
                    None => closed::drive(&run, &callers, load.depth).await?,
                    Some(rate) => {
                        let open = Drive {
                            dispatcher: self.dispatcher.clone(),
                            schedule: Schedule::fixed(Instant::now(), rate, time),
                            limit: load.depth * callers.len(),
                            grace: self.timeout,
                            run: run.clone(),
                        };
                        drive(&open, move |index| {
                            let caller = callers[index as usize % callers.len()].clone();
                            async move { caller.call().await }
                        })
                        .await?;
                    }
                }
            }
        }
        run.finish()
    }

    async fn send(&mut self, payload: &Bytes, time: Duration) -> Result<Tally, Failure> {
        self.open_wires(true).await?;
        let (tell, mut hear) = mpsc::unbounded_channel();
        let payload = payload.clone();
        let wires = std::mem::take(&mut self.sends);
        let start = Instant::now();
        self.sends = each(wires, move |mut wire| {
            let (tell, payload) = (tell.clone(), payload.clone());
            async move {
                let result = wire.send(&payload, time).await;
                let result = result.map(|(sent, _)| tell.send(sent).unwrap_or(()));
                (wire, result)
            }
        })
        .await?;
        let elapsed = start.elapsed();
        let mut sent = 0;
        while let Some(more) = hear.recv().await {
            sent += more;
        }
        Ok(wire::one_way(sent, elapsed))
    }

    async fn open_wires(&mut self, one_way: bool) -> Result<(), Failure> {
        let wires = if one_way { &mut self.sends } else { &mut self.pingpongs };
        if wires.is_empty() {
            let address = raw_address(&self.address, self.raw_port)?.with_override()?;
            for _ in 0..self.channels.len() {
                let wire = Wire::open(&self.dispatcher, &address, one_way).await;
                wires.push(wire.map_err(|e| Failure::from(e).while_doing(format!("connecting to {address}")))?);
            }
        }
        Ok(())
    }

    /// Closes what is below RPC; channels close when they are dropped.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        for wire in self.pingpongs.into_iter().chain(self.sends) {
            wire.close().await?;
        }
        Ok(())
    }
}

/// Runs `work` on each thing at the same time, and gives them back.
async fn each<T, F, Fut>(things: Vec<T>, work: F) -> Result<Vec<T>, Failure>
where
    T: 'static,
    F: Fn(T) -> Fut,
    Fut: Future<Output = (T, Result<(), Failure>)> + 'static,
{
    let (tell, mut hear) = mpsc::unbounded_channel();
    let count = things.len();
    let mut back = Vec::with_capacity(count);
    if count == 1 {
        // Not as a task of its own: one step less on the way.
        for thing in things {
            let (thing, result) = work(thing).await;
            result?;
            back.push(thing);
        }
        return Ok(back);
    }
    for thing in things {
        let (future, tell) = (work(thing), tell.clone());
        spawn_local(async move { drop(tell.send(future.await)) })?;
    }
    while back.len() < count {
        let Some((thing, result)) = hear.recv().await else { break };
        result?;
        back.push(thing);
    }
    Ok(back)
}

/// No call is made twice: each attempt is a measurement.
pub(crate) fn retry_never() -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.on = RetryOn::Never;
    policy
}

/// An open channel.
pub(crate) async fn connect(dispatcher: &Dispatcher, address: &Address, timeout: Duration) -> Result<Channel, Failure> {
    let channel = Channel::builder(address).on(dispatcher).timeout(timeout).retry(retry_never()).connect_lazy()?;
    channel.connected().await.map_err(|status| {
        let failure = Failure::from(status).while_doing(format!("cannot connect to {address}"));
        failure.hint("is `ucrpc perf server` running there? ucrpc doctor says what UCX would need here")
    })?;
    Ok(channel)
}

/// Where the same server serves what is below RPC.
pub(crate) fn raw_address(address: &Address, port: u16) -> Result<Address, Failure> {
    let at = |host_port: &HostPort| HostPort { host: host_port.host.clone(), port };
    match address {
        Address::Auto(host_port) => Ok(Address::Auto(at(host_port))),
        Address::Ucx(host_port) => Ok(Address::Ucx(at(host_port))),
        Address::Tcp(host_port) => Ok(Address::Tcp(at(host_port))),
        Address::UcxCm(host_port) => Ok(Address::UcxCm(at(host_port))),
        Address::Unix(path) => {
            let mut raw = path.clone().into_os_string();
            raw.push(".raw");
            Ok(Address::Unix(PathBuf::from(raw)))
        }
        _ => Err(Failure::usage(format!("{address} does not lead out of this process"))
            .hint("write tcp://, ucx://, auto:// or unix://")),
    }
}
