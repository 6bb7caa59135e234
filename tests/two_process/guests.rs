//! What only two guests can show: that RDMA goes from one machine to another, and what happens when one of them, or the cable, is lost.
//!
//! The server's end is in the other guest ([`far`]). These trials follow `verbs/`, which run between two guests as well.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use crate::{
    Outcome,
    counters::Counters,
    far,
    process::{Env, Peer, now_us},
    verbs::{
        BACKENDS, PATIENT, SERVER, SOON_GIVEN_UP, Verbs, check_end, connect, finish, on_own, run_far, server,
        start_server,
    },
};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: String, run: Box<dyn Fn() -> Outcome + Send>| trials.push(crate::retry::trial(name, run));
    add("guests/chosen".to_owned(), Box::new(chosen));
    for backend in BACKENDS {
        add(format!("guests/bodies/{}", backend.name), Box::new(move || bodies(backend)));
        add(format!("guests/rpc/{}", backend.name), Box::new(move || rpc(backend)));
        add(format!("guests/doctor/{}", backend.name), Box::new(move || doctor(backend)));
        add(format!("guests/no-device-there/{}", backend.name), Box::new(move || no_device_there(backend)));
        add(format!("guests/server-killed/{}", backend.name), Box::new(move || server_killed(backend)));
        add(format!("guests/unplugged/{}", backend.name), Box::new(move || unplugged(backend)));
    }
    // Nothing can follow it.
    trials.push(Trial::test("guests/powered-off", powered_off));
    trials
}

/// Bodies of a megabyte from here to there: by RDMA read over RC, by sends over UD, as the device here counts.
fn bodies(backend: &Verbs) -> Outcome {
    let (mut server, address) = server(backend, "ucx", "idle");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, _) = connect(backend, &mut client, &mut server, &address, "idle");
    count_bodies(&mut client, &id, backend.name);
    finish(client, server, &id);
    Ok(())
}

/// Sends bodies over a connection, and checks how the device here counts them.
fn count_bodies(client: &mut Peer, id: &str, over: &str) {
    const COUNT: u64 = 16;
    let before = Counters::now();
    client.say(&format!("bodies {id} count={COUNT} size={}", 1 << 20));
    let sent = client.expect_of("sent", id);
    assert_eq!(sent.number("ok"), COUNT, "{sent:?}");
    let counted = Counters::now().since(before);
    println!("\nrdma: between two guests over {over}: {COUNT} bodies of 1 MiB: {counted:?}");
    counted.check_megabytes(COUNT, over != "ucx-ud");
}

/// Neither side is told what to use, as by a user who has changed an address: they come to RC by themselves.
fn chosen() -> Outcome {
    let mut server = start_server(&[]);
    let address = server.listen(&format!("auto://{SERVER}:0 mode=idle {PATIENT}"));
    let mut client = Peer::start("client", &[]);
    let opened = client.connect(&format!("{address} mode=idle {PATIENT}"));
    let accepted = server.expect("accepted");
    println!("nobody was told: {}, {}", opened.get("transport"), accepted.get("transport"));
    for line in [&opened, &accepted] {
        assert!(line.get("transport").contains("rc_verbs/rxe0"), "{line:?}");
        assert_eq!(line.get("reason"), "none", "{line:?}");
    }
    let id = opened.get("id").to_owned();
    count_bodies(&mut client, &id, opened.get("transport"));
    finish(client, server, &id);
    Ok(())
}

/// The command-line tool, beside this program.
fn tool() -> String {
    let me = std::env::current_exe().expect("own path");
    me.with_file_name("ucrpc").to_str().expect("a path of the tests").to_owned()
}

/// A program of the other guest that ends with this.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `ucrpc perf server` there.
fn perf_server(env: Env<'_>) -> (Program, String) {
    let listen = format!("auto://{SERVER}:0");
    let mut command = far::command(&[&tool(), "perf", "server", "--listen", &listen]);
    let mut child =
        command.envs(env.iter().copied()).stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().expect("own path");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let program = Program(child);
    out.read_line(&mut line).expect("its first line");
    let address =
        line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("the server says {line:?}")).to_owned();
    (program, address.split_once("://").expect("a scheme").1.to_owned())
}

/// Runs the tool here; what it prints. It must succeed.
fn use_tool(env: Env<'_>, arguments: &str) -> String {
    let mut command = Command::new(tool());
    command.args(arguments.split(' ')).envs(env.iter().copied());
    let output = command.output().expect("ucrpc beside this program");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ucrpc {arguments}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Calls from one guest to the other, as a user would measure them.
fn rpc(backend: &Verbs) -> Outcome {
    let env = [backend.tls, on_own()];
    let (_server, place) = perf_server(&env);
    let address = format!("auto://{place}");
    for mode in ["echo", "attachment"] {
        let load = format!("--mode {mode} --size 64,1M --seconds 1 --timeout 60 --json");
        let out = use_tool(&env, &format!("perf client --addr {address} {load}"));
        let points: Vec<&str> = out.lines().collect();
        assert_eq!(points.len(), 2, "{out}");
        for point in points {
            println!("{}, {mode}: {point}", backend.name);
            assert!(point.contains(backend.lane), "{point}");
        }
    }
    Ok(())
}

fn doctor(backend: &Verbs) -> Outcome {
    let env = [backend.tls, on_own()];
    let (_server, place) = perf_server(&env);
    let out = use_tool(&env, &format!("doctor --quick --all --peer {place}"));
    let said = out.lines().find(|line| line.contains("the connection to the peer runs over"));
    let said =
        said.filter(|line| line.contains(backend.lane)).unwrap_or_else(|| panic!("no {} in: {out}", backend.lane));
    println!("\nrdma: between two guests over {}: doctor: {}", backend.name, said.trim());
    Ok(())
}

/// The server's machine has no device: TCP, and both sides know why.
fn no_device_there(backend: &Verbs) -> Outcome {
    let mut server = start_server(&[backend.tls, ("UCX_NET_DEVICES", "rxe9:1")]);
    let address = server.listen(&format!("auto://{SERVER}:0 mode=echo {PATIENT}"));
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let opened = client.connect(&format!("{address} mode=ping {SOON_GIVEN_UP}"));
    let accepted = server.expect("accepted");
    println!("{}, no device there: {} because {}", backend.name, opened.get("transport"), opened.get("text"));
    for line in [&opened, &accepted] {
        assert_eq!(line.get("transport"), "tcp", "{line:?}");
        assert_ne!(line.get("reason"), "none", "{line:?}");
    }
    client.expect_of("echoed", opened.get("id"));
    let id = opened.get("id").to_owned();
    finish(client, server, &id);
    Ok(())
}

fn server_killed(backend: &Verbs) -> Outcome {
    let (mut first, address) = server(backend, "ucx", "load");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, _) = connect(backend, &mut client, &mut first, &address, "load");
    std::thread::sleep(Duration::from_millis(500));
    let since = first.kill();
    check_end(&mut client, &id, &format!("{}, the other guest's server killed", backend.name), since);
    let (mut second, address) = server(backend, "ucx", "load");
    let (id, _) = connect(backend, &mut client, &mut second, &address, "load");
    finish(client, second, &id);
    Ok(())
}

/// The cable at the server's end is pulled out: its port goes down, and this end hears nothing any more.
fn unplugged(backend: &Verbs) -> Outcome {
    let (mut server, address) = server(backend, "auto", "load");
    let mut client = Peer::start("client", &[backend.tls, on_own()]);
    let (id, other) = connect(backend, &mut client, &mut server, &address, "load");
    std::thread::sleep(Duration::from_millis(500));
    let since = now_us();
    run_far(&["rdma-vm-link", "unplug"]);
    check_end(&mut client, &id, &format!("{}, unplugged, client", backend.name), since);
    check_end(&mut server, &other, &format!("{}, unplugged, server", backend.name), since);
    let refused = client.ask(&format!("connect {address} connect_timeout_ms=3000"), "connected");
    assert_eq!(refused.get("ok"), "false", "{refused:?}");
    println!("{}, unplugged: {}", backend.name, refused.get("text"));
    run_far(&["rdma-vm-link", "plug"]);
    let (id, _) = connect(backend, &mut client, &mut server, &address, "load");
    finish(client, server, &id);
    Ok(())
}

/// The other machine stops dead, with a connection of each kind under load.
fn powered_off() -> Outcome {
    let mut ends = Vec::new();
    for backend in BACKENDS {
        let (mut server, address) = server(backend, "ucx", "load");
        let mut client = Peer::start("client", &[backend.tls, on_own()]);
        let (id, _) = connect(backend, &mut client, &mut server, &address, "load");
        ends.push((backend, client, server, id, address));
    }
    std::thread::sleep(Duration::from_millis(500));
    let since = now_us();
    let mut end = far::command(&["sh", "-c", "echo c >/proc/sysrq-trigger"]).spawn().expect("own path");
    for (backend, mut client, server, id, address) in ends {
        check_end(&mut client, &id, &format!("{}, the other guest powered off", backend.name), since);
        let asked = Instant::now();
        let refused = client.ask(&format!("connect {address} connect_timeout_ms=3000"), "connected");
        println!("{}, powered off: {} after {:.1?}", backend.name, refused.get("text"), asked.elapsed());
        assert_eq!(refused.get("ok"), "false", "{refused:?}");
        assert!(refused.number("ms") < 8000, "{refused:?}");
        client.check_balance_within(20_000);
        client.quit();
        drop(server);
    }
    let _ = end.kill();
    let _ = end.wait();
    Ok(())
}
