//! How long failures took to be noticed, for the documentation.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use crate::process::Line;

/// By two names; the times of each run.
type Rows = BTreeMap<(String, String), Vec<(Duration, Duration)>>;

static ROWS: Mutex<Rows> = Mutex::new(BTreeMap::new());

/// The bar for noticing that a peer is gone.
const BAR: Duration = Duration::from_secs(3);

/// Notes when `failure`, which happened at `since`, was noticed on `backend`, and checks that it was in time. What the machine
/// kept the process from running is added to the bar.
pub(crate) fn check(failure: &str, backend: &str, since: u64, ended: &Line) {
    let lost = Duration::from_micros(ended.number("lost"));
    check_with(failure, backend, since, ended, lost);
}

/// As [`check`], for a process that was stopped before: it was kept from running by the test itself.
pub(crate) fn check_continued(failure: &str, backend: &str, since: u64, ended: &Line) {
    check_with(failure, backend, since, ended, Duration::ZERO);
}

fn check_with(failure: &str, backend: &str, since: u64, ended: &Line, lost: Duration) {
    let took = Duration::from_micros(ended.number("at").saturating_sub(since));
    println!("{failure}: {} after {took:.1?}, {lost:.1?} lost; {}", ended.get("text"), ended.get("counts"));
    {
        let mut rows = ROWS.lock().unwrap_or_else(|e| e.into_inner());
        rows.entry((failure.to_owned(), backend.to_owned())).or_default().push((took, lost));
    }
    assert!(took <= BAR + lost, "noticed after {took:?}, of which the machine was busy for {lost:?}: {ended:?}");
}

/// Prints all that was noted, as Markdown.
pub(crate) fn print() {
    let mut rows = ROWS.lock().unwrap_or_else(|e| e.into_inner());
    if rows.is_empty() {
        return;
    }
    println!(
        "| failure | backend | n | median ms | max ms | of which the machine was late |\n|---|---|---|---|---|---|"
    );
    for ((failure, backend), times) in rows.iter_mut() {
        times.sort();
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        let (low, high) = (times[(times.len() - 1) / 2].0, times[times.len() / 2].0);
        let (median, (max, lost)) = (ms(&((low + high) / 2)), times[times.len() - 1]);
        println!("| {failure} | {backend} | {} | {median:.1} | {:.1} | {:.0} |", times.len(), ms(&max), ms(&lost));
    }
}
