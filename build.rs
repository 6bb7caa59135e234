//! Generates the services that the tests, examples and benches of this package use.

fn main() -> std::io::Result<()> {
    ucrpc_build::configure().runtime_path("::ucrpc::rpc").bytes(&["."]).compile(&["proto/echo.proto"], &["proto"])
}
