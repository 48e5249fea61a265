//! Every promise that `docs/semantics.md` makes in bold is quoted by a test, in the comment above it.

use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn every_promise_is_quoted_by_a_test() {
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/semantics.md")).unwrap();
    let promises: Vec<String> = page
        .split("**")
        .skip(1)
        .step_by(2)
        .map(|promise| promise.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert!(promises.len() > 15, "{promises:?}");
    let mut tests = String::new();
    for part in ["cli/tests", "crates", "csi-node/tests", "operator"] {
        collect(&Path::new(ROOT).join(part), &mut tests);
    }
    let quoted = |promise: &String| {
        let quote = format!("/// docs/semantics.md: \"{promise}\".");
        let mut places = tests.match_indices(&quote);
        places.any(|(at, _)| {
            let next = tests[at + quote.len()..].trim_start();
            next.starts_with("#[") || next.starts_with("/// docs/semantics.md: ")
        })
    };
    let broken: Vec<&String> = promises.iter().filter(|promise| !quoted(promise)).collect();
    assert!(broken.is_empty(), "no test quotes {broken:#?}");
}

fn collect(dir: &Path, tests: &mut String) {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    for path in paths {
        if path.is_dir() {
            collect(&path, tests);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            tests.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
