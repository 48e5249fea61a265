//! Content digests: `sha256:` and 64 lower-case hexadecimal digits, checked where they enter.
//!
//! A [`Digest`] names blobs, cache files and URLs, so a value that parsed can be put into a path or an
//! address without further thought. Registries in the field use sha256 alone; anything else is refused by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The digest of some content, as image manifests write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

const PREFIX: &str = "sha256:";

impl Digest {
    /// The digest of `content`.
    pub fn sha256_of(content: &[u8]) -> Digest {
        Digest::from_sha256(Sha256::digest(content).into())
    }

    /// The digest whose 32 bytes somebody else computed, in a stream for instance.
    pub fn from_sha256(bytes: [u8; 32]) -> Digest {
        Digest(format!("{PREFIX}{}", hex::encode(bytes)))
    }

    /// The 64 hexadecimal digits after `sha256:`.
    pub fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }

    /// The 32 bytes that the hexadecimal digits stand for.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        hex::decode_to_slice(self.hex(), &mut bytes).expect("checked when parsed");
        bytes
    }
}

/// Why some text is not a [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: {problem} (example: sha256:{})", "ab".repeat(32))]
pub struct DigestError {
    text: String,
    problem: &'static str,
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let error = |problem| DigestError {
            text: text.to_owned(),
            problem,
        };
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(error("it lacks the algorithm"));
        };
        if algorithm != "sha256" {
            return Err(error("only sha256 is supported"));
        }
        if hex.len() != 64 {
            return Err(error("sha256 has 64 hexadecimal digits"));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error("its digits must be 0-9 and a-f"));
        }
        Ok(Digest(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Digest, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        let digest = Digest::sha256_of(b"");
        assert_eq!(
            digest.hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.to_string().parse(), Ok(digest.clone()));
        assert_eq!(Digest::from_sha256(digest.to_bytes()), digest);
    }

    #[test]
    fn a_malformed_digest_is_refused_by_name() {
        for (text, problem) in [
            ("e3b0", "it lacks the algorithm"),
            ("sha512:e3b0", "only sha256 is supported"),
            ("sha256:e3b0", "sha256 has 64 hexadecimal digits"),
            (
                &format!("sha256:{}", "AB".repeat(32)),
                "its digits must be 0-9 and a-f",
            ),
            (
                &format!("sha256:{}", "/.".repeat(32)),
                "its digits must be 0-9 and a-f",
            ),
        ] {
            let error = text.parse::<Digest>().unwrap_err();
            assert_eq!(error.problem, problem, "{text}");
        }
    }
}
