//! [`StartProfile`]: which spans a container reads first, in order. Recorded on one node, replayed by the next.
//!
//! ```json
//! {"version": 1, "starts": 3, "touches": [
//!   {"section": "sha256:31f9…", "spans": [[0, 2], [17, 1]]},
//!   {"section": "sha256:77a0…", "spans": [[3, 1]]},
//!   {"section": "sha256:31f9…", "spans": [[2, 1]]}]}
//! ```
//!
//! A touch names the layer's *section* (its positions depend on where the indexer cut) and runs of spans, `[first,
//! count]`. So a profile stays good for those layers that a rebuilt image still has, and says nothing of the others.
//!
//! It is a hint. Whoever reads it believes nothing: spans that do not exist are passed over, and what is fetched is
//! checked like everything else.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The version that is written.
const VERSION: u32 = 1;
/// The longest profile that is read, in bytes.
pub const PROFILE_BYTES_MAX: usize = 4 << 20;
/// The most spans that a profile names: 1 TiB at 1 MiB each.
const SPANS_MAX: usize = 1 << 20;

/// Spans in the order of their first touch, none twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartProfile {
    /// How many recorded starts are in it.
    starts: u32,
    touches: Vec<Touch>,
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
    spans: Vec<(u32, u32)>,
}

impl StartProfile {
    /// The profile of one start with these touches; of several of one span the first counts.
    pub fn new(touches: impl IntoIterator<Item = Touch>) -> Self {
        let mut seen = std::collections::HashSet::new();
        let touches = touches.into_iter().filter(|touch| seen.insert(*touch));
        Self {
            starts: 1,
            touches: touches.collect(),
        }
    }

    /// Reads a profile from strangers.
    pub fn parse(json: &[u8]) -> Result<Self, ProfileError> {
        if json.len() > PROFILE_BYTES_MAX {
            return Err(ProfileError::TooLong);
        }
        let version = |value: &serde_json::Value| value.get("version")?.as_u64();
        let value: serde_json::Value = serde_json::from_slice(json)?;
        if let Some(found) = version(&value).filter(|&found| found != u64::from(VERSION)) {
            return Err(ProfileError::Version(
                u32::try_from(found).unwrap_or(u32::MAX),
            ));
        }
        let document: Document = serde_json::from_value(value)?;
        let mut touches = Vec::new();
        for stretch in document.touches {
            let section: Digest = stretch.section.parse()?;
            for (first, count) in stretch.spans {
                if count as usize > SPANS_MAX - touches.len() {
                    return Err(ProfileError::TooLong);
                }
                let spans = first..first.saturating_add(count);
                touches.extend(spans.map(|span| Touch { section, span }));
            }
        }
        Ok(Self {
            starts: document.starts,
            ..Self::new(touches)
        })
    }

    /// The profile as it is kept and sent.
    pub fn to_json(&self) -> Vec<u8> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut last: Option<Touch> = None;
        for touch in &self.touches {
            if last.is_none_or(|last| last.section != touch.section) {
                stretches.push(Stretch {
                    section: touch.section.to_string(),
                    spans: Vec::new(),
                });
            }
            let spans = &mut stretches.last_mut().expect("just pushed").spans;
            match spans.last_mut() {
                Some((first, count)) if *first + *count == touch.span => *count += 1,
                _ => spans.push((touch.span, 1)),
            }
            last = Some(*touch);
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
        let mut ranks: HashMap<Touch, (usize, usize)> = HashMap::new();
        let mut starts = 0_u32;
        for profile in profiles {
            starts = starts.saturating_add(profile.starts);
            for (rank, touch) in profile.touches.iter().enumerate() {
                let (times, earliest) = ranks.entry(*touch).or_insert((0, usize::MAX));
                *times += 1;
                *earliest = rank.min(*earliest);
            }
        }
        let mut merged: Vec<(Touch, (usize, usize))> = ranks.into_iter().collect();
        merged.sort_by_key(|(touch, (times, earliest))| {
            (
                std::cmp::Reverse(*times),
                *earliest,
                touch.section,
                touch.span,
            )
        });
        Self {
            starts,
            touches: merged.into_iter().map(|(touch, _)| touch).collect(),
        }
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
    fn what_is_no_profile_is_refused() {
        let section = Digest::from_bytes([1; 32]).to_string();
        let with = |spans: &str| {
            format!(
                r#"{{"version":1,"starts":1,"touches":[{{"section":"{section}","spans":[{spans}]}}]}}"#
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
