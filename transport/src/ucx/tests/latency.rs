//! A pinned, busy ping-pong between two processes, and the same by `ucx_perftest`, which is UCX without us.
//!
//! `cargo test --release -p ucrpc-transport --lib ucx::tests::latency -- --ignored --nocapture`

use ucx_sys as sys;

use super::*;

const SIZE: usize = 64;
const ROUNDS: usize = 30_000;
const WARM_UP: usize = 3000;

/// Prints the ratio for tcp and both kinds of shared memory. It measures, so it asserts only that it ran.
#[test]
#[ignore = "needs two quiet cores and ucx_perftest: a measurement"]
fn against_ucx_perftest() {
    for tls in ["posix", "sysv", "tcp"] {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..3 {
            let out = run("latency", tls);
            let line = out.lines().find_map(|line| line.split_once("HALF_RTT_NS ")).expect("measured").1;
            ours.push(line.trim().parse::<f64>().expect("a number"));
            theirs.push(perftest(tls));
        }
        // Other work on the machine only ever adds.
        let (ours, theirs) = (ours.into_iter().fold(f64::MAX, f64::min), theirs.into_iter().fold(f64::MAX, f64::min));
        println!("{tls}: {SIZE} B half round trip {ours:.0} ns, ucx_perftest {theirs:.0} ns, {:.2}x", ours / theirs);
        assert!(ours > 0.0 && theirs > 0.0);
    }
}

/// What one message costs above UCX itself: the same pair of workers on one thread, once through the room and once with
/// bare calls and a handler that counts.
#[test]
#[ignore = "needs an optimised build: a measurement"]
fn overhead_per_message() {
    for tls in ["posix", "sysv"] {
        let out = run("overhead", tls);
        println!("{tls}: {}", out.lines().find_map(|line| line.split_once("NS ")).expect("measured").1);
    }
}

pub(super) fn overhead() {
    const BATCH: usize = 1000;
    let mut pair = Pair::proven();
    pair.group.spin(1000);
    let (header, body) = ([1_u8; 16], [2_u8; SIZE - 16]);
    let mut best = [f64::MAX; 2];
    for _ in 0..300 {
        let started = Instant::now();
        for _ in 0..BATCH {
            let sent = pair.group.workers[0].send_copy(pair.ab, &header, [&body, b""], 0).expect("sends");
            assert_eq!(sent, Sent::Done);
            pair.group.workers[1].progress();
            let event = pair.group.workers[1].poll_event();
            assert!(matches!(event, Some(Event::Message { .. })));
        }
        best[0] = best[0].min(started.elapsed().as_nanos() as f64 / BATCH as f64);
    }
    let (a, b) = (pair.group.workers[0].core(), pair.group.workers[1].core());
    let mut count = 0_usize;
    let param = sys::ucp_am_handler_param_t {
        field_mask: 15,
        id: 0,
        flags: sys::UCP_AM_FLAG_WHOLE_MSG,
        cb: Some(counting),
        arg: (&raw mut count).cast(),
    };
    // SAFETY: the counter lives on this frame, as long as messages are progressed.
    unsafe { b.ucx.ucp_worker_set_am_recv_handler(b.handle, &param) };
    let ep = a.endpoints.borrow().target(pair.ab).expect("open").ep;
    // SAFETY: zero is valid, as in the room.
    let mut param: sys::ucp_request_param_t = unsafe { std::mem::zeroed() };
    param.op_attr_mask = sys::UCP_OP_ATTR_FIELD_FLAGS | sys::UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    param.flags = sys::UCP_AM_SEND_FLAG_EAGER;
    for _ in 0..300 {
        let started = Instant::now();
        for _ in 0..BATCH {
            // SAFETY: as in the room; the message is small enough to complete at once, which is asserted.
            unsafe {
                let sent = a.ucx.ucp_am_send_nbx(
                    ep,
                    0,
                    header.as_ptr().cast(),
                    header.len(),
                    body.as_ptr().cast(),
                    body.len(),
                    &param,
                );
                assert!(sent.is_null());
                b.ucx.ucp_worker_progress(b.handle);
            }
        }
        best[1] = best[1].min(started.elapsed().as_nanos() as f64 / BATCH as f64);
    }
    // SAFETY: the handler writes it only inside progress.
    assert_eq!(unsafe { (&raw const count).read_volatile() }, 300 * BATCH);
    println!("NS {:.0} through the room, {:.0} bare, {:.0} more", best[0], best[1], best[0] - best[1]);
    // The pair's handler is not ours any more: leave without a proper end.
    std::mem::forget(pair);
}

unsafe extern "C" fn counting(
    arg: *mut std::ffi::c_void,
    _header: *const std::ffi::c_void,
    _header_length: usize,
    _data: *mut std::ffi::c_void,
    _length: usize,
    _param: *const sys::ucp_am_recv_param_t,
) -> sys::ucs_status_t {
    // SAFETY: points to the counter above.
    unsafe { *arg.cast::<usize>() += 1 };
    sys::ucs_status_t::UCS_OK
}

/// Half round trip of `ucx_perftest -t ucp_am_lat`, ns (the typical one).
fn perftest(tls: &str) -> f64 {
    let port = 20_000 + std::process::id() % 20_000;
    let start = |core: usize, host: &[&str]| {
        let (core, port, size, rounds) = (core.to_string(), port.to_string(), SIZE.to_string(), ROUNDS.to_string());
        let args = ["-t", "ucp_am_lat", "-c", &core, "-p", &port, "-s", &size, "-n", &rounds, "-w", "3000"];
        let mut command = Command::new("ucx_perftest");
        command.args(host).args(args).env("UCX_TLS", tls).env("UCX_WARN_UNUSED_ENV_VARS", "n");
        // The same settings as ours, but it has no peer failure handling, which shared memory does not need then.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("ucx_perftest starts")
    };
    let mut server = start(0, &[]);
    std::thread::sleep(Duration::from_millis(300));
    let client = start(1, &["127.0.0.1"]).wait_with_output().expect("our child");
    server.wait().expect("our child");
    let text = String::from_utf8_lossy(&client.stdout);
    let last = text.lines().rev().find(|line| line.starts_with("Final:")).expect("a result").to_owned();
    // Final: iterations, then the typical latency in us.
    last.split_whitespace().nth(2).expect("columns").parse::<f64>().expect("a number") * 1000.0
}

fn pin(core: usize) {
    // SAFETY: a zeroed set is valid, and it is written and read in place.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(result, 0, "two cores are needed");
}

pub(super) fn echo() {
    pin(1);
    let mut worker = Worker::new().expect("UCX");
    println!("ADDRESS {}", hex(worker.address()));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("text");
    let ep = worker.connect(&unhex(line.trim())).expect("connects");
    let mut left = ROUNDS + WARM_UP;
    while left > 0 {
        worker.progress();
        while let Some(event) = worker.poll_event() {
            if let Event::Message { header, data, .. } = event {
                let _ = worker.send_copy(ep, &header, [&data, b""], 0).expect("sends");
                left -= 1;
            }
        }
    }
    // The last answer may be queued.
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        worker.progress();
    }
}

pub(super) fn ping() {
    pin(0);
    let mut worker = Worker::new().expect("UCX");
    let mut peer = Peer::start("echo");
    let address = unhex(&peer.hear("ADDRESS "));
    peer.say(&hex(worker.address()));
    let ep = worker.connect(&address).expect("connects");
    let (header, body) = ([1_u8; 16], [2_u8; SIZE - 16]);
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + WARM_UP {
        let started = Instant::now();
        let _ = worker.send_copy(ep, &header, [&body, b""], 0).expect("sends");
        let mut answered = false;
        while !answered {
            worker.progress();
            while let Some(event) = worker.poll_event() {
                answered |= matches!(event, Event::Message { .. });
            }
        }
        if round >= WARM_UP {
            times.push(started.elapsed().as_nanos() as f64 / 2.0);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("lanes {}; p99 {:.0} ns", worker.endpoint_info(ep), times[ROUNDS * 99 / 100]);
    println!("HALF_RTT_NS {:.0}", times[ROUNDS / 2]);
    peer.child.wait().expect("our child");
    worker.close(ep);
}
