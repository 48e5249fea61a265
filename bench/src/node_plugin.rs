//! The node plugin with its keeper, as on a node of a cluster, without the cluster: archives come from a folder.

use crate::{mounted, place};
use anyhow::{Context, Result, ensure};
use clip_csi_node::csi::v1::{
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ProbeRequest, VolumeCapability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessType, MountVolume},
};
use clip_testkit::memory::{Counted, MemoryGroup};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

/// How long a process may take to be there, or a request to be answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct NodePlugin {
    dir: TempDir,
    engine: &'static str,
    plugin: Child,
    keeper: Child,
    group: MemoryGroup,
    runtime: Runtime,
}

impl NodePlugin {
    /// Starts both in `scratch`. `archives` holds `NAME.clip` for each image NAME that will be published.
    pub fn start(scratch: &Path, archives: &Path, engine: &'static str) -> Result<Self> {
        let dir = tempfile::tempdir_in(scratch)?;
        std::fs::create_dir_all(dir.path().join("kubelet/plugins/csi.clip.dev"))?;
        std::os::unix::fs::symlink(archives, dir.path().join("archives"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let keeper = start_keeper(dir.path())?;
        let group = MemoryGroup::new(place::group("node-plugin").strip_prefix("/")?)?;
        let plugin = start_plugin(dir.path(), engine, &group)?;
        let node = Self {
            dir,
            engine,
            plugin,
            keeper,
            group,
            runtime,
        };
        node.wait()?;
        Ok(node)
    }

    /// Where the volume of `pod` is.
    pub fn target(&self, pod: &str) -> PathBuf {
        let pods = self.dir.path().join("kubelet/pods");
        pods.join(pod).join("volumes/kubernetes.io~csi/data/mount")
    }

    /// Publishes `image` for `pod`, and says how long that took.
    pub fn publish(&self, image: &str, pod: &str) -> Result<Duration> {
        let target = self.target(pod);
        std::fs::create_dir_all(target.parent().context("it has a parent")?)?;
        let context = [
            ("clipImage", image),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", pod),
            ("csi.storage.k8s.io/pod.namespace", "bench"),
        ];
        let request = NodePublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: target.to_str().context("UTF-8")?.to_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: None,
            }),
            readonly: true,
            volume_context: HashMap::from(
                context.map(|(key, value)| (key.to_owned(), value.to_owned())),
            ),
            ..Default::default()
        };
        self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect().await?);
            let begun = Instant::now();
            node.node_publish_volume(request).await?;
            Ok(begun.elapsed())
        })
    }

    /// Takes it away, and says how long that took.
    pub fn unpublish(&self, pod: &str) -> Result<Duration> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: format!("csi-{pod}"),
            target_path: self.target(pod).to_str().context("UTF-8")?.to_owned(),
        };
        self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect().await?);
            let begun = Instant::now();
            node.node_unpublish_volume(request).await?;
            Ok(begun.elapsed())
        })
    }

    /// Kills `clip-serve`.
    pub fn kill_server(&self) -> Result<()> {
        Ok(kill_process(pid(self.server()?)?, Signal::KILL)?)
    }

    /// Kills the plugin and starts another.
    pub fn kill_plugin(&mut self) -> Result<()> {
        self.plugin.kill()?;
        self.plugin.wait()?;
        self.plugin = start_plugin(self.dir.path(), self.engine, &self.group)?;
        self.wait()
    }

    /// Starts another plugin, which stands by, and tells the old one to stop.
    pub fn upgrade(&mut self) -> Result<()> {
        let old = pid(self.plugin.id())?;
        let next = start_plugin(self.dir.path(), self.engine, &self.group)?;
        let mut ended = std::mem::replace(&mut self.plugin, next);
        std::thread::sleep(Duration::from_millis(500));
        let told = kill_process(old, Signal::TERM);
        ended.wait()?;
        told?;
        self.wait()
    }

    /// Kills the keeper and starts another.
    pub fn kill_keeper(&mut self) -> Result<()> {
        self.keeper.kill()?;
        self.keeper.wait()?;
        self.keeper = start_keeper(self.dir.path())?;
        Ok(())
    }

    /// What plugin, server and keeper have in memory.
    pub fn memory(&self) -> Result<[Memory; 3]> {
        Ok([
            memory_of(self.plugin.id())?,
            memory_of(self.server()?)?,
            memory_of(self.keeper.id())?,
        ])
    }

    /// The same for plugin and server together as the kernel accounts for it, with what it keeps for them.
    pub fn counted(&self) -> Result<Counted> {
        ensure!(
            self.group.has(self.server()?)?,
            "the server is counted elsewhere"
        );
        self.group.counted()
    }

    /// The server is a child of one of the plugin's threads.
    fn server(&self) -> Result<u32> {
        let begun = Instant::now();
        let tasks = format!("/proc/{}/task", self.plugin.id());
        loop {
            for task in std::fs::read_dir(&tasks)?.flatten() {
                let children = std::fs::read_to_string(task.path().join("children"));
                if let Some(child) = children.unwrap_or_default().split_whitespace().next() {
                    return Ok(child.parse()?);
                }
            }
            ensure!(begun.elapsed() < PATIENCE, "no clip-serve runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn connect(&self) -> Result<Channel> {
        let socket = self
            .dir
            .path()
            .join("kubelet/plugins/csi.clip.dev/csi.sock");
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()))?;
        Ok(endpoint.connect().await?)
    }

    fn wait(&self) -> Result<()> {
        let begun = Instant::now();
        let probe = async || {
            let mut identity = IdentityClient::new(self.connect().await?);
            anyhow::Ok(identity.probe(ProbeRequest {}).await?)
        };
        while self.runtime.block_on(probe()).is_err() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "the plugin does not answer: {}",
                std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for NodePlugin {
    fn drop(&mut self) {
        for process in [&mut self.plugin, &mut self.keeper] {
            let _ = process.kill();
            let _ = process.wait();
        }
        // What a bench that failed left mounted.
        mounted::detach_below(self.dir.path());
    }
}

fn start_plugin(dir: &Path, engine: &str, group: &MemoryGroup) -> Result<Child> {
    let option = |name: &str, path: &str| format!("--{name}={}", dir.join(path).display());
    let mut plugin = group.begin(program("clip-csi-node")?);
    plugin
        .args(["--node-name=bench", "--metrics-listen=127.0.0.1:0"])
        .arg(format!("--engine={engine}"))
        // The bench's own reads are no start to record.
        .arg("--record-start=0")
        .arg(option("kubelet-dir", "kubelet"))
        .arg(option("state-dir", "state"))
        .arg(option("clipimages-from", "archives"));
    spawn(plugin, dir).context("clip-csi-node")
}

fn start_keeper(dir: &Path) -> Result<Child> {
    let socket = dir.join("kubelet/plugins/csi.clip.dev/keeper.sock");
    let mut keeper = Command::new(program("clip-keeper")?);
    keeper.arg(format!("--socket={}", socket.display()));
    spawn(keeper, dir).context("clip-keeper")
}

/// A program of the release build.
fn program(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

fn spawn(mut command: Command, dir: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Ok(command.spawn()?)
}

fn pid(id: u32) -> Result<Pid> {
    Pid::from_raw(id as i32).context("a process has a number")
}

/// What a process has in memory, in bytes (proc_pid_status(5)).
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All of it; pages of files are there only once for all processes, and go when memory gets short.
    pub resident: f64,
    /// What is of no file.
    pub own: f64,
}

fn memory_of(pid: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |key: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kilobytes = line.with_context(|| format!("the kernel says {key}"))?;
        let number = kilobytes.trim().trim_end_matches(" kB");
        Ok(number.parse::<f64>()? * 1024.0)
    };
    Ok(Memory {
        resident: bytes("VmRSS:")?,
        own: bytes("RssAnon:")?,
    })
}
