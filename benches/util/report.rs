//! Rows of figures: ours, the control's, the ratio of each round, and the bar.

use super::{Options, process::Figures};

/// What a ratio has to be.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// So much more than the control, in its unit.
    MoreAtMost(f64),
    /// For information.
    None,
}

type Run = Box<dyn Fn() -> Result<Figures, String>>;

/// One comparison.
pub(crate) struct Row {
    name: String,
    figure: &'static str,
    unit: &'static str,
    bar: Bar,
    ours: Run,
    control: (&'static str, Run),
    rounds: Vec<(f64, f64)>,
    tails: Vec<f64>,
    failed: Option<String>,
}

impl Row {
    /// Compares `figure` of both.
    pub(crate) fn new(
        name: String,
        (figure, unit): (&'static str, &'static str),
        ours: impl Fn() -> Result<Figures, String> + 'static,
        control: (&'static str, impl Fn() -> Result<Figures, String> + 'static),
        bar: Bar,
    ) -> Self {
        let control: (&'static str, Run) = (control.0, Box::new(control.1));
        let (rounds, tails) = (Vec::new(), Vec::new());
        Self { name, figure, unit, bar, ours: Box::new(ours), control, rounds, tails, failed: None }
    }

    fn run(&mut self, ours_first: bool) {
        let measured = if ours_first {
            (self.ours)().and_then(|ours| Ok((ours, (self.control.1)()?)))
        } else {
            (self.control.1)().and_then(|control| Ok(((self.ours)()?, control)))
        };
        match measured {
            Ok((ours, control)) => {
                self.rounds.push((ours[self.figure], control[self.figure]));
                self.tails.extend(ours.get("p99"));
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn print(&self) {
        if self.rounds.is_empty() {
            let why = self.failed.as_deref().unwrap_or("never run");
            return println!("{:<30} {:<24} NOT MEASURED: {why}", self.name, self.control.0);
        }
        let spread = |values: Vec<f64>| {
            let values = sorted(values);
            (values[values.len() / 2], values[0], values[values.len() - 1])
        };
        let ours = spread(self.rounds.iter().map(|(ours, _)| *ours).collect());
        let control = spread(self.rounds.iter().map(|(_, control)| *control).collect());
        let ratio = spread(self.rounds.iter().map(|(ours, control)| ours / control).collect());
        // On a machine that others use too, each side's best round was the least disturbed one.
        let quietest = if ["us", "s", "KiB"].contains(&self.unit) { ours.1 / control.1 } else { ours.2 / control.2 };
        let verdict = match self.bar {
            Bar::None => String::new(),
            Bar::AtMost(bar) => format!("bar <= {bar}: {}", if ratio.0 <= bar { "MET" } else { "MISSED" }),
            Bar::AtLeast(bar) => format!("bar >= {bar}: {}", if ratio.0 >= bar { "MET" } else { "MISSED" }),
            Bar::MoreAtMost(bar) => {
                let more = spread(self.rounds.iter().map(|(ours, control)| ours - control).collect()).0;
                let verdict = if more <= bar { "MET" } else { "MISSED" };
                format!("{more:+.2} {}, bar <= +{bar}: {verdict}", self.unit)
            }
        };
        let tail = if self.tails.is_empty() {
            String::new()
        } else {
            format!(", p99 {}", number(spread(self.tails.clone()).0))
        };
        println!(
            "{:<30} {:<24} {:>9} {} [{}..{}{tail}] / {} [{}..{}]  ratio {:.2} [{:.2}..{:.2}], best rounds {quietest:.2}  {verdict}",
            self.name,
            self.control.0,
            number(ours.0),
            self.unit,
            number(ours.1),
            number(ours.2),
            number(control.0),
            number(control.1),
            number(control.2),
            ratio.0,
            ratio.1,
            ratio.2,
        );
        if let Some(error) = &self.failed {
            println!("{:<30} {} of the rounds failed, the last: {error}", "", self.control.0);
        }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn number(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{v:.0}"),
        v if v >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Measures all rows, round by round, and prints them.
pub(crate) fn run(rows: &mut [Row], options: &Options) {
    for round in 0..options.rounds {
        for row in rows.iter_mut().filter(|row| options.wants(&row.name)) {
            // Who goes first changes, so that neither always meets the warmer machine.
            row.run(round % 2 == 0);
        }
    }
    println!(
        "\nmedian [smallest..largest] of ours / of the control; the ratio is the median of the rounds' ratios;\nof the best rounds: each side's quietest"
    );
    for row in rows.iter().filter(|row| options.wants(&row.name)) {
        row.print();
    }
}
