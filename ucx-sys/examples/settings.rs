//! Prints what UCX this machine has, and the settings that it runs with.

fn main() -> std::process::ExitCode {
    let ucx = match ucx_sys::load() {
        Ok(ucx) => ucx,
        Err(error) => {
            println!("no ucx: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    println!("version           {} {:?}", ucx.version_string(), ucx.version());
    println!("library           {}", ucx.path().display());
    println!("was in process    {}", ucx.was_in_process());
    println!("max thread level  {:?}", ucx.max_thread_level());
    println!("build             {}", ucx.build_info());
    println!("missing symbols   {:?}", ucx.missing_optional_symbols());
    for setting in ucx.effective_defaults() {
        println!("{setting}");
    }
    std::process::ExitCode::SUCCESS
}
