//! How long failures took to be noticed, for the documentation.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

static ROWS: Mutex<BTreeMap<(String, String), Vec<Duration>>> = Mutex::new(BTreeMap::new());

/// Notes that `failure` on `backend` was noticed after `time`.
pub(crate) fn record(failure: &str, backend: &str, time: Duration) {
    let mut rows = ROWS.lock().unwrap_or_else(|e| e.into_inner());
    rows.entry((failure.to_owned(), backend.to_owned())).or_default().push(time);
}

/// Prints all that was noted, as Markdown.
pub(crate) fn print() {
    let mut rows = ROWS.lock().unwrap_or_else(|e| e.into_inner());
    if rows.is_empty() {
        return;
    }
    println!("| failure | backend | n | median ms | max ms |\n|---|---|---|---|---|");
    for ((failure, backend), times) in rows.iter_mut() {
        times.sort();
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        let (median, max) = (ms(&times[times.len() / 2]), ms(&times[times.len() - 1]));
        println!("| {failure} | {backend} | {} | {median:.1} | {max:.1} |", times.len());
    }
}
