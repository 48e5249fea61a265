//! What a stranger reads, kept as golden transcripts for review in `e2e/golden`: what varies from run
//! to run (ages, digests, sizes, times, names made up by Kubernetes) is replaced.

use crate::kube::{Namespace, REGISTRY};
use expect_test::expect_file;
use serde_json::json;

#[test]
fn s11_an_indexed_image_reads_well() {
    let ns = Namespace::new("reads-well");
    ns.clip_image(
        "python-app",
        json!({"image": format!("{REGISTRY}/demo/python-app:1")}),
    );
    ns.wait_ready("python-app");
    let get = ns.kubectl(&["get", "clipimages"]).unwrap();
    let describe = ns
        .kubectl(&["describe", "clipimage", "python-app"])
        .unwrap();
    expect_file!["../../golden/get-clipimages.txt"].assert_eq(&normalise(&get, &ns.0));
    expect_file!["../../golden/describe-ready.txt"].assert_eq(&normalise(&describe, &ns.0));
}

#[test]
fn s11_a_failed_image_reads_well() {
    let ns = Namespace::new("reads-well");
    ns.clip_image(
        "typo",
        json!({"image": format!("{REGISTRY}/demo/no-such-image:1")}),
    );
    ns.wait_reason("typo", "ImageNotFound");
    let describe = ns.kubectl(&["describe", "clipimage", "typo"]).unwrap();
    expect_file!["../../golden/describe-image-not-found.txt"]
        .assert_eq(&normalise(&describe, &ns.0));
}

#[test]
fn s11_a_waiting_pods_event_reads_well() {
    let ns = Namespace::new("reads-well");
    ns.clip_image(
        "later",
        json!({"image": format!("{REGISTRY}/demo/alpine-like:1"), "suspend": true}),
    );
    ns.pod("early", json!({"clipImage": "later"}), "true");
    ns.pod("typo", json!({"clipimage": "later"}), "true");
    for (pod, file) in [
        ("early", "event-suspended.txt"),
        ("typo", "event-unknown-attribute.txt"),
    ] {
        let failed =
            |event: &str| event.contains("FailedMount") && event.contains(&format!(" {pod} "));
        let events = ns.wait_event_of(pod, "FailedMount");
        let line = events
            .lines()
            .find(|line| failed(line))
            .unwrap_or_else(|| panic!("{events}"));
        let path = format!("{}/golden/{file}", env!("CARGO_MANIFEST_DIR"));
        expect_file![path].assert_eq(&format!(
            "{}\n",
            normalise(line, &ns.0)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        ));
    }
}

/// Replaces what varies, word by word; runs of blanks become one so that columns may move.
fn normalise(text: &str, namespace: &str) -> String {
    let mut out = String::new();
    for line in text.replace(namespace, "NAMESPACE").lines() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<String> = line.split_whitespace().map(word).collect();
        out.push_str(&" ".repeat(indent));
        out.push_str(&words.join(" "));
        out.push('\n');
    }
    out
}

fn word(word: &str) -> String {
    let digits = word.chars().filter(char::is_ascii_digit).count();
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let is_hex =
        |text: &str| text.len() >= 10 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if word.contains("sha256:") {
        let at = word.find("sha256:").unwrap_or(0);
        return format!("{}sha256:DIGEST", &word[..at]);
    }
    if let Some(name) = bare.strip_prefix("clip-index-") {
        return word.replace(name, "HASH");
    }
    if is_hex(bare) && digits > 0 {
        return word.replace(bare, "ID");
    }
    let is_age = bare.ends_with(['s', 'm', 'h', 'x'])
        && bare
            .trim_end_matches(char::is_alphabetic)
            .parse::<f64>()
            .is_ok();
    let is_time = bare.contains('T') && bare.ends_with('Z') && digits >= 8;
    if is_time || is_age {
        return word.replace(bare, if is_time { "TIME" } else { "N" });
    }
    match bare.parse::<f64>() {
        Ok(_) => word.replace(bare, "N"),
        Err(_) => word.to_owned(),
    }
}
