//! Generates tonic's code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/peers.proto"], ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    // As our side has it: payloads are not copied out of the frame.
    config.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(files, config)?;
    Ok(())
}
