//! The whole document, piece by piece, and what a root that cannot be written to must have beforehand.

use crate::{BundleError, Image, Wishes, process, sandbox};
use oci_spec::{
    image::{Config, ImageConfiguration, Os},
    runtime::{Process, RootBuilder, Spec, SpecBuilder},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// What every runtime of these years understands.
const RUNTIME_SPEC_VERSION: &str = "1.0.2";
/// sethostname(2) takes 64 bytes, DNS a label of 63.
const HOSTNAME_MAX: usize = 63;

/// The `config.json` of a container of `image` whose root is the directory `rootfs` beside it.
pub fn runtime_spec(image: &Image<'_>, wishes: &Wishes) -> Result<Spec, BundleError> {
    let configuration = parse(image.config)?;
    let config = configuration.config().clone().unwrap_or_default();
    let wanted = wishes.user.as_deref().or(config.user().as_deref());
    let user = image.users.resolve(wanted.unwrap_or_default())?;

    let mut process = Process::default();
    process
        .set_terminal(Some(wishes.terminal))
        .set_args(Some(process::arguments(&config, wishes)?))
        .set_env(Some(process::environment(
            &config,
            wishes,
            user.home.as_deref(),
        )))
        .set_cwd(PathBuf::from(process::directory(&config, wishes)))
        .set_user(user.to_spec())
        .set_capabilities(Some(sandbox::capabilities()))
        // su and sudo of the image work, as with Docker and Podman.
        .set_no_new_privileges(Some(false))
        // The caller's, as with Docker.
        .set_rlimits(None);
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(wishes.read_only)
        .build()
        .expect("every field has a default");
    let spec = SpecBuilder::default()
        .version(RUNTIME_SPEC_VERSION)
        .process(process)
        .root(root)
        .hostname(hostname(&wishes.hostname))
        .mounts(sandbox::mounts(&wishes.network))
        .annotations(annotations(&configuration, &config))
        .linux(sandbox::linux(wishes))
        .build()
        .expect("every field has a default");
    Ok(spec)
}

pub(crate) fn parse(config: &[u8]) -> Result<ImageConfiguration, BundleError> {
    if config.is_empty() {
        return Err(BundleError::NoConfiguration);
    }
    // The empty descriptor's `{}` (image-spec, artifacts), and what ORAS and ModelPack put there, have no root.
    let value: serde_json::Value =
        serde_json::from_slice(config).map_err(BundleError::Configuration)?;
    if value["rootfs"].is_null() {
        return Err(BundleError::NoConfiguration);
    }
    let configuration: ImageConfiguration =
        serde_json::from_value(value).map_err(BundleError::Configuration)?;
    match configuration.os() {
        Os::Linux => Ok(configuration),
        other => Err(BundleError::NotLinux(other.to_string())),
    }
}

/// A name that is one: letters, digits and dashes.
fn hostname(wanted: &str) -> String {
    let fine = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let name: String = wanted.chars().filter(fine).take(HOSTNAME_MAX).collect();
    match name.trim_matches('-') {
        "" => "clip".to_owned(),
        name => name.to_owned(),
    }
}

/// Labels, and what else of an image has no place in a container (image-spec, conversion.md).
fn annotations(configuration: &ImageConfiguration, config: &Config) -> HashMap<String, String> {
    let mut all = config.labels().clone().unwrap_or_default();
    let known = [
        ("os", Some(configuration.os().to_string())),
        (
            "architecture",
            Some(configuration.architecture().to_string()),
        ),
        ("created", configuration.created().clone()),
        ("author", configuration.author().clone()),
        ("stopSignal", config.stop_signal().clone()),
    ];
    for (name, value) in known {
        // What a label says goes first.
        if let Some(value) = value {
            all.entry(format!("org.opencontainers.image.{name}"))
                .or_insert(value);
        }
    }
    // A runtime refuses a key that is empty.
    all.remove("");
    all
}

/// A place in the root that something is mounted on, or that a process starts in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum MountPoint {
    /// A directory.
    Directory(PathBuf),
    /// A file.
    File(PathBuf),
}

/// What must be there for a runtime that cannot make it. Absolute paths without `..`.
pub fn mount_points(spec: &Spec) -> Vec<MountPoint> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let below_another = |path: &Path| {
        mounts
            .iter()
            .any(|other| path != other.destination() && path.starts_with(other.destination()))
    };
    let mut all: Vec<_> = mounts
        .iter()
        .filter(|mount| !below_another(mount.destination()))
        .map(|mount| match mount.typ().as_deref() {
            Some("bind") => MountPoint::File(mount.destination().clone()),
            _ => MountPoint::Directory(mount.destination().clone()),
        })
        .collect();
    if let Some(process) = spec.process()
        && !below_another(process.cwd())
        && process
            .cwd()
            .components()
            .all(|part| part != std::path::Component::ParentDir)
    {
        all.push(MountPoint::Directory(process.cwd().clone()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Network, UserFiles};
    use serde_json::{Value, json};

    fn image_with(config: Value) -> Vec<u8> {
        let image = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        serde_json::to_vec(&image).unwrap()
    }

    fn made(config: &[u8], wishes: &Wishes) -> Result<Value, BundleError> {
        let users = UserFiles {
            passwd: b"app:x:1000:1000::/home/app:\n".to_vec(),
            group: b"video:x:44:app\n".to_vec(),
        };
        let spec = runtime_spec(&Image { config, users }, wishes)?;
        Ok(serde_json::to_value(spec).unwrap())
    }

    #[test]
    fn what_the_image_says_is_what_the_container_gets() {
        let config = image_with(json!({
            "User": "app", "Env": ["A=1"], "Entrypoint": ["/entry"], "Cmd": ["serve"], "WorkingDir": "/srv",
            "ExposedPorts": null, "Volumes": {"/data": {}}, "Labels": {"": "empty", "team": "a"}, "StopSignal": "SIGQUIT",
        }));
        let spec = made(&config, &Wishes::default()).unwrap();
        let process = &spec["process"];
        assert_eq!(process["args"], json!(["/entry", "serve"]));
        assert_eq!(process["cwd"], "/srv");
        assert_eq!(
            process["user"],
            json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 44]})
        );
        assert!(
            process["env"]
                .as_array()
                .unwrap()
                .contains(&json!("HOME=/home/app"))
        );
        assert_eq!(process["terminal"], false);
        assert_eq!(process["noNewPrivileges"], false);
        let capabilities = &process["capabilities"];
        assert_eq!(capabilities["bounding"].as_array().unwrap().len(), 14);
        assert_eq!(capabilities["inheritable"], Value::Null);
        assert_eq!(capabilities["ambient"], Value::Null);
        assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
        assert_eq!(spec["hostname"], "clip");
        assert_eq!(
            spec["annotations"],
            json!({"team": "a", "org.opencontainers.image.os": "linux",
                "org.opencontainers.image.architecture": "amd64", "org.opencontainers.image.stopSignal": "SIGQUIT"})
        );
        assert_eq!(
            spec["linux"]["resources"]["devices"],
            json!([{"allow": false, "access": "rwm"}])
        );
    }

    #[test]
    fn only_without_a_network_there_is_a_namespace_for_it() {
        let config = image_with(json!({"Cmd": ["sh"]}));
        let types = |network: Network, cgroup_v2| {
            let wishes = Wishes {
                network,
                cgroup_v2,
                ..Wishes::default()
            };
            let spec = made(&config, &wishes).unwrap();
            let namespaces = spec["linux"]["namespaces"].as_array().unwrap().clone();
            let types = namespaces
                .iter()
                .map(|one| one["type"].as_str().unwrap().to_owned());
            (
                types.collect::<Vec<_>>(),
                spec["mounts"].as_array().unwrap().len(),
            )
        };
        assert_eq!(
            types(Network::None, false).0,
            ["pid", "ipc", "uts", "mount", "network"]
        );
        let files = vec!["/etc/hosts"];
        let (host, mounts) = types(Network::Host { files }, true);
        assert_eq!(host, ["pid", "ipc", "uts", "mount", "cgroup"]);
        assert_eq!(mounts, types(Network::None, true).1 + 1);
    }

    #[test]
    fn what_is_no_container_image_is_told_apart() {
        let said = |config: &[u8]| made(config, &Wishes::default()).unwrap_err().to_string();
        for artifact in [&b""[..], b"{}", br#"{"descriptor": {}, "modelfs": {}}"#] {
            assert!(said(artifact).contains("artifact"), "{}", said(artifact));
        }
        assert!(said(b"not json").contains("not valid"));
        let windows = json!({"architecture": "amd64", "os": "windows", "rootfs": {"type": "layers", "diff_ids": []}});
        assert!(said(windows.to_string().as_bytes()).contains("for windows"));
        let without = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
        assert!(said(without.to_string().as_bytes()).contains("names no command"));
    }

    #[test]
    fn a_name_of_any_letters_becomes_a_host_name() {
        assert_eq!(hostname("python_app.v1"), "pythonappv1");
        assert_eq!(hostname("-ü-"), "clip");
        assert_eq!(hostname(&"a".repeat(100)).len(), 63);
    }

    #[test]
    fn what_lies_below_another_mount_needs_no_place_of_its_own() {
        let config = image_with(json!({"Cmd": ["sh"], "WorkingDir": "/srv"}));
        let wishes = Wishes {
            network: Network::Host {
                files: vec!["/etc/hosts"],
            },
            ..Wishes::default()
        };
        let users = UserFiles::default();
        let spec = runtime_spec(
            &Image {
                config: &config,
                users,
            },
            &wishes,
        )
        .unwrap();
        let directory = |path: &str| MountPoint::Directory(PathBuf::from(path));
        let mut points = mount_points(&spec);
        points.sort();
        assert_eq!(
            points,
            [
                directory("/dev"),
                directory("/proc"),
                directory("/srv"),
                directory("/sys"),
                MountPoint::File(PathBuf::from("/etc/hosts")),
            ]
        );
    }
}
