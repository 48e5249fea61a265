//! Numbers as people read them.

use std::time::Duration;

/// `54.1 MB`: powers of ten, as registries and disks count.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 layer`, `3 layers`.
pub fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// `850 ms`, `12.3 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            [count(0, "file"), count(1, "file"), count(2, "file")],
            ["0 files", "1 file", "2 files"]
        );
    }

    #[test]
    fn sizes_and_times_read_well_at_every_magnitude() {
        assert_eq!(
            [
                bytes(0),
                bytes(999),
                bytes(1000),
                bytes(54_100_000),
                bytes(999_960_000)
            ],
            ["0 B", "999 B", "1.0 kB", "54.1 MB", "1.0 GB"]
        );
        assert_eq!(
            [
                seconds(Duration::from_millis(850)),
                seconds(Duration::from_millis(12_345))
            ],
            ["850 ms", "12.3 s"]
        );
    }
}
