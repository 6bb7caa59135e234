//! What a comparison says: a table, lines of JSON, a picture.

use std::path::Path;

use serde::Serialize;

use super::{
    machine::Machine,
    rounds::{Figure, Results, Samples, WayResult, median, quartiles},
};
use crate::{
    Done, out,
    perf::json as to_json,
    plot::{Panel, Series, draw as draw_panels},
    units::{number, rate_name, size_name},
};

/// From this load on the machine is not quiet.
const BUSY_MACHINE: f64 = 0.7;

/// The lines above the table.
pub(super) fn head(machine: &Machine) -> Done {
    let ucx = machine.ucx.as_deref().unwrap_or("none that works");
    let tools = machine.ucx_perftest.as_deref().unwrap_or("not installed");
    out::line(&format!("machine  {}, {} cores, Linux {}", machine.cpu, machine.cores, machine.kernel))?;
    out::line(&format!("ucrpc    {} ({}); ucx {ucx}; ucx_perftest {tools}", machine.version, machine.commit))?;
    out::line(&format!("command  {}", machine.command))?;
    out::line(&format!(
        "setup    server on CPU {}, client on CPU {}, waiting {}, {}; {} rounds of {} ms slices",
        machine.server_cpu, machine.client_cpu, machine.wait, machine.scheduling, machine.rounds, machine.slice_ms
    ))?;
    if machine.load_average > BUSY_MACHINE {
        eprintln!("note: the load average is {}: others use this machine, expect noise", machine.load_average);
    }
    Ok(())
}

/// The table, and what has to be said in words.
pub(super) fn table(results: &Results) -> Done {
    let head = [
        "transport",
        "size",
        "ping-pong us",
        "control us",
        "ratio",
        "rpc us",
        "ratio",
        "one-way MB/s",
        "control MB/s",
        "ratio",
        "rpc calls/s",
    ];
    let mut rows = Vec::new();
    for (size, latencies) in &results.shared_memory {
        let mut row = vec!["shared memory, two threads".to_owned(), size_name(*size), "-".to_owned()];
        row.push(median(latencies).map_or_else(|| "-".to_owned(), number));
        row.resize(head.len(), "-".to_owned());
        rows.push(row);
    }
    for way in &results.ways {
        if way.samples.is_empty() {
            let mut row = vec![way.name.clone(), "not measured".to_owned()];
            row.resize(head.len(), "-".to_owned());
            rows.push(row);
        }
        for size in results.sizes.iter().filter(|size| way.samples.contains_key(&(**size, Figure::PingPong))) {
            rows.push(row(way, *size));
        }
    }
    out::line("")?;
    out::line(out::table(&head, &rows, 2).trim_end())?;
    out::line("")?;
    for way in results.ways.iter().filter(|way| !way.samples.is_empty()) {
        out::line(&format!("{}: runs over {}; control: {}", way.name, way.transport, way.control))?;
    }
    for note in notes(results) {
        out::line(&format!("note: {note}"))?;
    }
    Ok(())
}

fn row(way: &WayResult, size: usize) -> Vec<String> {
    let none = Samples::default();
    let of = |figure| way.samples.get(&(size, figure)).unwrap_or(&none);
    let cell = |values: &[f64]| median(values).map_or_else(|| "-".to_owned(), number);
    let ratio = |values: &[f64]| median(values).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let (ping, rpc, send, rate) = (of(Figure::PingPong), of(Figure::Rpc), of(Figure::OneWay), of(Figure::RpcRate));
    vec![
        way.name.clone(),
        size_name(size),
        cell(&ping.ours),
        cell(&ping.control),
        ratio(&ping.ratios),
        cell(&rpc.ours),
        ratio(&rpc.ratios),
        cell(&send.ours),
        cell(&send.control),
        ratio(&send.ratios),
        median(&rate.ours).map_or_else(|| "-".to_owned(), rate_name),
    ]
}

fn notes(results: &Results) -> impl Iterator<Item = &String> {
    results.ways.iter().flat_map(|way| &way.notes).chain(&results.notes)
}

/// A line for a transport and size.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    name: &'a str,
    transport: &'a str,
    control: &'a str,
    size: usize,
    samples: usize,
    pingpong_p50_us: Option<f64>,
    control_p50_us: Option<f64>,
    pingpong_ratio: Option<f64>,
    pingpong_ratio_quartiles: Option<(f64, f64)>,
    rpc_p50_us: Option<f64>,
    /// To the same control.
    rpc_ratio: Option<f64>,
    one_way_mb_s: Option<f64>,
    control_mb_s: Option<f64>,
    one_way_ratio: Option<f64>,
    one_way_ratio_quartiles: Option<(f64, f64)>,
    rpc_calls_s: Option<f64>,
    rpc_mb_s: Option<f64>,
}

/// The first line: the machine.
pub(super) fn json_head(machine: &Machine) -> Done {
    #[derive(Serialize)]
    struct Head<'a> {
        kind: &'static str,
        #[serde(flatten)]
        machine: &'a Machine,
    }
    Ok(out::line(&to_json(&Head { kind: "machine", machine })?)?)
}

/// A line for each transport and size, and one for each note.
pub(super) fn json(results: &Results) -> Done {
    for way in &results.ways {
        for size in results.sizes.iter().filter(|size| way.samples.contains_key(&(**size, Figure::PingPong))) {
            out::line(&to_json(&line(way, *size))?)?;
        }
    }
    for (size, latencies) in &results.shared_memory {
        let line = serde_json::json!({
            "kind": "control", "name": "shared memory, two threads", "size": size, "pingpong_p50_us": median(latencies)
        });
        out::line(&line.to_string())?;
    }
    for note in notes(results) {
        out::line(&serde_json::json!({ "kind": "note", "text": note }).to_string())?;
    }
    Ok(())
}

fn line(way: &WayResult, size: usize) -> Line<'_> {
    let none = Samples::default();
    let of = |figure| way.samples.get(&(size, figure)).unwrap_or(&none).clone();
    let (ping, rpc, send, rate) = (of(Figure::PingPong), of(Figure::Rpc), of(Figure::OneWay), of(Figure::RpcRate));
    let calls = median(&rate.ours);
    Line {
        kind: "point",
        name: &way.name,
        transport: &way.transport,
        control: &way.control,
        size,
        samples: ping.ours.len(),
        pingpong_p50_us: median(&ping.ours),
        control_p50_us: median(&ping.control),
        pingpong_ratio: median(&ping.ratios),
        pingpong_ratio_quartiles: quartiles(&ping.ratios),
        rpc_p50_us: median(&rpc.ours),
        rpc_ratio: median(&rpc.ratios),
        one_way_mb_s: median(&send.ours),
        control_mb_s: median(&send.control),
        one_way_ratio: median(&send.ratios),
        one_way_ratio_quartiles: quartiles(&send.ratios),
        rpc_calls_s: calls,
        rpc_mb_s: calls.map(|calls| calls * size as f64 / 1e6),
    }
}

/// Latency on the left, throughput on the right; controls dashed in the colour of what they belong to.
pub(super) fn draw(file: &Path, machine: &Machine, results: &Results) -> Done {
    let mut latency = Panel::new("Round trip, one at a time (p50)", "us");
    let mut throughput = Panel::new("One way, as fast as it goes", "MB/s");
    let over_sizes = |way: &WayResult, figure: Figure, control: bool| -> Vec<(f64, f64)> {
        let of = |size: &usize| {
            let samples = way.samples.get(&(*size, figure))?;
            Some((*size as f64, median(if control { &samples.control } else { &samples.ours })?))
        };
        let mut points: Vec<(f64, f64)> = results.sizes.iter().filter_map(of).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    for (colour, way) in results.ways.iter().enumerate() {
        let control = if way.control.starts_with("ucx_perftest") { "ucx_perftest" } else { "bare socket" };
        let add = |panel: &mut Panel, figure, is_control, name: String| {
            let points = over_sizes(way, figure, is_control);
            if !points.is_empty() {
                panel.series.push(Series { name, colour, dashed: is_control, points });
            }
        };
        add(&mut latency, Figure::PingPong, false, way.name.clone());
        add(&mut latency, Figure::PingPong, true, format!("{}: {control}", way.name));
        add(&mut throughput, Figure::OneWay, false, way.name.clone());
        add(&mut throughput, Figure::OneWay, true, format!("{}: {control}", way.name));
    }
    let floor: Vec<(f64, f64)> =
        results.shared_memory.iter().filter_map(|(size, latencies)| Some((*size as f64, median(latencies)?))).collect();
    if !floor.is_empty() {
        let name = "shared memory, two threads".to_owned();
        latency.series.push(Series { name, colour: results.ways.len(), dashed: true, points: floor });
    }
    draw_panels(file, "ucrpc perf compare: messages of the transport", &machine.in_short(), &[latency, throughput])
}
