//! A node to test on: a mount namespace of its own, an image in a real registry, its archive, and the real
//! `clip-csi-node` with its `clip-serve`.

#![allow(dead_code, reason = "not every test uses everything")]

pub mod image;

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clip_csi_node::csi::v1::identity_client::IdentityClient;
use clip_csi_node::csi::v1::node_client::NodeClient;
use clip_csi_node::csi::v1::volume_capability::{AccessType, MountVolume};
use clip_csi_node::csi::v1::{
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, ProbeRequest, VolumeCapability,
};
use clip_csi_node::mountinfo;
use clip_engine::SpanLimits;
use clip_engine::mount_points::{self, MountPoint};
use clip_engine::{IndexOptions, Quiet, index_image};
use clip_registry::{Client, ClientOptions, Credentials, Repository};
use clip_testkit::proxy::Proxy;
use clip_testkit::registry::TestRegistry;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use rustix::mount::{MountPropagationFlags, mount_change};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// The name of the archive that every node has.
pub const IMAGE: &str = "data";

/// What a test has to work with.
pub struct Scene {
    /// Everything on disk.
    pub dir: tempfile::TempDir,
    /// Where its image is.
    pub registry: TestRegistry,
    /// What stands before the registry; the node knows its address only.
    pub proxy: Proxy,
    runtime: tokio::runtime::Runtime,
    node: Option<Child>,
    /// Those that stand by.
    others: Vec<Child>,
    keeper: Option<Child>,
    /// Arguments of the plugin beside those that it needs.
    pub arguments: Vec<String>,
}

impl Scene {
    /// A node with one archive, its plugin not started yet.
    ///
    /// Mounts are made in a namespace of this thread and its children, and vanish with them.
    pub fn new() -> Scene {
        Scene::before(TestRegistry::start().unwrap(), Credentials::Anonymous)
    }

    /// The same with a registry that wants user name and password. The image has [parts](image::part) that can be read each for
    /// itself.
    pub fn private(username: &str, password: &str) -> Scene {
        let credentials = Credentials::Basic {
            username: username.into(),
            password: password.into(),
        };
        let registry = TestRegistry::start_with_auth(username, password).unwrap();
        Scene::before(registry, credentials)
    }

    fn before(registry: TestRegistry, credentials: Credentials) -> Scene {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests of mounts need root");
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let dir = tempfile::Builder::new()
            .prefix("clip-node")
            .tempdir()
            .unwrap();
        for folder in ["kubelet", "archives", "volumes"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let proxy = Proxy::before(registry.address()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let scene = Scene {
            dir,
            registry,
            proxy,
            runtime,
            node: None,
            others: Vec::new(),
            keeper: None,
            arguments: Vec::new(),
        };
        scene.run(scene.make_archive(IMAGE, credentials));
        scene
    }

    /// A node whose plugin runs.
    pub fn running() -> Scene {
        let mut scene = Scene::new();
        scene.start();
        scene
    }

    /// Runs a future to its end.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A path below the scene's folder.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(relative)
    }

    /// A node whose plugin and keeper run.
    pub fn kept() -> Scene {
        let mut scene = Scene::new();
        scene.start_keeper(300);
        scene.start();
        scene
    }

    /// Starts the plugin and waits until it answers.
    pub fn start(&mut self) {
        self.node = Some(self.spawn());
        let probe = || async { self.identity().await?.probe(ProbeRequest {}).await };
        self.wait_until("the plugin answers", || self.run(probe()).is_ok());
    }

    /// Starts another plugin beside it and waits until it stands by.
    pub fn stand_by(&mut self) {
        let before = self.read_log().matches("standing by").count();
        let other = self.spawn();
        self.others.push(other);
        self.wait_until("another plugin stands by", || {
            self.read_log().matches("standing by").count() > before
        });
    }

    /// Ends the plugin with a signal. The one that stands by takes its place; returns when that answers.
    pub fn replace(&mut self, signal: Signal) {
        self.stop(signal);
        self.node = Some(self.others.remove(0));
        let is_registered = || {
            let log = self.read_log();
            log.matches("serving CSI").count() > log.matches("standing by").count()
        };
        self.wait_until("the other plugin serves", is_registered);
    }

    /// Sends a signal to the one that stands by and waits for its end.
    pub fn stop_other(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut other = self.others.remove(0);
        kill(other.id(), signal);
        other.wait().unwrap()
    }

    fn spawn(&self) -> Child {
        with_few_files(env!("CARGO_BIN_EXE_clip-csi-node"))
            .args([
                "--node-name=here",
                "--metrics-listen=127.0.0.1:0",
                "--publish-wait=1s",
                "--verbose",
            ])
            .arg(format!("--kubelet-dir={}", self.path("kubelet").display()))
            .arg(format!("--state-dir={}", self.path("state").display()))
            .arg(format!(
                "--clipimages-from={}",
                self.path("archives").display()
            ))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stderr(self.log())
            .spawn()
            .unwrap()
    }

    /// Starts a keeper with this patience in seconds, in place of one that runs.
    pub fn start_keeper(&mut self, patience: u64) {
        self.stop_keeper();
        let before = self.read_log().matches("holding connections").count();
        let socket = self.keeper_socket();
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let keeper = with_few_files(env!("CARGO_BIN_EXE_clip-keeper"))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--patience={patience}"))
            .stdin(Stdio::null())
            .stderr(self.log())
            .spawn()
            .unwrap();
        self.keeper = Some(keeper);
        self.wait_until("the keeper listens", || {
            self.read_log().matches("holding connections").count() > before
        });
    }

    /// Ends the keeper with SIGKILL.
    pub fn stop_keeper(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            keeper.kill().unwrap();
            keeper.wait().unwrap();
        }
    }

    /// The keeper's process id.
    pub fn keeper_pid(&self) -> u32 {
        self.keeper.as_ref().unwrap().id()
    }

    /// Where the keeper is found.
    pub fn keeper_socket(&self) -> PathBuf {
        self.path("kubelet/plugins/csi.clip.dev/keeper.sock")
    }

    /// Its log, which a test that fails shows.
    fn log(&self) -> File {
        let mut log = File::options();
        let log = log.create(true).append(true);
        log.open(self.path("log")).unwrap()
    }

    /// The plugin's process id.
    pub fn pid(&self) -> u32 {
        self.node.as_ref().unwrap().id()
    }

    /// The process id of the `clip-serve` that the plugin runs now.
    pub fn serve_pid(&self) -> Option<u32> {
        let pid = self.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let of_other_threads = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            tasks.flatten().find_map(|task| {
                let children = std::fs::read_to_string(task.path().join("children")).ok()?;
                children.split_whitespace().next().map(str::to_owned)
            })
        };
        children
            .split_whitespace()
            .next()
            .map(str::to_owned)
            .or_else(of_other_threads)?
            .parse()
            .ok()
    }

    /// Sends a signal to the plugin and waits for its end.
    pub fn stop(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut node = self.node.take().unwrap();
        kill(node.id(), signal);
        node.wait().unwrap()
    }

    /// The Identity service of the plugin.
    pub async fn identity(&self) -> Result<IdentityClient<Channel>, Status> {
        Ok(IdentityClient::new(
            self.channel("kubelet/plugins/csi.clip.dev/csi.sock")
                .await?,
        ))
    }

    /// The Node service of the plugin.
    pub async fn node(&self) -> Result<NodeClient<Channel>, Status> {
        Ok(NodeClient::new(
            self.channel("kubelet/plugins/csi.clip.dev/csi.sock")
                .await?,
        ))
    }

    /// A connection to a socket.
    pub async fn channel(&self, socket: &str) -> Result<Channel, Status> {
        let endpoint =
            Endpoint::try_from(format!("unix://{}", self.path(socket).display())).unwrap();
        endpoint
            .connect()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    /// A folder for the volume of a pod, as kubelet makes it, and the target in it.
    pub fn target(&self, pod: &str) -> PathBuf {
        let folder = self.path(&format!(
            "kubelet/pods/{pod}/volumes/kubernetes.io~csi/data"
        ));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join("mount")
    }

    /// Publishes the image at `target`.
    pub fn publish(&self, target: &Path, attributes: &[(&str, &str)]) -> Result<(), Status> {
        self.send_publish(publish_request(target, attributes))
    }

    /// The same with a pull secret for the scene's registry.
    pub fn publish_with(
        &self,
        target: &Path,
        username: &str,
        password: &str,
    ) -> Result<(), Status> {
        let login = serde_json::json!({"username": username, "password": password});
        let config = serde_json::json!({"auths": {self.proxy.address(): login}});
        self.publish_with_secret(target, config.to_string())
    }

    /// The same with a pull secret of any content.
    pub fn publish_with_secret(&self, target: &Path, content: String) -> Result<(), Status> {
        let mut request = publish_request(target, &[("clipImage", IMAGE)]);
        request.secrets.insert(".dockerconfigjson".into(), content);
        self.send_publish(request)
    }

    fn send_publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.run(async {
            self.node()
                .await?
                .node_publish_volume(request)
                .await
                .map(drop)
        })
    }

    /// Takes it away.
    pub fn unpublish(&self, target: &Path) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume_id(target),
            target_path: target.to_str().unwrap().into(),
        };
        self.run(async {
            self.node()
                .await?
                .node_unpublish_volume(request)
                .await
                .map(drop)
        })
    }

    /// How large the volume at `target` is.
    pub fn stats(&self, target: &Path) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id(target),
            volume_path: target.to_str().unwrap().into(),
            ..Default::default()
        };
        self.run(async {
            let stats = self.node().await?.node_get_volume_stats(request).await?;
            Ok(stats.into_inner())
        })
    }

    /// All that the plugin logged so far.
    pub fn read_log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Mounts of ours in this scene, in order.
    pub fn mounts(&self) -> Vec<MountPoint> {
        let here = self.path("");
        let mounts = mount_points::all().unwrap();
        mounts
            .into_iter()
            .filter(|mount| mount.path.starts_with(&here) && mountinfo::archive_of(mount).is_some())
            .collect()
    }

    /// Those of them that pods see.
    pub fn volumes(&self) -> Vec<MountPoint> {
        let own = self.path("kubelet/plugins");
        let mut mounts = self.mounts();
        mounts.retain(|mount| !mount.path.starts_with(&own));
        mounts
    }

    /// Waits for something.
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < LIMIT, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Nothing of ours is mounted, and no folder of it is left.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), []);
        let folders = std::fs::read_dir(self.path("kubelet/plugins/csi.clip.dev/mounts")).unwrap();
        assert_eq!(folders.count(), 0, "folders of archives are left");
    }

    /// Pushes an image with a few files and writes its archive to `archives/NAME.clip`.
    async fn make_archive(&self, name: &str, credentials: Credentials) {
        let client = ClientOptions {
            credentials,
            ..ClientOptions::default()
        };
        let client = Client::new(client).unwrap();
        let repository = Repository::new(self.registry.address(), name).unwrap();
        image::push(&client, &repository).await;
        let source = format!("{}/{name}:1", self.proxy.address())
            .parse()
            .unwrap();
        let options = IndexOptions {
            // So that each part of the image has spans of its own.
            span_limits: SpanLimits {
                tar: 64 << 10,
                blob: 64 << 10,
            },
            ..IndexOptions::default()
        };
        let indexed = index_image(&client, &source, &options, Arc::new(Quiet))
            .await
            .unwrap();
        std::fs::write(self.path(&format!("archives/{name}.clip")), indexed.archive).unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}", self.read_log());
        }
        let processes = self.node.take().into_iter();
        for mut process in processes
            .chain(self.others.drain(..))
            .chain(self.keeper.take())
        {
            let _ = process.kill();
            let _ = process.wait();
        }
        // The scene's folder cannot be removed below dead mounts.
        for mount in self.mounts().iter().rev() {
            let _ = rustix::mount::unmount(&mount.path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The program with the soft limit of open files that it has on many nodes.
fn with_few_files(program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 1024; exec \"$0\" \"$@\"", program]);
    command
}

/// A request as kubelet makes it.
pub fn publish_request(target: &Path, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let from_kubelet = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "pod"),
        ("csi.storage.k8s.io/pod.namespace", "team-a"),
    ];
    let context: HashMap<String, String> = from_kubelet
        .iter()
        .chain(attributes)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    NodePublishVolumeRequest {
        volume_id: volume_id(target),
        target_path: target.to_str().unwrap().into(),
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: None,
        }),
        readonly: true,
        volume_context: context,
        ..Default::default()
    }
}

/// A volume's name, as kubelet makes one of the pod and the volume.
pub fn volume_id(target: &Path) -> String {
    format!(
        "csi-{}",
        clip_registry::Digest::sha256_of(target.to_str().unwrap().as_bytes()).hex()
    )
}

/// Sends a signal.
pub fn kill(pid: u32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
}
