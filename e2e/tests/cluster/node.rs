//! The node as its administrator sees it: mounts, processes, what is left behind.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kube::{eventually, kubectl, node};

/// Where the node plugin mounts archives.
pub const MOUNTS: &str = "/var/lib/kubelet/plugins/csi.clip.dev/mounts";
/// Where it keeps them.
pub const ARCHIVES: &str = "/var/lib/clip/archives";

/// A mount of Clip's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The digest of the archive.
    pub archive: String,
    /// Where it is mounted.
    pub point: String,
}

/// All of Clip's mounts below kubelet's folder, from the node's mount table (proc_pid_mountinfo(5)).
pub fn mounts() -> Vec<Mount> {
    let table = node(&["cat", "/proc/self/mountinfo"]).unwrap();
    let mount = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let dash = words.iter().position(|word| *word == "-")?;
        Some(Mount {
            archive: words.get(dash + 2)?.strip_prefix("clip:")?.to_owned(),
            point: words[4].to_owned(),
        })
    };
    let all = table.lines().filter_map(mount);
    all.filter(|mount| mount.point.starts_with("/var/lib/kubelet/"))
        .collect()
}

/// The mount of a pod's volume.
pub fn mount_of(pod_uid: &str) -> Option<Mount> {
    let folder = format!("/pods/{pod_uid}/");
    mounts()
        .into_iter()
        .find(|mount| mount.point.contains(&folder))
}

/// Waits until every mount belongs to a pod that exists, every archive's mount to a pod's, every folder to a mount.
pub fn nothing_leaks() {
    eventually("nothing of Clip's is left behind on the node", || {
        let leaks = leaks();
        if leaks.is_empty() {
            Ok(())
        } else {
            Err(leaks.join("\n"))
        }
    });
}

fn leaks() -> Vec<String> {
    let alive = pod_uids();
    let mounts = mounts();
    let used: BTreeSet<&str> = mounts
        .iter()
        .filter(|mount| !mount.point.starts_with(MOUNTS))
        .map(|mount| mount.archive.as_str())
        .collect();
    let mut leaks = Vec::new();
    let mut points = BTreeSet::new();
    for mount in &mounts {
        if !points.insert(&mount.point) {
            leaks.push(format!("two mounts on {}", mount.point));
        }
        let pod = mount.point.split("/pods/").nth(1);
        match pod.and_then(|rest| rest.split('/').next()) {
            Some(pod) if !alive.contains(pod) => {
                leaks.push(format!("{}: that pod is gone", mount.point));
            }
            None if !used.contains(mount.archive.as_str()) => {
                leaks.push(format!("{}: no pod uses it", mount.point));
            }
            _ => {}
        }
    }
    for folder in node(&["ls", MOUNTS]).unwrap().lines() {
        if !points.contains(&format!("{MOUNTS}/{folder}")) {
            leaks.push(format!("{MOUNTS}/{folder}: nothing is mounted there"));
        }
    }
    leaks
}

fn pod_uids() -> BTreeSet<String> {
    let uids = [
        "get",
        "pods",
        "-A",
        "-o",
        "jsonpath={.items[*].metadata.uid}",
    ];
    let uids = kubectl(&uids).unwrap();
    uids.split_whitespace().map(str::to_owned).collect()
}

/// The only process inside the node whose command line contains `text`.
pub fn process(text: &str) -> String {
    eventually(&format!("one process {text:?}"), || {
        let all = node(&["ps", "-e", "-o", "pid=,args="])?;
        let found = all.lines().filter(|line| line.contains(text));
        match found.collect::<Vec<_>>()[..] {
            [one] => Ok(one.split_whitespace().next().unwrap_or_default().to_owned()),
            ref several => Err(several.join("\n")),
        }
    })
}

/// Ends it with signal 9.
pub fn kill(pid: &str) {
    send("KILL", pid);
}

/// Sends it a signal.
pub fn send(signal: &str, pid: &str) {
    node(&["kill", "-s", signal, pid]).unwrap();
}

/// An object's uid.
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap()
}

/// Ends a container's first process with signal 9.
pub fn kill_container(id: &str) {
    node(&["ctr", "tasks", "kill", "--signal", "SIGKILL", id]).unwrap();
}
