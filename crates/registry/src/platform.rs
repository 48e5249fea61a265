//! Platforms (`linux/arm64/v8`) and which of an index's manifests suits one.
//!
//! Names and defaults follow containerd's `platforms` package: `aarch64` is `arm64`, `arm64` means `v8`,
//! `arm` means `v7`, `amd64` means `v1`; a CPU also runs what was built for its architecture's older variants.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system, a CPU architecture and, for some, the CPU's variant; in Go's names (`GOOS`, `GOARCH`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// `v7` of `linux/arm/v7`. `None` is the architecture's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Platform {
        Platform::normalised(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// A platform from names as they are found in manifests and on command lines.
    pub fn normalised(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let (os, architecture) = (os.to_lowercase(), architecture.to_lowercase());
        let variant = variant.unwrap_or_default().to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            ("i386" | "x86", variant) => ("386", variant),
            ("powerpc64", variant) if cfg!(target_endian = "little") => ("ppc64le", variant),
            ("loongarch64", variant) => ("loong64", variant),
            (architecture, variant) => (architecture, variant),
        };
        let os = if os == "macos" { "darwin" } else { &os };
        Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: Some(variant.to_owned()).filter(|v| !v.is_empty()),
        }
    }

    /// Whether an image for `candidate` runs here, and how well: 0 is an exact match, each older variant one more.
    pub fn distance_to(&self, candidate: &Platform) -> Option<u32> {
        let wanted = Platform::normalised(&self.os, &self.architecture, self.variant.as_deref());
        let offered = Platform::normalised(
            &candidate.os,
            &candidate.architecture,
            candidate.variant.as_deref(),
        );
        if (&wanted.os, &wanted.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        if wanted.variant == offered.variant {
            return Some(0);
        }
        wanted.level()?.checked_sub(offered.level()?)
    }

    /// The variant as a number that grows with what the CPU can do.
    fn level(&self) -> Option<u32> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("amd64", None) => Some(1),
            ("arm64", None) => Some(8),
            ("amd64" | "arm64" | "arm", Some(variant)) => variant.strip_prefix('v')?.parse().ok(),
            _ => None,
        }
    }
}

/// Why some text is not a [`Platform`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a platform: write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT (examples: linux/amd64, linux/arm/v7)"
)]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let good = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        match parts[..] {
            [os, architecture] if parts.iter().all(good) => {
                Ok(Platform::normalised(os, architecture, None))
            }
            [os, architecture, variant] if parts.iter().all(good) => {
                Ok(Platform::normalised(os, architecture, Some(variant)))
            }
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn other_names_of_an_architecture_are_understood() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/s390x", "linux/s390x"),
        ] {
            assert_eq!(platform(text).to_string(), normal);
        }
        assert_eq!(Platform::host().os, "linux");
    }

    #[test]
    fn a_cpu_runs_older_variants_of_its_own_architecture() {
        let distance = |wanted, offered| platform(wanted).distance_to(&platform(offered));
        assert_eq!(distance("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(distance("linux/arm/v7", "linux/arm/v6"), Some(1));
        assert_eq!(distance("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(distance("linux/amd64/v3", "linux/amd64"), Some(2));
        assert_eq!(distance("linux/amd64", "linux/amd64/v2"), None);
        assert_eq!(distance("linux/amd64", "linux/arm64"), None);
        assert_eq!(distance("linux/amd64", "windows/amd64"), None);
    }

    #[test]
    fn a_malformed_platform_is_refused_with_an_example() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux/a b",
        ] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains("linux/arm/v7"), "{error}");
        }
    }
}
