//! `ucrpc call` against a server of this process.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use bytes::Bytes;
use tempfile::TempDir;
use ucrpc::{
    CallContext, Code, Server, Service, Status,
    rpc::{
        call::Reply,
        service::{MethodDescriptor, MethodId, ReplyFuture, ServiceDescriptor, no_such_method},
        wire::MessageBuf,
    },
};

const PROTO: &str = r#"
syntax = "proto3";
package demo.v1;
import "types/item.proto";

service Shop {
  rpc Echo(Order) returns (Order);
  rpc Hex(Order) returns (Order);
  rpc Fail(Order) returns (Order);
  rpc Slow(Order) returns (Order);
  rpc Nonsense(Order) returns (Order);
  rpc Missing(Order) returns (Order);
  rpc Watch(stream Order) returns (stream Order);
}

service Absent {
  rpc Echo(Order) returns (Order);
}

enum Color { NONE = 0; RED = 1; }

message Order {
  string name = 1;
  repeated demo.types.Item items = 2;
  int64 total = 3;
  bytes blob = 4;
  Color color = 5;
  map<string, int32> counts = 6;
}
"#;

const IMPORTED: &str = r#"
syntax = "proto3";
package demo.types;
message Item { uint32 number = 1; double price = 2; }
"#;

struct Shop;

const fn method(name: &'static str) -> MethodDescriptor {
    MethodDescriptor { name, client_streaming: false, server_streaming: false }
}

static SHOP: ServiceDescriptor = ServiceDescriptor {
    name: "demo.v1.Shop",
    methods: &[method("Echo"), method("Hex"), method("Fail"), method("Slow"), method("Nonsense")],
};

impl Service for Shop {
    fn descriptor(&self) -> &'static ServiceDescriptor {
        &SHOP
    }

    fn call(&self, method: MethodId, mut context: CallContext, message: Bytes) -> ReplyFuture {
        let reversed: Vec<u8> = context.take_attachment().iter().rev().copied().collect();
        context.set_attachment(Bytes::from(reversed));
        if let Some(tenant) = context.metadata().get("tenant").map(str::to_owned) {
            context.response.metadata.insert("seen", tenant).expect("short");
        }
        let bytes = |bytes: &[u8]| Ok(MessageBuf::copy_from_slice(bytes, 0));
        let result = match SHOP.methods.get(method.0 as usize).map(|method| method.name) {
            Some("Echo") => bytes(&message),
            Some("Hex") => {
                let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
                bytes(&[&[0x0a, hex.len() as u8], hex.as_bytes()].concat())
            }
            Some("Fail") => Err(Status::new(Code::from_wire(4242), "sold out")),
            Some("Slow") => return Box::pin(std::future::pending()),
            Some("Nonsense") => bytes(&[0xff, 0xff, 0xff]),
            _ => return no_such_method(context),
        };
        Box::pin(std::future::ready(Reply { result, context }))
    }
}

/// A server, and a folder with the files of its clients.
struct Bed {
    server: Server,
    folder: TempDir,
}

impl Bed {
    fn new() -> Self {
        let server = Server::builder().service(Shop).listen("tcp://127.0.0.1:0").start().expect("a server");
        let folder = tempfile::tempdir().expect("a directory");
        let bed = Self { server, folder };
        bed.write("shop.proto", PROTO.as_bytes());
        bed.write("types/item.proto", IMPORTED.as_bytes());
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// `ucrpc call ADDR arguments...`, in the folder.
    fn command(&self, arguments: &[&str]) -> Command {
        let address = self.server.addresses()[0].to_string();
        call(&address, arguments, &self.folder)
    }

    fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().expect("it runs"))
    }

    /// With the schema, and this JSON.
    fn json(&self, method: &str, json: &str) -> Said {
        self.run(&[method, "--proto", "shop.proto", "--data", json])
    }
}

fn call(address: &str, arguments: &[&str], folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ucrpc"));
    command.args(["call", address]).args(arguments).current_dir(folder.path());
    command.env_remove("UCRPC_TRANSPORT").env_remove("UCRPC_UCX_LIBRARY");
    command
}

struct Said {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), out: output.stdout, err }
    }

    #[track_caller]
    fn out(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {:?}", self.out))
    }

    /// It failed with this exit code, and its words are on stderr only.
    #[track_caller]
    fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(self.out.is_empty(), "{:?}", self.out);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {}", self.err);
        }
    }
}

#[test]
fn json_comes_back_as_it_went() {
    let bed = Bed::new();
    let json = r#"{"name": "box", "items": [{"number": 7, "price": 1.5}, {"number": 8}], "total": "9007199254740993",
        "blob": "AP8=", "color": "RED", "counts": {"a": -1}}"#;
    let said = bed.json("demo.v1.Shop/Echo", json).out();
    assert_eq!(said["items"][0]["price"], 1.5);
    assert_eq!(said["items"][1]["number"], 8);
    assert_eq!((&said["total"], &said["blob"]), (&"9007199254740993".into(), &"AP8=".into()));
    assert_eq!((&said["color"], &said["counts"]["a"]), (&"RED".into(), &(-1).into()));
    // The bare name of the service does as well, and an empty request is the default.
    let said = bed.run(&["Shop/Echo", "--proto", "shop.proto"]).out();
    assert_eq!(said["name"], "");
}

#[test]
fn json_becomes_the_bytes_that_protobuf_prescribes() {
    let bed = Bed::new();
    let hex = |json: &str| bed.json("Shop/Hex", json).out()["name"].as_str().expect("text").to_owned();
    assert_eq!(hex(r#"{"name": "x"}"#), "0a0178");
    assert_eq!(hex(r#"{"total": 300}"#), "18ac02");
    assert_eq!(hex(r#"{"blob": "AP8=", "color": 1}"#), "220200ff2801");
    assert_eq!(hex(r#"{"items": [{"number": 1}]}"#), "12020801");
}

#[test]
fn the_request_may_come_from_a_file_or_stdin() {
    let bed = Bed::new();
    bed.write("request.json", br#"{"name": "from a file"}"#);
    assert_eq!(bed.json("Shop/Echo", "@request.json").out()["name"], "from a file");
    let mut command = bed.command(&["Shop/Echo", "--proto", "shop.proto", "--data", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(br#"{"name": "from stdin"}"#).expect("it reads");
    let said = Said::of(child.wait_with_output().expect("it ends"));
    assert_eq!(said.out()["name"], "from stdin");
    bed.json("Shop/Echo", "@absent.json").failed(1, &["cannot read absent.json"]);
}

#[test]
fn the_schema_is_found_in_folders() {
    let bed = Bed::new();
    let root = bed.folder.path().to_str().expect("UTF-8").to_owned();
    let file = format!("{root}/shop.proto");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let address = bed.server.addresses()[0].to_string();
    let run = |arguments: &[&str]| Said::of(call(&address, arguments, &elsewhere).output().expect("it runs"));
    assert_eq!(run(&["Shop/Echo", "--proto", &file, "--data", "{}"]).code, Some(0));
    assert_eq!(run(&["Shop/Echo", "--proto", "shop.proto", "-I", &root]).code, Some(0));
    let moved = bed.write("deeper/shop.proto", PROTO.as_bytes());
    run(&["Shop/Echo", "--proto", &moved]).failed(2, &["types/item.proto", "-I DIR"]);
    assert_eq!(run(&["Shop/Echo", "--proto", "deeper/shop.proto", "-I", &root]).code, Some(0));
}

#[test]
fn attachments_and_metadata_travel_beside_the_message() {
    let bed = Bed::new();
    bed.write("there.bin", b"abc\0def");
    let arguments = ["Shop/Echo", "--proto", "shop.proto", "--data", r#"{"name": "n"}"#, "--attachment", "there.bin"];
    let all = [&arguments[..], &["--attachment-out", "back.bin", "--metadata", "tenant=seven", "--stats"]].concat();
    let said = bed.run(&all);
    assert_eq!(said.out()["name"], "n");
    assert_eq!(std::fs::read(bed.path("back.bin")).expect("written"), b"fed\0cba");
    assert!(said.err.contains("over tcp in ") && said.err.contains("seen=seven"), "{}", said.err);
    // Whoever does not ask for it hears of it.
    let said = bed.run(&arguments);
    assert!(said.out()["name"] == "n" && said.err.contains("attachment of 7 bytes"), "{}", said.err);
    // On stdout, alone.
    let said = bed.run(&[&arguments[..], &["--attachment-out", "-"]].concat());
    assert_eq!((said.code, said.out), (Some(0), b"fed\0cba".to_vec()));
}

#[test]
fn raw_bytes_need_no_schema() {
    let bed = Bed::new();
    bed.write("request.bin", &[0x0a, 0x01, 0x78]);
    let said = bed.run(&["demo.v1.Shop/Echo", "--raw", "request.bin"]);
    assert_eq!((said.code, said.out.as_slice()), (Some(0), &[0x0a, 0x01, 0x78][..]), "{}", said.err);
    let mut command = bed.command(&["demo.v1.Shop/Hex", "--raw", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(&[0x18, 0x05]).expect("it reads");
    assert_eq!(child.wait_with_output().expect("it ends").stdout, b"\x0a\x041805");
}

#[test]
fn an_error_of_the_server_has_its_code_and_text() {
    let bed = Bed::new();
    bed.json("Shop/Fail", "{}").failed(6, &["4242", "sold out"]);
    bed.json("Shop/Missing", "{}").failed(6, &["ENOMETHOD", "1002", "Missing", "compare SERVICE"]);
    bed.json("Absent/Echo", "{}").failed(6, &["ENOSERVICE", "1001"]);
}

#[test]
fn a_response_that_is_no_message_is_said_to_be_none() {
    Bed::new().json("Shop/Nonsense", "{}").failed(1, &["the response is no demo.v1.Order", "--raw"]);
}

#[test]
fn a_deadline_ends_the_call() {
    let bed = Bed::new();
    let started = std::time::Instant::now();
    let said = bed.run(&["Shop/Slow", "--proto", "shop.proto", "--timeout", "0.3"]);
    said.failed(1, &["no response within 0.3 s", "--timeout"]);
    assert!(started.elapsed().as_secs() < 4, "{:?}", started.elapsed());
}

#[test]
fn nobody_there_and_no_ucx_have_their_own_exit_codes() {
    let bed = Bed::new();
    let run = |address: &str, env: &[(&str, &str)]| {
        let mut command = call(address, &["Shop/Echo", "--proto", "shop.proto"], &bed.folder);
        Said::of(command.envs(env.iter().copied()).output().expect("it runs"))
    };
    run("tcp://127.0.0.1:1", &[]).failed(3, &["connecting to tcp://127.0.0.1:1", "refused", "is the server running"]);
    run("ucx://127.0.0.1:1", &[("UCRPC_UCX_LIBRARY", "none")]).failed(5, &["UCRPC_UCX_LIBRARY=none", "ucrpc doctor"]);
    run("http://127.0.0.1:1", &[]).failed(2, &["http"]);
}

#[test]
fn what_makes_no_sense_is_refused_with_advice() {
    let bed = Bed::new();
    let schema = ["--proto", "shop.proto"];
    bed.json("Shop/Echo", r#"{"nam": "x"}"#).failed(2, &["nam", "its fields: name (string)", "items (repeated "]);
    bed.json("Shop/Echo", r#"{"total": "many"}"#).failed(2, &["the JSON is no demo.v1.Order"]);
    bed.json("Shop/Echo", "{} {}").failed(2, &["the JSON is no"]);
    bed.json("Shop/Ehco", "{}").failed(2, &["no method Ehco", "Echo"]);
    bed.json("Shp/Echo", "{}").failed(2, &["no service Shp", "demo.v1.Shop"]);
    bed.json("Shop/Watch", "{}").failed(2, &["is a stream"]);
    bed.run(&["Shop/Echo", "--data", "{}"]).failed(2, &["--proto FILE", "--raw FILE"]);
    bed.run(&["Shop", schema[0], schema[1]]).failed(2, &["is not SERVICE/METHOD"]);
    bed.run(&["Shop/Echo", "--proto", "absent.proto"]).failed(2, &["absent.proto"]);
    bed.write("broken.proto", b"syntax = \"proto3\"; message {");
    bed.run(&["Shop/Echo", "--proto", "broken.proto"]).failed(2, &["broken.proto"]);
    bed.run(&["Shop/Echo", schema[0], schema[1], "--timeout", "0"]).failed(2, &["more than 0 seconds"]);
    bed.run(&["Shop/Echo", schema[0], schema[1], "--metadata", "novalue"]).failed(2, &["KEY=VALUE"]);
    bed.run(&["Shop/Echo", "--raw", "-", "--attachment", "-"]).failed(2, &["stdin can be read once"]);
}
