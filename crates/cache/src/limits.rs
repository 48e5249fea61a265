//! How much of a disk the cache may take, and how much must go.

use bytesize::ByteSize;
use std::{fmt, str::FromStr};

/// Shrinking begins at this part of the budget, so that what is fetched while it runs still fits.
const HIGH_PERCENT: u64 = 95;
/// Shrinking ends at this part: one pass over all tables makes room for many fetches.
const LOW_PERCENT: u64 = 90;
/// A disk that is short of space gets so much of its size back beyond the minimum.
const SPARE_PERCENT: u64 = 1;
/// What free space alone never takes: when others fill the disk, taking away what running pods read every second would
/// free little and have it all fetched again.
const KEPT_MIN: u64 = 1 << 30;
/// A disk that refuses a write gets back so much at least, whatever was said above: spans are 2 MiB at most, and there
/// are others that write, too.
const FULL_DISK_ROOM: u64 = 64 << 20;

/// What the cache may take. The default is no budget, and 5 % of the disk free: for a machine with a person before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes on the disk; none for what free space allows.
    pub max_bytes: Option<u64>,
    /// What must stay free on the disk.
    pub min_free: FreeSpace,
}

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpace {
    /// Bytes.
    Bytes(u64),
    /// Percent of the disk's size, below 100.
    Percent(u8),
}

/// A disk's size, and what users may still write to it, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct DiskSpace {
    pub size: u64,
    pub available: u64,
}

/// Why the cache is made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Looked at now and then.
    Routine,
    /// A write was refused.
    DiskFull,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            max_bytes: None,
            min_free: FreeSpace::Percent(5),
        }
    }
}

impl CacheLimits {
    /// Bytes that may come to the `used` ones of `disk` without anything being taken away but the `yielding` ones among
    /// them: as much as shrinking would leave. Free space counts as [`excess`](Self::excess) counts it.
    pub(crate) fn room(&self, used: u64, yielding: u64, disk: DiskSpace) -> u64 {
        let stays = used.saturating_sub(yielding);
        let in_budget = self.max_bytes.map_or(u64::MAX, |max| {
            (max / 100 * LOW_PERCENT).saturating_sub(stays)
        });
        let on_disk = disk.available.saturating_add(yielding);
        let spare = disk.size / 100 * SPARE_PERCENT;
        let beyond_min_free = on_disk.saturating_sub(self.min_free_of(disk) + spare);
        let never_taken = KEPT_MIN.saturating_sub(stays).min(on_disk);
        in_budget.min(beyond_min_free.max(never_taken))
    }

    /// Bytes that must go when the cache takes `used` bytes of `disk`.
    pub(crate) fn excess(&self, used: u64, disk: DiskSpace, pressure: Pressure) -> u64 {
        let over_budget = self
            .max_bytes
            .map_or(0, |max| match used > max / 100 * HIGH_PERCENT {
                true => used - max / 100 * LOW_PERCENT,
                false => 0,
            });
        let min_free = self.min_free_of(disk);
        let too_little_free = match disk.available < min_free {
            true => min_free - disk.available + disk.size / 100 * SPARE_PERCENT,
            false => 0,
        };
        let full = match pressure {
            Pressure::Routine => 0,
            Pressure::DiskFull => FULL_DISK_ROOM,
        };
        over_budget
            .max(too_little_free.min(used.saturating_sub(KEPT_MIN)))
            .max(full)
            .min(used)
    }

    fn min_free_of(&self, disk: DiskSpace) -> u64 {
        match self.min_free {
            FreeSpace::Bytes(bytes) => bytes,
            FreeSpace::Percent(percent) => disk.size / 100 * u64::from(percent),
        }
    }

    /// After so many new bytes one should look again: a small part of the budget.
    pub(crate) fn look_after(&self) -> u64 {
        const MOST: u64 = 64 << 20;
        self.max_bytes.map_or(MOST, |max| (max / 64).min(MOST))
    }
}

impl FromStr for FreeSpace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return parse_bytes(text).map(Self::Bytes);
        };
        match percent.trim().parse() {
            Ok(percent @ 0..100) => Ok(Self::Percent(percent)),
            _ => Err(format!("{text:?} is no part of a disk: write 0% to 99%")),
        }
    }
}

impl fmt::Display for FreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// `20Gi`, `500M`, `1.5 GB` or a number of bytes, as people and Kubernetes write them.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| format!("{text:?} is no size: write 20Gi, 500M or a number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const EMPTY: DiskSpace = DiskSpace {
        size: 1000 * GIB,
        available: 900 * GIB,
    };

    #[test]
    fn sizes_are_read_as_kubernetes_and_people_write_them() {
        for (text, bytes) in [
            ("20Gi", 20 * GIB),
            ("20GiB", 20 * GIB),
            ("500M", 500_000_000),
            ("1.5 GB", 1_500_000_000),
            ("4096", 4096),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        assert_eq!("15%".parse(), Ok(FreeSpace::Percent(15)));
        assert_eq!("10Gi".parse(), Ok(FreeSpace::Bytes(10 * GIB)));
        for text in ["100%", "-1%", "%", "much", "", "10 apples"] {
            assert!(text.parse::<FreeSpace>().is_err(), "{text}");
        }
        for space in [FreeSpace::Bytes(7), FreeSpace::Percent(20)] {
            assert_eq!(space.to_string().parse(), Ok(space));
        }
    }

    #[test]
    fn a_budget_is_kept_with_a_margin() {
        let limits = CacheLimits {
            max_bytes: Some(100 * GIB),
            min_free: FreeSpace::Bytes(0),
        };
        let excess = |used| limits.excess(used, EMPTY, Pressure::Routine);
        assert_eq!((excess(0), excess(94 * GIB)), (0, 0));
        assert!(excess(96 * GIB).abs_diff(6 * GIB) < 100);
    }

    #[test]
    fn a_disk_short_of_space_gets_it_back_but_for_what_is_in_daily_use() {
        let limits = CacheLimits {
            max_bytes: None,
            min_free: FreeSpace::Percent(20),
        };
        let excess = |used, available| {
            let size = EMPTY.size;
            limits.excess(used, DiskSpace { size, available }, Pressure::Routine)
        };
        assert_eq!(excess(500 * GIB, 201 * GIB), 0);
        assert_eq!(excess(500 * GIB, 150 * GIB), 60 * GIB);
        assert_eq!(excess(20 * GIB, 150 * GIB), 19 * GIB);
        assert_eq!(excess(GIB, 0), 0);
    }

    #[test]
    fn what_fits_into_the_room_has_nothing_else_taken_away() {
        let budget = CacheLimits {
            max_bytes: Some(100 * GIB),
            min_free: FreeSpace::Bytes(0),
        };
        assert_eq!(budget.room(0, 0, EMPTY), 100 * GIB / 100 * 90);
        assert_eq!(budget.room(92 * GIB, 0, EMPTY), 0);
        assert!(budget.room(92 * GIB, 12 * GIB, EMPTY).abs_diff(10 * GIB) < 100);
        let free = CacheLimits {
            max_bytes: None,
            min_free: FreeSpace::Percent(20),
        };
        let room = |used, yielding, available| {
            let size = EMPTY.size;
            free.room(used, yielding, DiskSpace { size, available })
        };
        assert_eq!(room(500 * GIB, 0, 300 * GIB), 90 * GIB);
        assert_eq!(room(500 * GIB, 0, 200 * GIB), 0);
        assert_eq!(room(500 * GIB, 40 * GIB, 200 * GIB), 30 * GIB);
        // Others have filled the disk: so much it never takes away, and there must be space for it.
        assert_eq!(room(GIB / 4, 0, 100 * GIB), GIB - GIB / 4);
        assert_eq!(room(GIB / 4, 0, 1000), 1000);
    }

    #[test]
    fn a_full_disk_gets_room_whatever_the_limits_are() {
        let none = CacheLimits {
            max_bytes: None,
            min_free: FreeSpace::Bytes(0),
        };
        let excess = |used| none.excess(used, EMPTY, Pressure::DiskFull);
        assert_eq!((excess(GIB), excess(1000)), (FULL_DISK_ROOM, 1000));
    }
}
