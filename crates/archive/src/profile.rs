//! [`StartProfile`]: which spans a container reads first, in order. Recorded on one node, replayed by the next.
//!
//! ```json
//! {"version": 1, "starts": 3, "touches": [
//!   {"section": "sha256:31f9…", "starts": 3, "spans": [[0, 2], [17, 1]]},
//!   {"section": "sha256:77a0…", "starts": 3, "spans": [[3, 1]]},
//!   {"section": "sha256:31f9…", "starts": 1, "spans": [[2, 1]]}]}
//! ```
//!
//! A touch names the layer's *section* (its positions depend on where the indexer cut), runs of spans, `[first,
//! count]`, and in how many of the recorded starts they were touched. So a profile stays good for those layers that a
//! rebuilt image still has, and says nothing of the others.
//!
//! It is a hint. Whoever reads it believes nothing: spans that do not exist are passed over, and what is fetched is
//! checked like everything else.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

/// The version that is written.
const VERSION: u32 = 1;
/// The longest profile that is read, in bytes.
pub const PROFILE_BYTES_MAX: usize = 4 << 20;
/// The most spans that a profile names: 64 GiB at 2 MiB each. However they lie, they fit into [`PROFILE_BYTES_MAX`].
const SPANS_MAX: usize = 1 << 15;

/// Spans in the order of their first touch, none twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartProfile {
    /// How many recorded starts are in it.
    starts: u32,
    touches: Vec<Touch>,
    /// For each touch: in how many of the starts.
    counts: Vec<u32>,
}

/// A span of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Touch {
    /// Digest of the layer's section ([`crate::LayerRef::section_digest`]).
    pub section: Digest,
    /// The span's number in the section.
    pub span: u32,
}

/// Why a profile cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON of a profile.
    #[error("it is not a start profile: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Made by a later version.
    #[error(
        "it is a start profile of version {0}, and this program reads version {VERSION}: update clip"
    )]
    Version(u32),
    /// A section is not named by a digest.
    #[error(transparent)]
    Section(#[from] crate::digest::InvalidDigest),
    /// Longer than any image needs.
    #[error("it names more than {SPANS_MAX} spans, or has more than {PROFILE_BYTES_MAX} bytes")]
    TooLong,
}

/// What is looked at first.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    starts: u32,
    touches: Vec<Stretch>,
}

/// Touches of one layer that followed each other.
#[derive(Serialize, Deserialize)]
struct Stretch {
    section: String,
    starts: u32,
    spans: Vec<(u32, u32)>,
}

impl StartProfile {
    /// The profile of one start with these touches; of several of one span the first counts.
    pub fn new(touches: impl IntoIterator<Item = Touch>) -> Self {
        let mut seen = HashSet::new();
        let touches = touches.into_iter().filter(|touch| seen.insert(*touch));
        let touches: Vec<Touch> = touches.take(SPANS_MAX).collect();
        Self {
            starts: 1,
            counts: vec![1; touches.len()],
            touches,
        }
    }

    /// Reads a profile from strangers.
    pub fn parse(json: &[u8]) -> Result<Self, ProfileError> {
        if json.len() > PROFILE_BYTES_MAX {
            return Err(ProfileError::TooLong);
        }
        let Version { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(ProfileError::Version(version));
        }
        let document: Document = serde_json::from_slice(json)?;
        let mut profile = Self {
            starts: document.starts,
            ..Self::default()
        };
        let mut seen = HashSet::new();
        for stretch in document.touches {
            let section: Digest = stretch.section.parse()?;
            for (first, count) in stretch.spans {
                if count as usize > SPANS_MAX - profile.touches.len() {
                    return Err(ProfileError::TooLong);
                }
                for span in first..first.saturating_add(count) {
                    let touch = Touch { section, span };
                    if seen.insert(touch) {
                        profile.touches.push(touch);
                        profile.counts.push(stretch.starts);
                    }
                }
            }
        }
        Ok(profile)
    }

    /// The profile as it is kept and sent.
    pub fn to_json(&self) -> Vec<u8> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut last: Option<(Digest, u32)> = None;
        for (touch, &starts) in self.touches.iter().zip(&self.counts) {
            if last != Some((touch.section, starts)) {
                stretches.push(Stretch {
                    section: touch.section.to_string(),
                    starts,
                    spans: Vec::new(),
                });
            }
            let spans = &mut stretches.last_mut().expect("just pushed").spans;
            match spans.last_mut() {
                Some((first, count)) if *first + *count == touch.span => *count += 1,
                _ => spans.push((touch.span, 1)),
            }
            last = Some((touch.section, starts));
        }
        let document = Document {
            version: VERSION,
            starts: self.starts,
            touches: stretches,
        };
        serde_json::to_vec(&document).expect("strings and numbers are JSON")
    }

    /// What several starts have in common: spans that more of them touched come before those that fewer did, and among
    /// these the ones that were touched earlier in any of them.
    pub fn merge<'a>(profiles: impl IntoIterator<Item = &'a StartProfile>) -> Self {
        let mut ranks: HashMap<Touch, (u32, usize)> = HashMap::new();
        let mut starts = 0_u32;
        for profile in profiles {
            starts = starts.saturating_add(profile.starts);
            let touches = profile.touches.iter().zip(&profile.counts);
            for (rank, (touch, count)) in touches.enumerate() {
                let (times, earliest) = ranks.entry(*touch).or_insert((0, usize::MAX));
                *times = times.saturating_add(*count);
                *earliest = rank.min(*earliest);
            }
        }
        let mut merged: Vec<(Touch, (u32, usize))> = ranks.into_iter().collect();
        merged.sort_by_key(|(touch, (times, earliest))| {
            (Reverse(*times), *earliest, touch.section, touch.span)
        });
        merged.truncate(SPANS_MAX);
        Self {
            starts,
            touches: merged.iter().map(|(touch, _)| *touch).collect(),
            counts: merged.iter().map(|(_, (times, _))| *times).collect(),
        }
    }

    /// The same touches as those of one start, whatever it says of itself.
    pub fn as_one_start(self) -> Self {
        Self::new(self.touches)
    }

    /// How many recorded starts are in it.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// The touches, first ones first.
    pub fn touches(&self) -> &[Touch] {
        &self.touches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(layer: u8, span: u32) -> Touch {
        Touch {
            section: Digest::from_bytes([layer; 32]),
            span,
        }
    }

    #[test]
    fn a_profile_survives_being_written_and_read() {
        let touches = [
            touch(1, 4),
            touch(1, 5),
            touch(2, 0),
            touch(1, 0),
            touch(1, 4),
        ];
        let profile = StartProfile::new(touches);
        assert_eq!(profile.touches(), &touches[..4], "no span twice");
        let json = profile.to_json();
        assert_eq!(StartProfile::parse(&json).unwrap(), profile);
        let text = String::from_utf8(json).unwrap();
        assert!(
            text.contains(r#""spans":[[4,2]]"#),
            "runs are short: {text}"
        );
    }

    #[test]
    fn what_all_starts_touched_comes_first() {
        let one = StartProfile::new([touch(1, 0), touch(1, 9), touch(1, 2)]);
        let other = StartProfile::new([touch(1, 7), touch(1, 2), touch(1, 0)]);
        let merged = StartProfile::merge([&one, &other]);
        assert_eq!(
            merged.touches(),
            [touch(1, 0), touch(1, 2), touch(1, 7), touch(1, 9)]
        );
        assert_eq!(StartProfile::merge([&other, &one]), merged);
        assert_eq!(merged.starts(), 2);
    }

    #[test]
    fn starts_that_are_merged_one_by_one_count_like_all_at_once() {
        let starts = [[0, 1, 2], [1, 2, 3], [1, 3, 4]]
            .map(|spans| StartProfile::new(spans.map(|span| touch(1, span))));
        let at_once = StartProfile::merge(&starts);
        let one_by_one = starts.iter().fold(StartProfile::default(), |known, start| {
            let json = StartProfile::merge([&known, start]).to_json();
            StartProfile::parse(&json).unwrap()
        });
        assert_eq!(one_by_one.starts(), 3);
        let common = |profile: &StartProfile| profile.touches()[0];
        assert_eq!(common(&at_once), touch(1, 1));
        assert_eq!(common(&one_by_one), touch(1, 1), "in all three");
        let rare = |profile: &StartProfile| {
            let mut rare: Vec<u32> = profile.touches()[3..].iter().map(|t| t.span).collect();
            rare.sort_unstable();
            rare
        };
        assert_eq!(rare(&at_once), rare(&one_by_one), "in one each");
    }

    #[test]
    fn the_longest_profile_can_be_read_again() {
        let spans = (0..2 * SPANS_MAX as u32).map(|span| touch((span % 2) as u8, 3 * span));
        let profile = StartProfile::new(spans);
        assert_eq!(profile.touches().len(), SPANS_MAX);
        assert_eq!(StartProfile::parse(&profile.to_json()).unwrap(), profile);
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let section = Digest::from_bytes([1; 32]).to_string();
        let with = |spans: &str| {
            format!(
                r#"{{"version":1,"starts":1,"touches":[{{"section":"{section}","starts":1,"spans":[{spans}]}}]}}"#
            )
        };
        let refusal = |json: &str| StartProfile::parse(json.as_bytes()).unwrap_err();
        assert!(matches!(refusal("["), ProfileError::Syntax(_)));
        assert!(matches!(refusal("{}"), ProfileError::Syntax(_)));
        assert!(matches!(
            refusal(r#"{"version":2}"#),
            ProfileError::Version(2)
        ));
        assert!(matches!(
            refusal(&with("[0,4294967295]")),
            ProfileError::TooLong
        ));
        assert!(matches!(
            refusal(&with("[0,1]").replace("sha256", "md5")),
            ProfileError::Section(_)
        ));
        let long = StartProfile::parse(&vec![b' '; PROFILE_BYTES_MAX + 1]);
        assert!(matches!(long, Err(ProfileError::TooLong)));
        let last = StartProfile::parse(with("[4294967295,1]").as_bytes()).unwrap();
        assert!(last.touches().len() <= 1, "no overflow");
    }
}
