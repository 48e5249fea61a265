//! What is in the folder after a crash, and what is believed of it.

use std::io::Write;

use super::*;

pub(crate) fn record(uid: &str, digest: Digest, size: u64) -> Record {
    Record {
        uid: uid.into(),
        image: format!("default/{uid}"),
        digest: digest.to_string(),
        size,
        content_key: "k".into(),
        requested_at: None,
        job: "j".into(),
        platform: "linux/amd64".into(),
        manifest_digest: Digest::of(b"manifest").to_string(),
        format_version: 3,
        files: 1,
        layers: 1,
        compressed_bytes: 1,
        unpacked_bytes: 1,
        duration_ms: None,
        created: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
        publication: None,
    }
}

/// Puts `content` into the store as if it had been uploaded for `uid`.
pub(crate) fn keep(store: &Store, uid: &str, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    let mut upload = store.new_upload().expect("a file");
    upload.write_all(content).expect("room");
    store.keep(upload, digest).expect("kept");
    store
        .write_record(&record(uid, digest, content.len() as u64))
        .expect("written");
    digest
}

#[test]
fn a_record_counts_only_while_its_archive_is_there_in_full_length() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opened");
    let digest = keep(&store, "u1", b"archive");
    let record = store.record("u1").expect("a record");
    assert!(store.holds(&record));
    fs::write(store.archive_path(digest), b"arch").expect("truncated");
    assert!(!store.holds(&record));
    store.remove_archive(digest).expect("removed");
    store
        .remove_archive(digest)
        .expect("removing twice is fine");
    assert!(!store.holds(&record));
}

#[test]
fn what_a_crash_left_half_done_is_swept_and_never_listed() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join(".upload-abc"), b"half").expect("written");
    fs::write(dir.path().join("u2.json"), b"{").expect("written");
    fs::write(dir.path().join("readme.txt"), b"not ours").expect("written");
    let store = Store::open(dir.path()).expect("opened");
    assert_eq!(store.records().expect("listed"), []);
    assert_eq!(store.archives().expect("listed"), []);
    assert_eq!(store.record("u2"), None);
    assert!(!dir.path().join(".upload-abc").exists());
    assert!(dir.path().join("readme.txt").exists());
}

#[test]
fn a_uid_cannot_name_a_file_outside_the_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opened");
    assert_eq!(
        store.record_path("../../etc/x"),
        dir.path().join("etcx.json")
    );
}
