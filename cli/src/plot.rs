//! Pictures: latency and throughput over the message's size, side by side, as SVG.

use std::{fs, path::Path};

use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    },
    prelude::{
        ChartBuilder, Circle, Color, DashedLineSeries, DrawingArea, DrawingAreaErrorKind, DrawingBackend,
        IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor, SVGBackend, Text, WHITE,
    },
};

use crate::{
    Done,
    exit::{Exit, Failure},
    perf::Point,
    units::size_name,
};

/// Colours that people with any kind of sight can tell apart (Okabe and Ito's, without yellow on white).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(90, 90, 90),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const SOFT: RGBColor = RGBColor(100, 100, 100);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const WIDTH: u32 = 1180;
const PANEL_HEIGHT: u32 = 440;
const TITLE_HEIGHT: u32 = 64;
const LEGEND_ROW: u32 = 20;
/// A transport and its control stand beside each other.
const LEGEND_COLUMNS: usize = 2;

/// A line.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Number of its colour; a control has that of what it belongs to.
    pub(crate) colour: usize,
    pub(crate) dashed: bool,
    /// Size and value, ascending sizes.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A coordinate system.
pub(crate) struct Panel {
    title: String,
    unit: &'static str,
    pub(crate) series: Vec<Series>,
}

impl Panel {
    pub(crate) fn new(title: &str, unit: &'static str) -> Self {
        Self { title: title.to_owned(), unit, series: Vec::new() }
    }

    fn values(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.series.iter().flat_map(|series| &series.points)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws panels beside each other with one legend under them.
pub(crate) fn draw(file: &Path, title: &str, subtitle: &str, panels: &[Panel]) -> Done {
    let failed = |error: String| Failure::new(Exit::Failed, format!("cannot draw {}: {error}", file.display()));
    let mut text = String::new();
    let legend = legend(panels);
    let rows = legend.len().div_ceil(LEGEND_COLUMNS) as u32;
    let size = (WIDTH, TITLE_HEIGHT + PANEL_HEIGHT + rows * LEGEND_ROW + 16);
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw_on(&root, title, subtitle, panels, &legend).map_err(|error| failed(error.to_string()))?;
    }
    fs::write(file, text).map_err(|error| failed(error.to_string()))
}

fn draw_on<'a>(root: &Area<'a>, title: &str, subtitle: &str, panels: &[Panel], legend: &[&Series]) -> Drawn<'a> {
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (24, 14), ("sans-serif", 20).into_font().color(&INK)))?;
    root.draw(&Text::new(subtitle.to_owned(), (24, 42), ("sans-serif", 12).into_font().color(&SOFT)))?;
    let (_, rest) = root.split_vertically(TITLE_HEIGHT);
    let (charts, under) = rest.split_vertically(PANEL_HEIGHT);
    for (area, panel) in charts.split_evenly((1, panels.len().max(1))).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    let width = WIDTH as i32 / LEGEND_COLUMNS as i32;
    for (i, series) in legend.iter().enumerate() {
        let at = (24 + (i % LEGEND_COLUMNS) as i32 * width, (i / LEGEND_COLUMNS) as i32 * LEGEND_ROW as i32 + 10);
        let colour = COLOURS[series.colour % COLOURS.len()];
        // A dashed line of three dashes, or one line.
        let dashes: &[(i32, i32)] = if series.dashed { &[(0, 7), (11, 18), (22, 28)] } else { &[(0, 28)] };
        for (from, to) in dashes {
            under.draw(&PathElement::new([(at.0 + from, at.1), (at.0 + to, at.1)], colour.stroke_width(2)))?;
        }
        if !series.dashed {
            under.draw(&Circle::new((at.0 + 14, at.1), 3, colour.filled()))?;
        }
        let style = ("sans-serif", 13).into_font().color(&INK);
        under.draw(&Text::new(series.name.clone(), (at.0 + 36, at.1 - 7), style))?;
    }
    root.present()
}

/// One of each name, in the order of the panels.
fn legend(panels: &[Panel]) -> Vec<&Series> {
    let mut found: Vec<&Series> = Vec::new();
    for series in panels.iter().flat_map(|panel| &panel.series) {
        if !found.iter().any(|known| known.name == series.name) {
            found.push(series);
        }
    }
    found
}

fn draw_panel<'a>(area: &Area<'a>, panel: &Panel) -> Drawn<'a> {
    // Both axes are logarithmic: they carry logarithms, and labels that undo them.
    let sizes = ticks(panel.values().map(|point| point.0));
    let (low, high) = bounds(panel.values().map(|point| point.1));
    let (left, right) = (sizes.first().copied().unwrap_or(1.0), sizes.last().copied().unwrap_or(2.0));
    let margin = ((right / left).log2() * 0.04).max(0.3);
    let ticks = sizes.iter().map(|size| size.log2()).collect();
    let x = Axis { from: left.log2() - margin, to: right.log2() + margin, ticks };
    let ticks = nice_values(low, high).iter().map(|value| value.log10()).collect();
    let y = Axis { from: low.log10(), to: high.log10(), ticks };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{}, {}", panel.title, panel.unit), ("sans-serif", 15).into_font().color(&INK))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(x, y)?;
    let label = ("sans-serif", 12).into_font().color(&INK);
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(WHITE)
        .axis_style(INK)
        .label_style(label)
        .x_label_formatter(&|x| size_name(x.exp2().round() as usize))
        .y_label_formatter(&|y| value_name(10_f64.powf(*y)))
        .draw()?;
    for series in &panel.series {
        let colour = COLOURS[series.colour % COLOURS.len()];
        let points: Vec<(f64, f64)> = series.points.iter().map(|(x, y)| (x.log2(), y.max(1e-9).log10())).collect();
        if series.dashed {
            chart.draw_series(DashedLineSeries::new(points, 6, 4, colour.stroke_width(1)))?;
        } else {
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
            chart.draw_series(points.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    Ok(())
}

/// An axis whose labels stand where we want them.
struct Axis {
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let part = (value - self.from) / (self.to - self.from);
        low + (f64::from(high - low) * part).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        // Light lines would be drawn between those that are wanted.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

/// The values that occur, ascending.
fn ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut ticks: Vec<f64> = values.collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    ticks
}

/// A range around the values, with room above and below.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high || low <= 0.0 { (1.0, 10.0) } else { (low / 1.4, high * 1.4) }
}

/// 1, 2 and 5 of each decade within the range, or whole decades where it is wide.
fn nice_values(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = if high / low > 2e4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = decades.flat_map(|decade| factors.iter().map(move |factor| factor * 10_f64.powi(decade)));
    all.filter(|value| (low..=high).contains(value)).collect()
}

fn value_name(value: f64) -> String {
    match value {
        v if v >= 999.5 => {
            let digits = format!("{v:.0}");
            let (head, tail) = digits.split_at(digits.len() - 3);
            format!("{head} {tail}")
        }
        v if v >= 0.995 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

/// The points of `perf client`.
pub(crate) fn points(file: &Path, points: &[Point], address: &str) -> Done {
    type Value = fn(&Point) -> Option<f64>;
    let mut latency = Panel::new("Latency", "us");
    let mut throughput = Panel::new("Throughput", "MB/s");
    let over_sizes = |value: Value| -> Vec<(f64, f64)> {
        let mut found: Vec<(f64, f64)> =
            points.iter().filter_map(|point| Some((point.size as f64, value(point)?))).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    };
    let percentiles: [(&str, Value); 3] =
        [("p50", |point| point.p50_us), ("p99", |point| point.p99_us), ("p99.9", |point| point.p999_us)];
    for (colour, (name, value)) in percentiles.iter().enumerate() {
        let points = over_sizes(*value);
        if !points.is_empty() {
            latency.series.push(Series { name: (*name).to_owned(), colour, dashed: false, points });
        }
    }
    let points_of = over_sizes(|point| Some(point.mb_s));
    throughput.series.push(Series { name: "MB/s".to_owned(), colour: 4, dashed: false, points: points_of });
    let Some(first) = points.first() else { return Ok(()) };
    let title = format!("ucrpc perf client: {} over {}", first.mode.name(), first.transport);
    let subtitle = format!(
        "{address}, {} connections, {} outstanding on each, ucrpc {} ({})",
        first.conns,
        first.depth,
        env!("CARGO_PKG_VERSION"),
        env!("UCRPC_COMMIT")
    );
    draw(file, &title, &subtitle, &[latency, throughput])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes() {
        assert_eq!(nice_values(0.8, 12.0), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(ticks([64.0, 1.0, 64.0].into_iter()), [1.0, 64.0]);
        assert_eq!(bounds([].into_iter()), (1.0, 10.0));
        assert_eq!([value_name(0.5), value_name(5.0), value_name(12_000.0)], ["0.50", "5", "12 000"]);
    }

    #[test]
    fn a_picture_has_its_lines_and_names() {
        let mut panel = Panel::new("Latency", "us");
        let points = vec![(64.0, 1.0), (4096.0, 2.0)];
        panel.series.push(Series { name: "a name".to_owned(), colour: 0, dashed: false, points });
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("plot.svg");
        draw(&file, "title", "below", &[panel]).expect("it is drawn");
        let text = fs::read_to_string(&file).expect("it was written");
        for part in ["<svg", "a name", "64 B", "4 KiB", "Latency, us", "<polyline", "<circle"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
