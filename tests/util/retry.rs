//! A second try for cases whose deadlines a busy CI machine may miss. It is never silent: the first failure is printed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use libtest_mimic::{Failed, Trial};

/// A case that is run once more in CI if it fails.
pub(crate) fn trial(name: impl Into<String>, run: impl Fn() -> Result<(), Failed> + Send + 'static) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || once_more_in_ci(&name, &run))
}

fn once_more_in_ci(name: &str, run: &dyn Fn() -> Result<(), Failed>) -> Result<(), Failed> {
    if std::env::var_os("CI").is_none() {
        return run();
    }
    let first = catch_unwind(AssertUnwindSafe(run));
    if matches!(first, Ok(Ok(()))) {
        return Ok(());
    }
    run()?;
    let why = match &first {
        Ok(Err(failed)) => failed.message().unwrap_or("no message").to_owned(),
        _ => "it panicked, see above".to_owned(),
    };
    println!("FLAKY: {name} failed once and passed when it was run again. The first time: {why}");
    Ok(())
}
