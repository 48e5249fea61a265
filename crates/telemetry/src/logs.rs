//! Logs: to stderr, one line an event. `RUST_LOG` wins over every flag.

use std::{fmt, io::IsTerminal, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt as subscriber, prelude::*};

/// Whether a line that cannot be written is complained of, on the same stderr: a panic when the disk under it is full.
const COMPLAIN: bool = false;

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, message, fields.
    #[default]
    Text,
    /// For collectors: one JSON object a line, fields flattened into it.
    Json,
}

/// What was given as a log format is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFormat(String);

impl fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown log format {:?}: use text or json", self.0)
    }
}

impl std::error::Error for UnknownFormat {}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// How much is logged when `RUST_LOG` does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verbosity {
    /// Warnings and errors: a command whose output is its result.
    Quiet,
    /// What happens, in a few lines: a daemon.
    #[default]
    Normal,
    /// Also what Clip's own code does in detail (`--verbose`, `CLIP_VERBOSE=1`).
    Verbose,
}

impl Verbosity {
    /// Verbose when asked for, else `otherwise`.
    pub fn verbose_if(verbose: bool, otherwise: Self) -> Self {
        if verbose { Self::Verbose } else { otherwise }
    }

    /// Other people's crates stay at `info`: their debug lines drown ours.
    fn directives(self) -> &'static str {
        match self {
            Self::Quiet => "warn",
            Self::Normal => "info,kube_client=warn,kube_runtime=warn",
            Self::Verbose => {
                "info,kube_client=warn,kube_runtime=warn,clip=debug,clip_archive=debug,clip_cache=debug,clip_crds=debug,clip_csi_node=debug,\
                 clip_engine=debug,clip_fs=debug,clip_fuse=debug,clip_index=debug,clip_operator=debug,clip_registry=debug,\
                 clip_seek=debug,clip_serve=debug,clip_telemetry=debug"
            }
        }
    }
}

/// Starts logging to stderr. Call once, first thing in `main`; a second call changes nothing.
pub fn init(verbosity: Verbosity, format: Format) {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::new(directives),
        _ => EnvFilter::new(verbosity.directives()),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        Format::Text => {
            let layer = subscriber::layer()
                .with_writer(std::io::stderr)
                .log_internal_errors(COMPLAIN)
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(verbosity == Verbosity::Verbose);
            registry.with(layer).try_init()
        }
        Format::Json => {
            let layer = subscriber::layer()
                .json()
                .flatten_event(true)
                .log_internal_errors(COMPLAIN)
                .with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was already initialised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_text_or_json_and_nothing_else() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("text".parse(), Ok(Format::Text));
        let refused = "xml".parse::<Format>().map_err(|e| e.to_string());
        assert_eq!(
            refused,
            Err("unknown log format \"xml\": use text or json".to_owned())
        );
    }

    #[test]
    fn every_verbosity_is_a_filter_that_parses() {
        for verbosity in [Verbosity::Quiet, Verbosity::Normal, Verbosity::Verbose] {
            assert!(
                EnvFilter::try_new(verbosity.directives()).is_ok(),
                "{verbosity:?}"
            );
        }
    }
}
