//! What registries send and users write about images: manifests, indexes, configurations, artifacts, references,
//! challenges, tokens, docker configurations. The first byte chooses which.

use clip_registry::{
    Descriptor, Digest, ImageSource, Index, Manifest, Platform, Reference, Repository, untrusted,
};
use std::fmt::Display;
use std::str::FromStr;

/// The target.
pub fn run(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    match choice % 8 {
        0 => documents(rest),
        1 => drop(untrusted::is_configuration(rest)),
        2 => {
            stays_the_same::<Reference>(&text);
            stays_the_same::<Platform>(&text);
            stays_the_same::<Digest>(&text);
            let _ = text.parse::<ImageSource>();
        }
        3 => {
            let values: Vec<&[u8]> = rest.split(|&byte| byte == b'\n').collect();
            let _ = untrusted::is_challenge(&values);
        }
        4 => drop(untrusted::is_token(rest)),
        5 => {
            let (name, config) = text.split_once('\n').unwrap_or(("alpine", &text));
            if let Ok(reference) = name.parse::<Reference>() {
                let _ = untrusted::has_login(config.as_bytes(), reference.in_repository());
            }
        }
        6 => {
            let (registry, name) = text.split_once(' ').unwrap_or(("docker.io", &text));
            if let Ok(repository) = Repository::new(registry, name) {
                // An archive names its repository; nobody may climb out of it, into another URL.
                assert!(!repository.name().split('/').any(|part| part == ".."));
                assert!(!repository.to_string().contains(['?', '#', '%', ' ', '\n']));
            }
        }
        _ => {
            let _ =
                Platform::host().distance_to(&text.parse().unwrap_or_else(|_| Platform::host()));
        }
    }
}

fn documents(body: &[u8]) {
    let (content_type, body) = match body.iter().position(|&byte| byte == b'\n') {
        Some(end) => (std::str::from_utf8(&body[..end]).ok(), &body[end + 1..]),
        None => (None, body),
    };
    let _ = untrusted::document(body, content_type.filter(|text| !text.is_empty()));
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(body) {
        let written = serde_json::to_vec(&manifest).expect("plain data");
        let again: Manifest = serde_json::from_slice(&written).expect("what was written is read");
        assert_eq!(again, manifest);
    }
    if let Ok(index) = serde_json::from_slice::<Index>(body) {
        let host = Platform::host();
        for platform in index
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
        {
            let _ = host.distance_to(platform);
        }
    }
    let _ = serde_json::from_slice::<Descriptor>(body);
}

/// What is parsed and written is parsed to the same.
fn stays_the_same<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let written = value.to_string();
        let again = written.parse::<T>().ok();
        assert_eq!(
            again.as_ref(),
            Some(&value),
            "{text:?} is written {written:?}"
        );
    }
}
