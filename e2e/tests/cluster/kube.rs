//! Talking to the cluster: kubectl through `e2e/cluster/kx`, because the API server is reachable only
//! inside the node's namespaces.

use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Address of the open registry, the same for node, pods and Jobs.
pub const REGISTRY: &str = "10.99.0.1:5000";
/// The same images behind user `clip`, password `s3cret`.
pub const PRIVATE_REGISTRY: &str = "10.99.0.1:5001";
/// Longest wait for anything that should happen by itself.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a command inside the node; its stdout.
pub fn node(arguments: &[&str]) -> Result<String, String> {
    run(arguments, None)
}

/// Runs kubectl; its stdout, or what it says is wrong.
pub fn kubectl(arguments: &[&str]) -> Result<String, String> {
    run(&[&["kubectl"], arguments].concat(), None)
}

/// Waits until `check` gives a value; panics with `what` and the last complaint after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => {
                panic!("{what}: not within {} s: {complaint}", PATIENCE.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

/// A namespace of one test, deleted with everything in it.
pub struct Namespace(pub String);

impl Namespace {
    /// A new namespace whose name begins with `story`.
    pub fn new(story: &str) -> Self {
        assert!(
            std::env::var_os("CLIP_E2E").is_some(),
            "no cluster: run `make e2e`"
        );
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{story}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        kubectl(&["create", "namespace", &name]).unwrap();
        let ready = || kubectl(&["-n", &name, "get", "serviceaccount", "default"]);
        eventually("the namespace's service account", ready);
        Self(name)
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        kubectl(&[&["-n", &self.0], arguments].concat())
    }

    /// Applies an object.
    pub fn apply(&self, object: &Value) {
        self.apply_text(&object.to_string());
    }

    /// Applies YAML.
    pub fn apply_text(&self, yaml: &str) {
        run(&["kubectl", "-n", &self.0, "apply", "-f", "-"], Some(yaml)).unwrap();
    }

    /// What the API server would say of an object, strictly validated.
    pub fn try_apply(&self, object: &Value) -> Result<String, String> {
        let apply = [
            "kubectl",
            "-n",
            &self.0,
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        run(&apply, Some(&object.to_string()))
    }

    /// Makes a ClipImage with this spec.
    pub fn clip_image(&self, name: &str, spec: Value) {
        self.apply(&json!({"apiVersion": "clip.dev/v1alpha1", "kind": "ClipImage", "metadata": {"name": name}, "spec": spec}));
    }

    /// A ClipImage as it is now.
    pub fn get_clip_image(&self, name: &str) -> Value {
        let text = self
            .kubectl(&["get", "clipimage", name, "-o", "json"])
            .unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until a ClipImage is Ready.
    pub fn wait_ready(&self, name: &str) -> Value {
        eventually(&format!("clipimage {name} Ready"), || {
            match condition(&self.get_clip_image(name), "Ready") {
                (status, ..) if status == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        self.get_clip_image(name)
    }

    /// Waits until a ClipImage is not Ready for this reason; the message.
    pub fn wait_reason(&self, name: &str, reason: &str) -> String {
        eventually(&format!("clipimage {name}: {reason}"), || {
            match condition(&self.get_clip_image(name), "Ready") {
                (_, found, message) if found == reason => Ok(message),
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// A busybox pod that runs `script` with a volume of these attributes at /image.
    pub fn pod(&self, name: &str, attributes: Value, script: &str) {
        self.pod_with(name, attributes, script, json!({}));
    }

    /// The same with more fields for the volume's `csi`.
    pub fn pod_with(&self, name: &str, attributes: Value, script: &str, more: Value) {
        let mut csi =
            json!({"driver": "csi.clip.dev", "readOnly": true, "volumeAttributes": attributes});
        for (key, value) in more.as_object().unwrap() {
            csi[key] = value.clone();
        }
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 1, "restartPolicy": "Always",
                "containers": [{
                    "name": "main", "image": format!("{REGISTRY}/demo/busybox:1"), "command": ["sh", "-c", script],
                    "volumeMounts": [{"name": "image", "mountPath": "/image", "readOnly": true}],
                }],
                "volumes": [{"name": "image", "csi": csi}],
            },
        }));
    }

    /// Waits until the log of a pod holds `text`; the log.
    pub fn wait_log(&self, pod: &str, text: &str) -> String {
        eventually(&format!("log of {pod} with {text:?}"), || {
            let log = self.kubectl(&["logs", pod])?;
            if log.contains(text) {
                Ok(log)
            } else {
                Err(format!("{log}\n{}", self.events()))
            }
        })
    }

    /// Waits until an event of the namespace holds `text`; all events.
    pub fn wait_event(&self, text: &str) -> String {
        eventually(&format!("an event with {text:?}"), || match self.events() {
            events if events.contains(text) => Ok(events),
            events => Err(events),
        })
    }

    /// Waits until an object has an event with this reason; all events.
    pub fn wait_event_of(&self, object: &str, reason: &str) -> String {
        let of_object = |line: &str| line.contains(reason) && line.contains(&format!(" {object} "));
        eventually(&format!("event {reason} of {object}"), || {
            match self.events() {
                events if events.lines().any(of_object) => Ok(events),
                events => Err(events),
            }
        })
    }

    fn events(&self) -> String {
        self.kubectl(&[
            "get",
            "events",
            "-o",
            "custom-columns=TYPE:.type,REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message",
        ])
        .unwrap_or_default()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A pod is gone when kubelet has unmounted its volumes: one that hangs shows here. The rest takes its time.
        let pods = self.kubectl(&["delete", "pods", "--all", "--timeout=90s"]);
        let rest = kubectl(&["delete", "namespace", &self.0, "--wait=false"]);
        if !std::thread::panicking() {
            pods.and(rest).unwrap();
        }
    }
}

/// Status, reason and message of a condition.
pub fn condition(object: &Value, kind: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions
        .into_iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

/// The mounts of Clip that the node has: mount point and source.
pub fn clip_mounts() -> Vec<String> {
    let table = node(&["cat", "/proc/self/mountinfo"]).unwrap();
    table
        .lines()
        .filter(|line| line.contains(" clip:"))
        .map(str::to_owned)
        .collect()
}

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn run(arguments: &[&str], stdin: Option<&str>) -> Result<String, String> {
    let mut child = Command::new(repository().join("e2e/cluster/kx"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(stdin.unwrap_or_default().as_bytes())
        .map_err(|error| error.to_string())?;
    drop(pipe);
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
