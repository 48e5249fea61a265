//! What a node fetches of an image before anybody reads it.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node fetches before anybody reads it. What readers wait for always goes first.
#[derive(
    Serialize,
    Deserialize,
    JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub enum Prefetch {
    /// Nothing.
    None,
    /// What earlier starts of the image read first, as other nodes recorded it.
    #[default]
    Profile,
    /// That, and then all the rest, while nobody waits: afterwards the registry may be gone.
    All,
}

impl FromStr for Prefetch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "None" => Ok(Self::None),
            "Profile" => Ok(Self::Profile),
            "All" => Ok(Self::All),
            _ => Err(()),
        }
    }
}
