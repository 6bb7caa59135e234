//! Output: aligned tables, and progress that only a person sees.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line on stdout at once, also into a pipe.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// A table that is Markdown, with its columns aligned: all but the first `left` ones to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>], left: usize) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(&widths).enumerate().map(|(i, (cell, width))| {
            let width = *width;
            if i < left { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") }
        });
        format!("|{}\n", cells.collect::<String>())
    };
    let mut text = line(&mut head.iter().copied());
    let rule = |(i, width): (usize, &usize)| {
        if i < left { format!(" {} |", "-".repeat(*width)) } else { format!(" {}: |", "-".repeat(*width - 1)) }
    };
    text.push_str(&format!("|{}\n", widths.iter().enumerate().map(rule).collect::<String>()));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A bar on stderr, if that is a terminal; else nothing.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
    last: Duration,
}

impl Progress {
    /// A bar over a time.
    pub(crate) fn over(total: Duration, what: &str) -> Self {
        Self::new(total.as_millis() as u64, what, "{msg} [{bar:30}] {percent:>3} %")
    }

    /// A bar over a number of steps.
    pub(crate) fn steps(total: u64, what: &str) -> Self {
        Self::new(total, what, "[{bar:30}] {pos}/{len} {elapsed} {msg}")
    }

    fn new(total: u64, what: &str, template: &str) -> Self {
        let bar = if io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        Self { bar, start: Instant::now(), last: Duration::ZERO }
    }

    /// Shows how much of the time has passed; cheap to call often.
    pub(crate) fn time(&mut self) {
        let passed = self.start.elapsed();
        if passed >= self.last + Duration::from_millis(100) {
            self.last = passed;
            self.bar.set_position(passed.as_millis() as u64);
        }
    }

    /// Shows a text beside the bar.
    pub(crate) fn say(&self, text: String) {
        self.bar.set_message(text);
    }

    /// One step is done.
    pub(crate) fn step(&self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_markdown() {
        let rows = [vec!["tcp".to_owned(), "6.30".to_owned()], vec!["ucx (posix)".to_owned(), "1.1".to_owned()]];
        let text = table(&["transport", "p50 us"], &rows, 1);
        assert_eq!(
            text,
            "| transport   | p50 us |\n| ----------- | -----: |\n| tcp         |   6.30 |\n| ucx (posix) |    1.1 |\n"
        );
    }
}
