//! The generated code is what is committed under `snapshots/`, which `generated.rs` compiles and runs.
//!
//! After a wanted change: `UPDATE_SNAPSHOTS=1 cargo test -p ucrpc-build`, then look at the difference.

use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

#[test]
fn generated_code_matches_the_snapshot() {
    let out = tempfile::tempdir().unwrap();
    let protos = root().join("proto");
    ucrpc_build::configure()
        .out_dir(out.path())
        .emit_rerun_if_changed(false)
        .compile(&[protos.join("echo.proto")], &[&protos])
        .unwrap();
    for name in ["ucrpc.test.rs", "ucrpc.test.shared.rs"] {
        let generated = fs::read_to_string(out.path().join(name)).unwrap();
        let snapshot = root().join("snapshots").join(name);
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            fs::write(&snapshot, &generated).unwrap();
        }
        assert_eq!(generated, fs::read_to_string(&snapshot).unwrap(), "{name} differs from its snapshot");
    }
}

#[test]
fn client_and_server_can_be_left_out() {
    let generate = |client, server| {
        let out = tempfile::tempdir().unwrap();
        let protos = root().join("proto");
        ucrpc_build::configure()
            .build_client(client)
            .build_server(server)
            .runtime_path("crate::runtime")
            .bytes(&["."])
            .out_dir(out.path())
            .emit_rerun_if_changed(false)
            .compile(&[protos.join("echo.proto")], &[&protos])
            .unwrap();
        fs::read_to_string(out.path().join("ucrpc.test.rs")).unwrap()
    };
    let client = generate(true, false);
    assert!(client.contains("mod echo_service_client") && !client.contains("mod echo_service_server"));
    assert!(client.contains("use crate::runtime as rpc;") && !client.contains("ucrpc_rpc"));
    assert!(client.contains("prost::bytes::Bytes"), "`bytes` reaches prost");
    let server = generate(false, true);
    assert!(!server.contains("mod echo_service_client") && server.contains("mod echo_service_server"));
    let neither = generate(false, false);
    assert!(neither.contains("struct EchoRequest") && !neither.contains("trait EchoService"));
}

#[test]
fn an_invalid_proto_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.proto");
    fs::write(&file, "syntax = \"proto3\";\nmessage A {\n  NoSuchType x = 1;\n}\n").unwrap();
    let error = ucrpc_build::configure()
        .out_dir(dir.path())
        .emit_rerun_if_changed(false)
        .compile(&[&file], &[dir.path()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("NoSuchType") && error.contains("bad.proto:3"), "{error}");

    let missing = ucrpc_build::compile_protos(&[dir.path().join("none.proto")], &[dir.path()]);
    assert!(missing.unwrap_err().to_string().contains("none.proto"));
}
