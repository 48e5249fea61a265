//! What a pod writes under `volumeAttributes`. Lines `key=value`; a digit at a line's start stands for a valid key.

use clip_crds::{VolumeAttributes, VolumeSource};
use std::collections::BTreeMap;

/// The target.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let pairs: BTreeMap<String, String> = text
        .split('\n')
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (full_key(key), value.to_owned()))
        .collect();
    let parsed = match VolumeAttributes::parse(&pairs) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    if let Some(path) = &parsed.path {
        // It is joined to a mount point by a privileged process.
        let escapes = |name: &str| matches!(name, "" | "." | "..") || name.contains('\0');
        assert!(!path.split('/').any(escapes), "{path:?}");
    }
    let (VolumeSource::Image(name) | VolumeSource::ClipImage(name)) = &parsed.source;
    assert!(!name.is_empty());
    let _ = parsed.pod.require_namespace();
}

fn full_key(key: &str) -> String {
    let keys = [
        "image",
        "clipImage",
        "path",
        "csi.storage.k8s.io/pod.name",
        "csi.storage.k8s.io/pod.namespace",
        "csi.storage.k8s.io/pod.uid",
        "csi.storage.k8s.io/serviceAccount.name",
        "csi.storage.k8s.io/ephemeral",
    ];
    let number = key.parse::<usize>().ok();
    let known = number.and_then(|number| keys.get(number));
    known.map_or_else(|| key.to_owned(), |key| (*key).to_owned())
}
