//! What every test here needs: a scratch directory, the real program, a mount that goes away.

use clip_testkit::{
    guard::{Mounted, Running, wait_until},
    images,
    proxy::Proxy,
    registry::TestRegistry,
};
use nix::unistd::Pid;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

/// The program under test.
pub const CLIP: &str = env!("CARGO_BIN_EXE_clip");
/// Long enough for a busy machine; a test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A scratch directory with a state directory and a home of its own.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub raw: Vec<u8>,
}

impl Scene {
    pub fn new() -> Scene {
        let dir = tempfile::Builder::new()
            .prefix("clip-test-")
            .tempdir()
            .unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        Scene { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new empty directory.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// `clip` with these arguments, in the scratch directory, touched by nothing of this machine's user.
    pub fn clip<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(CLIP);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("CLIP_STATE_DIR", self.state())
            .env(
                "CLIP_ENGINE",
                if engine_is_erofs() { "erofs" } else { "fuse" },
            )
            .stdin(Stdio::null());
        command
    }

    /// Runs `clip` to its end.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Said {
        said(self.clip(args).output().unwrap())
    }

    /// Runs `clip`, which must succeed.
    pub fn ok<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{said:?}");
        said
    }

    /// Indexes a layout on disk; the archive's path.
    pub fn index_layout(&self, layout: &Path, name: &str) -> PathBuf {
        let out = self.path(name);
        self.ok([
            "index",
            &format!("oci:{}:latest", layout.display()),
            out.to_str().unwrap(),
        ]);
        out
    }

    /// Mounts and serves in a process of its own until the result is dropped.
    pub fn mount<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Server {
        Server::start(self.clip(["mount"]).args(args))
    }

    /// Names in the scratch directory, without the home.
    pub fn left_behind(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "home")
            .collect();
        names.sort();
        names
    }
}

/// Whether the tests that do not say otherwise mount with the kernel's own EROFS. `make test` runs them with either engine.
pub fn engine_is_erofs() -> bool {
    std::env::var_os("CLIP_ENGINE").is_some_and(|engine| engine == "erofs")
}

pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        raw: output.stdout,
    }
}

/// `clip mount` in the foreground.
pub struct Server {
    // In this order: the mount goes first, so that nobody waits for a killed server.
    mount: Option<Mounted>,
    process: Running,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts `command`, whose last argument is the mount point, and waits until it is mounted.
    pub fn start(command: &mut Command) -> Server {
        let dir = command
            .get_args()
            .last()
            .map(|dir| match command.get_current_dir() {
                Some(cwd) => cwd.join(dir),
                None => PathBuf::from(dir),
            })
            .unwrap();
        let mut process = Running(command.stderr(Stdio::piped()).spawn().unwrap());
        let log = Arc::<Mutex<String>>::default();
        let (lines, copy) = (
            BufReader::new(process.0.stderr.take().unwrap()).lines(),
            log.clone(),
        );
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                copy.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let mut server = Server {
            mount: Some(Mounted::at(dir)),
            process,
            log,
        };
        let mut ended = None;
        wait_until("the mount", PATIENCE, || {
            ended = server.process.0.try_wait().unwrap();
            ended.is_some() || server.log().contains("Unmount with Ctrl-C")
        })
        .unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", server.log());
        server
    }

    pub fn path(&self) -> &Path {
        self.mount.as_ref().unwrap().path()
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What it wrote to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has written `text`.
    pub fn wait_for_log(&self, text: &str) {
        wait_until(text, PATIENCE, || self.log().contains(text))
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
    }

    /// kill -9. The mount stays, dead.
    pub fn kill(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// Waits for the process, which must end by itself; its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the server's end", PATIENCE, || {
            status = self.process.0.try_wait().unwrap();
            status.is_some()
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        status.and_then(|status| status.code())
    }
}

/// A registry with one image, seen through a proxy.
pub struct Published {
    pub proxy: Proxy,
    pub registry: TestRegistry,
    /// The image's name, through the proxy.
    pub reference: String,
}

/// Puts a layout's image into a registry of its own as `team/app:1`.
pub fn publish(layout: &Path) -> Published {
    let registry = TestRegistry::start().unwrap();
    images::push(layout, &registry, "team/app:1").unwrap();
    let proxy = Proxy::before(registry.address()).unwrap();
    let reference = format!("{}/team/app:1", proxy.address());
    Published {
        proxy,
        registry,
        reference,
    }
}

/// Whether anything is mounted at or below `path`.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!(" {} ", path.display()))
}

/// Processes whose environment names this scene's state directory.
pub fn serving(scene: &Scene) -> Vec<String> {
    let wanted = format!("CLIP_STATE_DIR={}", scene.state().display());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter(|process| {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            environment
                .split(|&byte| byte == 0)
                .any(|variable| variable == wanted.as_bytes())
        })
        .map(|process| process.file_name().into_string().unwrap())
        .collect()
}

/// The one of them that has this role for a mount in the background, if there is one.
pub fn process(scene: &Scene, role: &str) -> Option<Pid> {
    let wanted = format!("CLIP_ROLE={role}");
    let has_role = |pid: &String| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        variables.any(|variable| variable == wanted.as_bytes())
    };
    let found = serving(scene).into_iter().find(has_role)?;
    Some(Pid::from_raw(found.parse().unwrap()))
}
