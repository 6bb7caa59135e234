//! Numbers as people write and read them.

use std::time::Duration;

/// Longest time that an option takes, seconds: a day.
const MAX_SECONDS: f64 = 86_400.0;

/// Reads a number of bytes: `64`, `4k`, `64KiB`, `1M`. Units are powers of 1024.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(format!("{text:?} is no size: write 64, 4k or 1M")),
    };
    let number: usize = number.parse().map_err(|_| format!("{text:?} is no size: write 64, 4k or 1M"))?;
    number.checked_mul(1 << shift).filter(|size| *size <= 1 << 40).ok_or_else(|| format!("{text} is too large"))
}

/// Reads a time in seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches('s');
    match number.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{text:?} is no time: write seconds, as 5 or 0.5")),
    }
}

/// Reads calls per second: `5000`, `20k`, `1.5M`.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate * factor <= 1e8 => Ok(rate * factor),
        _ => Err(format!("{text:?} is no rate: write calls per second, as 5000 or 20k")),
    }
}

/// `64 B`, `4 KiB`, `1 MiB`.
pub(crate) fn size_name(size: usize) -> String {
    match size {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

/// Three significant digits, and whole numbers from 100 on.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.01 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A rate with its unit: `812 k`, `1.53 M`.
pub(crate) fn rate_name(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e5 => format!("{:.0} k", v / 1e3),
        v if v >= 1e4 => format!("{:.1} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("64"), Ok(64));
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1M"), Ok(1 << 20));
        for bad in ["", "k", "-1", "1.5k", "4x", "99999999999999999999", "9999999G"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rates_and_times() {
        assert_eq!(rate("20k"), Ok(20_000.0));
        assert_eq!(rate("1.5M"), Ok(1_500_000.0));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("2s"), Ok(Duration::from_secs(2)));
        for bad in ["", "k", "0", "-5", "nan", "inf"] {
            assert!(rate(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "-1", "nan", "1e9"] {
            assert!(seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names() {
        assert_eq!([size_name(64), size_name(4096), size_name(1 << 20)], ["64 B", "4 KiB", "1 MiB"]);
        assert_eq!([number(1234.5), number(12.34), number(0.123)], ["1234", "12.3", "0.12"]);
        assert_eq!([rate_name(812_345.0), rate_name(1_530_000.0), rate_name(950.4)], ["812 k", "1.53 M", "950"]);
    }
}
