//! Numbers as people read them in `kubectl get` and in messages.

use std::time::Duration;

/// `54.1 MB`: powers of ten, as registries and disks count.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How many times smaller: `640x`; one digit after the point below ten.
pub fn ratio(whole: u64, part: u64) -> String {
    let ratio = whole as f64 / part.max(1) as f64;
    if ratio < 9.95 {
        format!("{ratio:.1}x")
    } else {
        format!("{ratio:.0}x")
    }
}

/// A time span: `350ms`, `1.2s`, `1m05s`, `2h03m`.
pub fn duration(duration: Duration) -> String {
    let (millis, seconds) = (duration.as_millis(), duration.as_secs());
    match seconds {
        _ if millis < 1000 => format!("{millis}ms"),
        0..60 if millis < 59_950 => format!("{:.1}s", millis as f64 / 1000.0),
        0..3600 => {
            let rounded = (millis + 500) / 1000;
            format!("{}m{:02}s", rounded / 60, rounded % 60)
        }
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A count with thousands set apart: `4,228`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 layer`, `3 layers`.
pub fn counted(number: u64, singular: &str, plural: &str) -> String {
    let noun = if number == 1 { singular } else { plural };
    format!("{} {noun}", count(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (84_512, "84.5 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (54_123_456, "54.1 MB"),
            (13_700_000_000, "13.7 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(ratio(54_123_456, 84_512), "640x");
        assert_eq!(ratio(7, 2), "3.5x");
        assert_eq!(ratio(7, 0), "7.0x");
        for (millis, text) in [
            (350, "350ms"),
            (1_234, "1.2s"),
            (59_960, "1m00s"),
            (65_000, "1m05s"),
            (7_380_000, "2h03m"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(
            [count(7), count(4228), count(1_250_000)],
            ["7", "4,228", "1,250,000"]
        );
        assert_eq!(counted(1, "layer", "layers"), "1 layer");
    }
}
