//! The rounds: all pairs of processes, and what is measured on them in turn.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Setup,
    child::Worker,
    control::{Answer, Ask, Kind},
    perftest::Perftest,
    ways::{Control, Way},
};
use crate::{
    out::Progress,
    perf::{Load, Mode, Point, Wait},
    units,
};

/// From this size on RPC carries the bytes as an attachment.
const ATTACH_FROM: usize = 64 << 10;
/// Calls under way at once where throughput of RPC is measured.
const DEPTH: usize = 64;
/// And of large ones: more would only measure the caches.
const DEPTH_LARGE: usize = 8;

/// Slices of ours and of its control in a round, where both are there all the time.
const ALTERNATIONS: usize = 3;

/// What is measured of a transport at a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Round trip of a frame, p50, us; below RPC.
    PingPong,
    /// Unary call, one at a time, p50, us.
    Rpc,
    /// Frames one way, MB/s; below RPC.
    OneWay,
    /// Calls per second, many at a time.
    RpcRate,
}

impl Figure {
    pub(super) const ALL: [Self; 4] = [Self::PingPong, Self::Rpc, Self::OneWay, Self::RpcRate];

    fn load(self, size: usize, slice: Duration) -> Load {
        let rpc = if size >= ATTACH_FROM { Mode::Attachment } else { Mode::Echo };
        let (mode, depth) = match self {
            Self::PingPong => (Mode::Pingpong, 1),
            Self::Rpc => (rpc, 1),
            Self::OneWay => (Mode::Send, 1),
            Self::RpcRate => (rpc, if size >= ATTACH_FROM { DEPTH_LARGE } else { DEPTH }),
        };
        Load { mode, size, depth, time: slice, warmup: slice / 4, rate: None }
    }

    fn of(self, point: &Point) -> Option<f64> {
        match self {
            Self::PingPong | Self::Rpc => point.p50_us,
            Self::OneWay => Some(point.mb_s),
            Self::RpcRate => Some(point.calls_s),
        }
    }
}

/// What the rounds found for one figure.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples {
    pub(super) ours: Vec<f64>,
    pub(super) control: Vec<f64>,
    /// Of the same round.
    pub(super) ratios: Vec<f64>,
}

/// What was found of one transport.
pub(super) struct WayResult {
    pub(super) name: String,
    /// What its connections say that they run over.
    pub(super) transport: String,
    pub(super) control: String,
    pub(super) samples: BTreeMap<(usize, Figure), Samples>,
    /// In words: why it was not measured, or not to the end.
    pub(super) notes: Vec<String>,
    /// It worked at first, or should have: a failure, not a property of the machine.
    pub(super) is_broken: bool,
}

/// What was found.
pub(super) struct Results {
    pub(super) sizes: Vec<usize>,
    pub(super) ways: Vec<WayResult>,
    /// Ping-pong of two threads on shared memory, p50, us.
    pub(super) shared_memory: BTreeMap<usize, Vec<f64>>,
    pub(super) notes: Vec<String>,
}

/// A server and a client over one transport.
struct Pair {
    client: Worker,
    _server: Worker,
}

/// A comparison under way.
pub(super) struct Rounds {
    setup: Setup,
    sizes: Vec<usize>,
    ways: Vec<(Way, Option<Pair>)>,
    results: Results,
    sockets: BTreeMap<&'static str, Pair>,
    shm: Option<Worker>,
    perftest: Option<Perftest>,
    ucx_version: Option<String>,
}

impl Rounds {
    /// Starts all processes.
    pub(super) fn start(ways: Vec<Way>, sizes: &[usize], setup: Setup) -> Self {
        let perftest = Perftest::find();
        let mut results =
            Results { sizes: sizes.to_vec(), ways: Vec::new(), shared_memory: BTreeMap::new(), notes: Vec::new() };
        if perftest.is_none() && ways.iter().any(Way::is_ucx) {
            results.notes.push(
                "ucx_perftest is not installed: UCX has no control (Debian: apt-get install ucx-utils)".to_owned(),
            );
        }
        if setup.wait != Wait::Busy {
            results
                .notes
                .push("both sides share one CPU and sleep: round trips include a switch between processes".to_owned());
        }
        let mut rounds = Self {
            setup,
            sizes: sizes.to_vec(),
            ways: Vec::new(),
            results,
            sockets: BTreeMap::new(),
            shm: None,
            perftest,
            ucx_version: None,
        };
        rounds.start_controls(&ways);
        for way in ways {
            rounds.start_way(way);
        }
        rounds
    }

    /// The UCX that the clients loaded.
    pub(super) fn ucx_version(&self) -> Option<String> {
        self.ucx_version.clone()
    }

    fn start_controls(&mut self, ways: &[Way]) {
        let (server, client) = (self.setup.server_cpu.to_string(), self.setup.client_cpu.to_string());
        match Worker::start(&["perf", "control", "shm", "client", "--pin", &client, "--peer-pin", &server], &[]) {
            Ok(worker) => self.shm = Some(worker),
            Err(error) => self.say_once(format!("shared memory: no control: {error}")),
        }
        for (control, kind) in [(Control::Tcp, Kind::Tcp), (Control::Unix, Kind::Unix)] {
            if !ways.iter().any(|way| way.control == control) {
                continue;
            }
            let name = kind.name();
            let start = || {
                let mut server = Worker::start(&["perf", "control", name, "server", "--pin", &server], &[])?;
                let address = server.line(Duration::ZERO)?;
                let client = ["perf", "control", name, "client", "--pin", &client, "--addr", &address];
                Ok::<_, String>(Pair { client: Worker::start(&client, &[])?, _server: server })
            };
            match start() {
                Ok(pair) => drop(self.sockets.insert(name, pair)),
                Err(error) => self.say_once(format!("{name}: no control: {error}")),
            }
        }
    }

    fn say_once(&mut self, note: String) {
        if !self.results.notes.contains(&note) {
            self.results.notes.push(note);
        }
    }

    fn start_way(&mut self, way: Way) {
        let control = match way.control {
            Control::Tcp => "a bare TCP socket, spinning".to_owned(),
            Control::Unix => "a bare Unix socket, spinning".to_owned(),
            Control::Perftest if self.perftest.is_none() => "none".to_owned(),
            Control::Perftest => {
                let env: Vec<String> = way.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
                format!("ucx_perftest -e ucp_am_lat and ucp_am_bw, {}", env.join(" "))
            }
        };
        let mut result = WayResult {
            name: way.name.clone(),
            transport: String::new(),
            control,
            samples: BTreeMap::new(),
            notes: Vec::new(),
            is_broken: false,
        };
        let pair = match self.connect(&way) {
            Ok((pair, transport, reason, ucx)) => {
                self.ucx_version = self.ucx_version.take().or(ucx);
                let mismatch = way.mismatch(&transport, reason.as_deref());
                result.transport = transport;
                match mismatch {
                    // Its figures would be those of another transport under this one's name.
                    Some(text) => {
                        result.notes.push(format!("{}: not measured: {text}", way.name));
                        None
                    }
                    None => {
                        if let Some(caveat) = &way.caveat {
                            self.say_once(caveat.clone());
                        }
                        Some(pair)
                    }
                }
            }
            Err(error) => {
                result.is_broken = true;
                result.notes.push(format!("{}: not measured: {error}", way.name));
                None
            }
        };
        self.results.ways.push(result);
        self.ways.push((way, pair));
    }

    fn connect(&self, way: &Way) -> Result<(Pair, String, Option<String>, Option<String>), String> {
        let (server, client) = (self.setup.server_cpu.to_string(), self.setup.client_cpu.to_string());
        let args = ["perf", "server", "--child", "--wait", "event", "--listen", &way.listen, "--pin", &server];
        let mut server = Worker::start(&args, &way.env)?;
        let line = server.line(Duration::ZERO)?;
        let address = line.strip_prefix("listening ").ok_or_else(|| format!("the server says {line:?}"))?;
        let args = ["perf", "client", "--child", "--wait", "event", "--addr", address, "--pin", &client];
        let mut client = Worker::start(&args, &way.env)?;
        let line = client.line(Duration::ZERO)?;
        let (transport, reason, ucx): (String, Option<String>, Option<String>) =
            serde_json::from_str(&line).map_err(|e| format!("the client says {line:?}: {e}"))?;
        Ok((Pair { client, _server: server }, transport, reason, ucx))
    }

    /// Ends all processes and starts them again: where a process's memory lies makes a difference that stays for its life, and
    /// only other processes average it out.
    fn start_again(&mut self) {
        self.shm = None;
        self.sockets.clear();
        let ways: Vec<Way> = self.ways.iter().map(|(way, _)| way.clone()).collect();
        self.start_controls(&ways);
        for (at, way) in ways.iter().enumerate() {
            if self.ways[at].1.take().is_none() {
                continue;
            }
            let error = match self.connect(way) {
                Ok((pair, transport, reason, _)) => match way.mismatch(&transport, reason.as_deref()) {
                    None => {
                        self.ways[at].1 = Some(pair);
                        continue;
                    }
                    Some(text) => text,
                },
                Err(error) => error,
            };
            let result = &mut self.results.ways[at];
            result.is_broken = true;
            result.notes.push(format!("{}: not measured to the end: {error}", way.name));
        }
    }

    /// Measures `count` rounds. Within one, ours and its control take turns in going first.
    pub(super) fn measure(&mut self, count: usize) {
        let steps = count * self.sizes.len() * (self.ways.len() + 1);
        let progress = Progress::steps(steps as u64, "");
        for round in 0..count {
            if round > 0 {
                progress.say(format!("round {} of {count}, starting", round + 1));
                self.start_again();
            }
            for size in self.sizes.clone() {
                progress.step(format!("round {} of {count}, {}, shared memory", round + 1, units::size_name(size)));
                self.measure_shm(size);
                for at in 0..self.ways.len() {
                    let name = &self.ways[at].0.name;
                    progress.step(format!("round {} of {count}, {}, {name}", round + 1, units::size_name(size)));
                    self.measure_way(at, size, round % 2 == 0);
                }
            }
        }
    }

    fn measure_shm(&mut self, size: usize) {
        let Some(shm) = &mut self.shm else { return };
        let ask = Ask { one_way: false, size, time: self.setup.slice, spin: true };
        match shm.ask::<Answer>(&ask, self.setup.slice) {
            Ok(answer) => self.results.shared_memory.entry(size).or_default().extend(answer.p50_us),
            Err(error) => {
                self.results.notes.push(format!("shared memory: the control ended: {error}"));
                self.shm = None;
            }
        }
    }

    fn measure_way(&mut self, at: usize, size: usize, ours_first: bool) {
        for figure in Figure::ALL {
            match figure {
                Figure::PingPong | Figure::OneWay if self.ways[at].0.control == Control::Perftest => {
                    self.around_control(at, size, figure);
                }
                Figure::PingPong | Figure::OneWay => self.alternate(at, size, figure, ours_first),
                // Calls one at a time are compared with the bare round trips of the same round.
                Figure::Rpc => {
                    for _ in 0..2 {
                        let ours = self.ours(at, size, figure, self.setup.slice / 2);
                        let samples = &self.results.ways[at].samples;
                        let bare = samples.get(&(size, Figure::PingPong)).and_then(|samples| samples.control.last());
                        let bare = bare.copied();
                        self.note(at, size, figure, ours, bare.map(|bare| (bare, false)));
                    }
                }
                Figure::RpcRate => {
                    let ours = self.ours(at, size, figure, self.setup.slice);
                    self.note(at, size, figure, ours, None);
                }
            }
        }
    }

    /// Short slices of ours and of a control that is quick to start, in turns.
    fn alternate(&mut self, at: usize, size: usize, figure: Figure, ours_first: bool) {
        let slice = self.setup.slice / 2;
        for turn in 0..ALTERNATIONS {
            if self.ways[at].1.is_none() {
                return;
            }
            let before = if ours_first == (turn % 2 == 0) { self.ours(at, size, figure, slice) } else { None };
            let control = self.control(at, size, figure == Figure::OneWay, slice);
            let ours = before.or_else(|| self.ours(at, size, figure, slice));
            self.note(at, size, figure, ours, control.map(|control| (control, true)));
        }
    }

    /// `ucx_perftest` takes longer to start than to measure: ours before and after it, so that a drift cancels out.
    fn around_control(&mut self, at: usize, size: usize, figure: Figure) {
        let slice = self.setup.slice / 2;
        let Some(before) = self.ours(at, size, figure, slice) else { return };
        let control = self.control(at, size, figure == Figure::OneWay, self.setup.slice);
        let Some(after) = self.ours(at, size, figure, slice) else { return };
        let ours = Some((before + after) / 2.0);
        self.note(at, size, figure, ours, control.map(|control| (control, true)));
    }

    /// Keeps samples; of the control's, whether it is one of this figure.
    fn note(&mut self, at: usize, size: usize, figure: Figure, ours: Option<f64>, control: Option<(f64, bool)>) {
        let Some(ours) = ours else { return };
        let samples = self.results.ways[at].samples.entry((size, figure)).or_default();
        samples.ours.push(ours);
        if let Some((control, is_new)) = control {
            samples.ratios.push(ours / control);
            if is_new {
                samples.control.push(control);
            }
        }
    }

    fn ours(&mut self, at: usize, size: usize, figure: Figure, slice: Duration) -> Option<f64> {
        let (way, pair) = &mut self.ways[at];
        let client = &mut pair.as_mut()?.client;
        let load = figure.load(size, slice);
        let result = client.ask::<Point>(&(load, self.setup.wait), slice * 2);
        match result {
            Ok(point) if point.errors > 0 => {
                let last = point.last_error.as_deref().unwrap_or_default();
                let result = &mut self.results.ways[at];
                result.is_broken = true;
                result.notes.push(format!("{}: {} calls failed: {last}", way.name, point.errors));
                None
            }
            Ok(point) => figure.of(&point),
            Err(error) => {
                let result = &mut self.results.ways[at];
                result.is_broken = true;
                let what = format!("{figure:?} of {}", units::size_name(size));
                result.notes.push(format!("{}: ended during {what}: {error}", way.name));
                *pair = None;
                None
            }
        }
    }

    fn control(&mut self, at: usize, size: usize, one_way: bool, slice: Duration) -> Option<f64> {
        let way = &self.ways[at].0;
        let name = match way.control {
            Control::Tcp => "tcp",
            Control::Unix => "unix",
            Control::Perftest => {
                let answer = self.perftest.as_mut()?.measure(way, one_way, size, &self.setup);
                return match answer {
                    Ok(answer) => {
                        if one_way {
                            answer.mb_s
                        } else {
                            answer.p50_us
                        }
                    }
                    Err(error) => {
                        let note = format!("{}: the control failed: {error}", way.name);
                        self.say_once(note);
                        None
                    }
                };
            }
        };
        let client = &mut self.sockets.get_mut(name)?.client;
        let ask = Ask { one_way, size, time: slice, spin: self.setup.wait == Wait::Busy };
        match client.ask::<Answer>(&ask, slice * 2) {
            Ok(answer) => {
                if one_way {
                    answer.mb_s
                } else {
                    answer.p50_us
                }
            }
            Err(error) => {
                self.results.notes.push(format!("{name}: the control ended: {error}"));
                self.sockets.remove(name);
                None
            }
        }
    }

    /// Ends all processes.
    pub(super) fn finish(self) -> Results {
        self.results
    }
}

/// The values that a quarter of them is below and above.
pub(super) fn quartiles(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = |quarter: usize| sorted[(last * quarter + 2) / 4];
    Some((at(1), at(3)))
}

/// The middle one.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some((sorted[low] + sorted[high]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::{median, quartiles};

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(quartiles(&[5.0, 1.0, 2.0, 4.0, 3.0]), Some((2.0, 4.0)));
        assert_eq!((quartiles(&[1.0]), quartiles(&[])), (Some((1.0, 1.0)), None));
    }
}
