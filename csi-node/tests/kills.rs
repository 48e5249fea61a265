//! S11: processes are killed at random moments while pods come, read and go. No wrong byte, no failed read, nothing left.
//!
//! `CLIP_KILLS` says how often the server is killed; the plugin is killed once for 25 of these, the keeper now and then.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clip_csi_node::csi::v1::NodeUnpublishVolumeRequest;
use clip_csi_node::csi::v1::node_client::NodeClient;
use common::image::part;
use common::{IMAGE, Scene, kill, publish_request, volume_id};
use nix::sys::signal::Signal;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long a request may be refused because a process is just not there.
const PATIENCE: Duration = Duration::from_secs(60);
const PODS: usize = 3;

/// docs/semantics.md: "The death of a process of Clip's fails no read of a pod's volume".
#[test]
fn s11_whatever_is_killed_whenever_no_read_fails_and_nothing_is_left() {
    let kills: u32 = std::env::var("CLIP_KILLS").map_or(50, |text| text.parse().unwrap());
    for engine in ["fuse", "erofs"] {
        let mut scene = Scene::new();
        scene.start_keeper(300);
        scene.arguments = vec![format!("--engine={engine}")];
        scene.start();
        let expected = expected(&scene);
        let staying = scene.target("staying");
        scene.publish(&staying, &[("clipImage", IMAGE)]).unwrap();

        let tally = Arc::new(Tally::default());
        let mut pods: Vec<JoinHandle<()>> = (0..PODS)
            .map(|number| {
                let pod = Pod::new(&scene, &format!("pod-{number}"), &expected, &tally);
                std::thread::spawn(move || pod.comes_and_goes())
            })
            .collect();
        let reader = Pod::new(&scene, "staying", &expected, &tally);
        pods.push(std::thread::spawn(move || reader.stays()));

        // Half of them with each engine.
        let kills = kills / 2;
        kill_at_random(&mut scene, kills);

        tally.enough.store(true, Relaxed);
        for pod in pods {
            pod.join().unwrap();
        }
        let (reads, rounds) = (tally.reads.load(Relaxed), tally.rounds.load(Relaxed));
        eprintln!("{engine}: {kills} kills, {rounds} pods, {reads} files read");
        assert!(
            reads > u64::from(kills) && rounds > PODS as u64,
            "they did something"
        );
        scene.unpublish(&staying).unwrap();
        scene.assert_nothing_left();
        nothing_is_held(&scene);
    }
}

/// The server again and again; now and then the plugin or the keeper, which are started again.
fn kill_at_random(scene: &mut Scene, kills: u32) {
    let mut random = fastrand::Rng::with_seed(u64::from(kills));
    for number in 1..=kills {
        std::thread::sleep(Duration::from_millis(random.u64(0..300)));
        match number {
            number if number % 25 == 0 => {
                scene.stop(Signal::SIGKILL);
                scene.start();
            }
            number if number % 10 == 0 => {
                scene.start_keeper(300);
                // A plugin that dies before the new keeper was told is the end of its volumes, as documented.
                let held = |scene: &Scene| scene.read_log().matches("held by the keeper").count();
                let before = held(scene);
                scene.wait_until("the new keeper has it", || held(scene) > before);
            }
            _ => {
                let server = wait_for_server(scene);
                kill(server, Signal::SIGKILL);
                // It is a zombie until all of its threads have ended: one that waits in the kernel would be seen here.
                scene.wait_until("the killed server has ended", || {
                    scene.serve_pid() != Some(server)
                });
            }
        }
    }
    wait_for_server(scene);
}

fn wait_for_server(scene: &Scene) -> u32 {
    scene.wait_until("a server runs", || scene.serve_pid().is_some());
    scene.serve_pid().unwrap()
}

#[derive(Default)]
struct Tally {
    enough: AtomicBool,
    reads: AtomicU64,
    rounds: AtomicU64,
}

/// What kubelet and the containers of a pod do.
struct Pod {
    target: PathBuf,
    socket: PathBuf,
    expected: BTreeMap<String, PathBuf>,
    tally: Arc<Tally>,
}

impl Pod {
    fn new(
        scene: &Scene,
        name: &str,
        expected: &BTreeMap<String, PathBuf>,
        tally: &Arc<Tally>,
    ) -> Pod {
        Pod {
            target: scene.target(name),
            socket: scene.path("kubelet/plugins/csi.clip.dev/csi.sock"),
            expected: expected.clone(),
            tally: tally.clone(),
        }
    }

    fn comes_and_goes(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        while !self.tally.enough.load(Relaxed) {
            runtime.block_on(self.until_it_works(async |mut node| {
                let request = publish_request(&self.target, &[("clipImage", IMAGE)]);
                node.node_publish_volume(request).await.map(drop)
            }));
            self.read_all();
            runtime.block_on(self.until_it_works(async |mut node| {
                let request = NodeUnpublishVolumeRequest {
                    volume_id: volume_id(&self.target),
                    target_path: self.target.to_str().unwrap().into(),
                };
                node.node_unpublish_volume(request).await.map(drop)
            }));
            assert!(!self.target.exists());
            self.tally.rounds.fetch_add(1, Relaxed);
        }
    }

    fn stays(&self) {
        while !self.tally.enough.load(Relaxed) {
            self.read_all();
        }
    }

    /// As kubelet does. A refusal must be one that says "try again".
    async fn until_it_works(
        &self,
        request: impl AsyncFn(NodeClient<Channel>) -> Result<(), Status>,
    ) {
        let begun = Instant::now();
        loop {
            let socket = format!("unix://{}", self.socket.display());
            let done = match Endpoint::try_from(socket).unwrap().connect().await {
                Ok(channel) => request(NodeClient::new(channel)).await,
                Err(error) => Err(Status::unavailable(error.to_string())),
            };
            let Err(status) = done else {
                return;
            };
            // Unknown, Cancelled: the connection was cut.
            let again = [
                Code::Unavailable,
                Code::Aborted,
                Code::Unknown,
                Code::Cancelled,
            ];
            assert!(again.contains(&status.code()), "{status:?}");
            assert!(begun.elapsed() < PATIENCE, "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A program reads, as in a container: what this process has open it would hand on to all that it starts.
    fn read_all(&self) {
        for (file, content) in &self.expected {
            let compared = Command::new("cmp")
                .arg(self.target.join(file))
                .arg(content)
                .output()
                .unwrap();
            assert!(compared.status.success(), "{file}: {compared:?}");
            self.tally.reads.fetch_add(1, Relaxed);
        }
    }
}

/// Files of the image, and what is in them.
fn expected(scene: &Scene) -> BTreeMap<String, PathBuf> {
    (0..8)
        .map(|number| {
            let file = scene.path(&format!("part-{number}"));
            fs::write(&file, part(number)).unwrap();
            (format!("srv/{number}"), file)
        })
        .collect()
}

/// Neither plugin nor keeper has a connection left.
fn nothing_is_held(scene: &Scene) {
    let connections = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let files = descriptors
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        files.filter(|file| file == Path::new("/dev/fuse")).count()
    };
    for pid in [scene.pid(), scene.keeper_pid(), wait_for_server(scene)] {
        scene.wait_until("no connection is held", || connections(pid) == 0);
    }
}
