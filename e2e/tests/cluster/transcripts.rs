//! What a stranger reads, kept as golden transcripts for review in `e2e/golden` (`UPDATE_EXPECT=1 make e2e` rewrites
//! them): what varies from run to run (ages, digests, sizes, times, names made up by Kubernetes) is replaced.

use crate::kube::{Namespace, PRIVATE_REGISTRY, REGISTRY, eventually, kubectl};
use expect_test::expect_file;
use serde_json::json;

#[test]
fn s11_an_indexed_image_and_a_pod_that_reads_it_read_well() {
    let ns = Namespace::new("reads-well");
    ns.clip_image(
        "python-app",
        json!({"image": format!("{REGISTRY}/demo/python-app:1")}),
    );
    wait_told(&ns, "python-app");
    ns.pod(
        "reader",
        json!({"clipImage": "python-app"}),
        "cat /image/etc/hostname; echo done; sleep 1000000",
    );
    ns.wait_log("reader", "done");
    let job = ns
        .kubectl(&["get", "jobs", "-o", "name"])
        .unwrap()
        .trim()
        .to_owned();
    let commands = [
        ("get-clipimages.txt", &["get", "clipimages"][..]),
        (
            "get-clipimages-wide.txt",
            &["get", "clipimages", "-o", "wide"],
        ),
        (
            "describe-ready.txt",
            &["describe", "clipimage", "python-app"],
        ),
        (
            "events-ready.txt",
            &["events", "--for=clipimage/python-app"],
        ),
    ];
    for (file, words) in commands {
        golden(file, &normalise(&ns.kubectl(words).unwrap(), &ns.0));
    }
    // How often it says how far it is depends on the machine.
    let log = ns.kubectl(&["logs", &job]).unwrap();
    let log = lines(&log, |line| !line.starts_with("indexed "));
    golden("job-log.txt", &normalise(&log, &ns.0));
    let log = kubectl(&["-n", "clip-system", "logs", "deployment/clip-operator"]).unwrap();
    let log = lines(&log, |line| line.contains(&ns.0));
    golden("operator-log.txt", &normalise(&log, &ns.0));
}

#[test]
fn s11_the_api_explains_itself() {
    golden(
        "explain-spec.txt",
        &kubectl(&["explain", "clipimage.spec"]).unwrap(),
    );
}

#[test]
fn s11_a_failed_image_reads_well() {
    let ns = Namespace::new("reads-well");
    ns.clip_image(
        "typo",
        json!({"image": format!("{REGISTRY}/demo/no-such-image:1")}),
    );
    ns.wait_reason("typo", "ImageNotFound");
    ns.wait_event_of("typo", "IndexFailed");
    let describe = ns.kubectl(&["describe", "clipimage", "typo"]).unwrap();
    golden("describe-image-not-found.txt", &normalise(&describe, &ns.0));
    let get = ns.kubectl(&["get", "clipimages"]).unwrap();
    golden("get-image-not-found.txt", &normalise(&get, &ns.0));
}

#[test]
fn s11_the_events_of_pods_that_wait_read_well() {
    let ns = Namespace::new("reads-well");
    let busybox = format!("{REGISTRY}/demo/busybox:1");
    let nowhere = json!({"job": {"nodeSelector": {"clip.dev/nowhere": "yes"}}});
    ns.clip_image("suspended", json!({"image": busybox, "suspend": true}));
    ns.clip_image("waiting", json!({"image": busybox, "index": nowhere}));
    ns.clip_image(
        "typo",
        json!({"image": format!("{REGISTRY}/demo/no-such-image:1")}),
    );
    ns.clip_image(
        "private",
        json!({"image": format!("{PRIVATE_REGISTRY}/demo/busybox:1")}),
    );
    ns.wait_reason("waiting", "JobPending");
    ns.wait_reason("typo", "ImageNotFound");
    ns.wait_reason("private", "Unauthorized");
    let pods = [
        ("suspended", json!({"clipImage": "suspended"})),
        ("waiting", json!({"clipImage": "waiting"})),
        ("image-not-found", json!({"clipImage": "typo"})),
        ("no-login", json!({"clipImage": "private"})),
        ("no-such-clipimage", json!({"clipImage": "nobody"})),
        ("no-clipimage-for-it", json!({"image": "alpine:3.20"})),
        ("unknown-attribute", json!({"clipimage": "suspended"})),
        (
            "two-images",
            json!({"clipImage": "suspended", "image": busybox}),
        ),
    ];
    let mut transcript = String::new();
    for (name, attributes) in &pods {
        ns.pod(name, attributes.clone(), "true");
    }
    for (name, attributes) in &pods {
        let events = ns.wait_event_of(name, "FailedMount");
        let of_pod =
            |line: &&str| line.contains("FailedMount") && line.contains(&format!(" {name} "));
        let event = events
            .lines()
            .find(of_pod)
            .unwrap_or_else(|| panic!("{events}"));
        transcript += &format!(
            "volumeAttributes: {attributes}\n{}\n",
            normalise(event, &ns.0)
        );
    }
    golden("events-of-waiting-pods.txt", &transcript);
}

/// Waits until the Job has told all that the status can say: it reports its time after the upload that makes the image
/// Ready.
fn wait_told(ns: &Namespace, name: &str) {
    ns.wait_ready(name);
    eventually("the Job has told how long it took", || {
        let image = ns.get_clip_image(name);
        let told = image["status"]["summary"]["indexDuration"].is_string();
        let ended = image["status"]["job"]["phase"] == "Succeeded";
        match told && ended {
            true => Ok(()),
            false => Err(format!("{:#}", image["status"])),
        }
    });
}

fn golden(file: &str, text: &str) {
    let path = format!("{}/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    expect_file![path].assert_eq(text);
}

fn lines(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let lines = text.lines().filter(|line| wanted(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Replaces what varies, word by word; runs of blanks become one so that columns may move.
fn normalise(text: &str, namespace: &str) -> String {
    let mut out = String::new();
    for line in text.replace(namespace, "NAMESPACE").lines() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<String> = line.split_whitespace().map(word).collect();
        out.push_str(&" ".repeat(indent));
        // How long something took decides in which unit it is told.
        out.push_str(&words.join(" ").replace("N ms", "N s"));
        out.push('\n');
    }
    out
}

fn word(word: &str) -> String {
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let digits = bare.chars().filter(char::is_ascii_digit).count();
    if let Some(at) = word.find("sha256:") {
        let rest = word[at + "sha256:".len()..].trim_start_matches(|c: char| c.is_ascii_hexdigit());
        return format!("{}sha256:DIGEST{rest}", &word[..at]);
    }
    if let Some(at) = bare.find("clip-index-") {
        let name = bare[at + "clip-index-".len()..].split(['"', '/']).next();
        return word.replace(name.unwrap_or_default(), "HASH");
    }
    let is_hex = bare.len() >= 10 && bare.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if is_hex && digits > 0 {
        return word.replace(bare, "ID");
    }
    if bare.contains('T') && bare.ends_with('Z') && digits >= 8 {
        return word.replace(bare, "TIME");
    }
    if let Some((name, value)) = word.split_once('=')
        && value.parse::<f64>().is_ok()
    {
        return format!("{name}=N");
    }
    let is_age = bare.ends_with(['s', 'm', 'h', 'x'])
        && bare
            .chars()
            .all(|c| c.is_ascii_digit() || "smhx.".contains(c))
        && digits > 0;
    if is_age || bare.replace(',', "").parse::<f64>().is_ok() {
        return word.replace(bare, "N");
    }
    word.to_owned()
}
