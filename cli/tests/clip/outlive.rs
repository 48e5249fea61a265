//! S9: a mount in the background outlives its server. Readers are programs of their own: a thread of this process would
//! leave copies of its open files to every process that the tests start, whose exec closes them and, while there is no
//! server, waits.

use crate::scene::{PATIENCE, Published, Scene, is_mounted, process, publish, serving};
use clip_testkit::{
    guard::{Mounted, hang, wait_until},
    layout::{self, Flaw, Layer},
    proxy::Mood,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::File,
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread::JoinHandle,
    time::Duration,
};

const ENGINES: [&str; 2] = ["fuse", "erofs"];
/// Each round of a test reads files that are in no cache, the kernel's neither. Rounds go from the image's end to its
/// beginning, because what is fetched ahead lies behind what was read.
const ROUNDS: u64 = 5;
const FILES_A_ROUND: u64 = 4;
const FILE_LEN: usize = 300_000;

fn content(seed: u64) -> Vec<u8> {
    layout::noise(FILE_LEN, seed + 1)
}

/// An image whose files' contents follow from `seed`, and the file `NAME.clip`.
fn published(scene: &Scene, name: &str, seed: u64) -> Published {
    let layer = (0..ROUNDS * FILES_A_ROUND).fold(Layer::new(), |layer, number| {
        layer.file(&format!("file-{number}"), content(seed + number))
    });
    let layout = layout::write(&scene.dir(name), vec![layer], Flaw::None).unwrap();
    let published = publish(&layout);
    let archive = format!("{name}.clip");
    let reference = &published.reference;
    scene.ok(["index", "--max-span", "65536", reference, &archive]);
    published
}

/// A mount of `image.clip` in the background. What it complains of is in the file `log`.
struct Kept<'a> {
    scene: &'a Scene,
    dir: PathBuf,
    _mounted: Mounted,
}

impl<'a> Kept<'a> {
    fn mount(scene: &'a Scene, engine: &str) -> Kept<'a> {
        let dir = scene.path("mnt");
        let temporary = scene.path("tmp");
        for dir in [&dir, &temporary] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let log = File::create(scene.path("log")).unwrap();
        let mut mount = scene.clip(["mount", "--background", "--engine", engine]);
        mount.args(["image.clip", "mnt"]).env("TMPDIR", temporary);
        let ended = mount.stderr(log).status();
        let kept = Kept {
            scene,
            _mounted: Mounted::at(&dir),
            dir,
        };
        assert!(ended.unwrap().success(), "{}", kept.log());
        kept
    }

    fn process(&self, role: &str) -> Option<Pid> {
        process(self.scene, role)
    }

    fn kill_server(&self) {
        self.end("server", Signal::SIGKILL);
    }

    /// Sends the signal and waits for the end of that process.
    fn end(&self, role: &str, signal: Signal) {
        let pid = self.process(role).unwrap();
        kill(pid, signal).unwrap();
        wait_until("its end", PATIENCE, || self.process(role) != Some(pid)).unwrap();
    }

    /// Programs that read the files of this round.
    fn start_readers(&self, round: u64) -> Vec<Reader> {
        let first = (ROUNDS - 1 - round) * FILES_A_ROUND;
        (first..first + FILES_A_ROUND)
            .map(|number| Reader::start(&self.dir, number))
            .collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scene.path("log")).unwrap()
    }

    fn wait_for_the_end(&self) {
        let processes = || serving(self.scene);
        wait_until("the end of all processes", PATIENCE, || {
            processes().is_empty()
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}, {}", processes(), self.log()));
    }

    /// Unmounts; nothing is left then.
    fn umount(self) {
        self.scene.ok(["umount", "mnt"]);
        self.wait_for_the_end();
        self.assert_nothing_left();
    }

    fn assert_nothing_left(&self) {
        assert!(!is_mounted(&self.dir));
        let temporary = std::fs::read_dir(self.scene.path("tmp")).unwrap();
        assert_eq!(temporary.count(), 0, "temporary files are left");
    }
}

struct Reader {
    number: u64,
    waiting: JoinHandle<io::Result<Output>>,
}

impl Reader {
    fn start(dir: &Path, number: u64) -> Reader {
        let mut cat = Command::new("cat");
        cat.arg(dir.join(format!("file-{number}")));
        let waiting = std::thread::spawn(move || cat.output());
        Reader { number, waiting }
    }

    fn end(self) -> Output {
        wait_until("the end of a reader", PATIENCE, || {
            self.waiting.is_finished()
        })
        .unwrap();
        self.waiting.join().unwrap().unwrap()
    }

    /// It has read all of its file.
    fn has_read(self, seed: u64) {
        let expected = content(seed + self.number);
        let read = self.end();
        assert!(read.status.success(), "{}", said(&read));
        assert!(read.stdout == expected, "wrong bytes");
    }

    /// It got an error, and what came before was right.
    fn has_failed(self, seed: u64) {
        let expected = content(seed + self.number);
        let read = self.end();
        assert!(!read.status.success(), "it should not have been read");
        assert!(expected.starts_with(&read.stdout), "wrong bytes");
        let promised = [
            "Transport endpoint is not connected",
            "Software caused connection abort",
            "Input/output error",
        ];
        let said = said(&read);
        assert!(promised.iter().any(|error| said.contains(error)), "{said}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// docs/semantics.md: "The death of the server of a mount in the background fails no read".
#[test]
fn s9_a_killed_server_is_noticed_by_no_reader() {
    let scene = Scene::new();
    let published = published(&scene, "image", 0);
    for engine in ENGINES {
        let kept = Kept::mount(&scene, engine);
        // In the first round they wait for the registry when the server dies.
        published.proxy.set(Mood::Silent);
        published.proxy.forget();
        for round in 0..ROUNDS {
            let readers = kept.start_readers(round);
            if round == 0 {
                wait_until("the registry is asked", PATIENCE, || {
                    !published.proxy.asked().is_empty()
                })
                .unwrap();
            }
            kept.kill_server();
            published.proxy.set(Mood::Relay);
            for reader in readers {
                reader.has_read(0);
            }
        }
        let log = kept.log();
        assert_eq!(log.matches("signal: 9").count(), ROUNDS as usize, "{log}");
        kept.umount();
        std::fs::remove_dir_all(scene.state().join("layers")).unwrap();
    }
}

/// docs/semantics.md: "When keeper and server are gone together, reads fail, and never with wrong bytes".
#[test]
fn s9_without_its_keeper_a_mount_lives_as_long_as_its_server() {
    let scene = Scene::new();
    let _published = published(&scene, "image", 0);
    for engine in ENGINES {
        let kept = Kept::mount(&scene, engine);
        kept.end("keeper", Signal::SIGKILL);
        for reader in kept.start_readers(0) {
            reader.has_read(0);
        }
        kept.kill_server();
        for reader in kept.start_readers(1) {
            reader.has_failed(0);
        }
        kept.umount();
        std::fs::remove_dir_all(scene.state().join("layers")).unwrap();
    }
}

#[test]
fn s9_sigterm_to_keeper_or_server_unmounts() {
    let scene = Scene::new();
    let _published = published(&scene, "image", 0);
    for engine in ENGINES {
        for role in ["keeper", "server"] {
            let kept = Kept::mount(&scene, engine);
            kept.end(role, Signal::SIGTERM);
            kept.wait_for_the_end();
            kept.assert_nothing_left();
        }
        // Also when there is a server that never comes to it.
        let kept = Kept::mount(&scene, engine);
        kill(kept.process("server").unwrap(), Signal::SIGSTOP).unwrap();
        kill(kept.process("keeper").unwrap(), Signal::SIGTERM).unwrap();
        kept.kill_server();
        kept.wait_for_the_end();
        kept.assert_nothing_left();
    }
}

/// As the death of the server of a mount in the background.
#[test]
fn s9_a_server_that_hangs_is_replaced_and_no_read_fails() {
    let mount_and_hang = |engine: &str| {
        let scene = Scene::new();
        let _published = published(&scene, "image", 0);
        let kept = Kept::mount(&scene, engine);
        let hung = kept.process("server").unwrap();
        hang(hung.as_raw() as u32).unwrap();
        for reader in kept.start_readers(0) {
            reader.has_read(0);
        }
        assert_ne!(kept.process("server"), Some(hung));
        let log = kept.log();
        assert!(log.contains("hangs: it was silent for 20 s"), "{log}");
        kept.umount();
    };
    // Longer than any server may be silent.
    let leave_alone = || {
        let scene = Scene::new();
        let _published = published(&scene, "image", 0);
        let kept = Kept::mount(&scene, "fuse");
        let server = kept.process("server");
        std::thread::sleep(Duration::from_secs(25));
        assert_eq!(kept.process("server"), server, "{}", kept.log());
        kept.umount();
    };
    // Most of it is waiting.
    std::thread::scope(|scope| {
        scope.spawn(leave_alone);
        for engine in ENGINES {
            scope.spawn(move || mount_and_hang(engine));
        }
    });
}

#[test]
fn s9_another_archive_under_the_name_of_the_mounted_one_is_not_mixed_in() {
    let scene = Scene::new();
    let _published = published(&scene, "image", 0);
    let _other = published(&scene, "other", 1000);
    let archive = scene.path("image.clip");
    let original = std::fs::read(&archive).unwrap();
    let replace = || std::fs::rename(scene.path("other.clip"), &archive).unwrap();
    let remove = || std::fs::remove_file(&archive).unwrap();
    let renamings: [&dyn Fn(); 2] = [&replace, &remove];
    for engine in ENGINES {
        let other = std::fs::read(scene.path("other.clip")).unwrap();
        let kept = Kept::mount(&scene, engine);
        for (round, rename) in renamings.into_iter().enumerate() {
            rename();
            kept.kill_server();
            for reader in kept.start_readers(round as u64) {
                reader.has_read(0);
            }
        }
        kept.umount();
        std::fs::write(&archive, &original).unwrap();
        std::fs::write(scene.path("other.clip"), &other).unwrap();
        std::fs::remove_dir_all(scene.state().join("layers")).unwrap();
    }
}

#[test]
fn s9_an_overwritten_archive_ends_the_mount_with_an_error() {
    let scene = Scene::new();
    let _published = published(&scene, "image", 0);
    let _other = published(&scene, "other", 1000);
    let original = std::fs::read(scene.path("image.clip")).unwrap();
    for engine in ENGINES {
        let kept = Kept::mount(&scene, engine);
        // The same file with other content.
        std::fs::copy(scene.path("other.clip"), scene.path("image.clip")).unwrap();
        kept.kill_server();
        kept.wait_for_the_end();
        for reader in kept.start_readers(0) {
            reader.has_failed(0);
        }
        let log = kept.log();
        assert!(log.contains("the archive has been overwritten"), "{log}");
        assert!(log.contains("reads fail from now on"), "{log}");
        kept.umount();
        std::fs::copy(scene.path("image.clip"), scene.path("other.clip")).unwrap();
        std::fs::write(scene.path("image.clip"), &original).unwrap();
    }
}

#[test]
fn s9_servers_that_cannot_start_are_given_up() {
    let scene = Scene::new();
    let _published = published(&scene, "image", 0);
    let kept = Kept::mount(&scene, "fuse");
    std::fs::rename(scene.state(), scene.path("elsewhere")).unwrap();
    File::create(scene.state()).unwrap();
    let readers = kept.start_readers(0);
    kept.kill_server();
    kept.wait_for_the_end();
    // Some may have been read by the server before its death.
    for reader in kept.start_readers(1) {
        reader.has_failed(0);
    }
    for reader in readers {
        reader.end();
    }
    let log = kept.log();
    // The one that was killed counts as well if it had only just begun.
    let tries = log.matches("cannot use the state directory").count();
    assert!((9..=10).contains(&tries), "{tries}: {log}");
    assert!(log.contains("no server can go on"), "{log}");
    kept.umount();
}

/// A keeper that held the image would double what each mount costs.
#[test]
fn s9_keeper_and_server_hold_nothing_of_the_mount_and_are_told_apart() {
    let scene = Scene::new();
    let _published = published(&scene, "image", 0);
    for engine in ENGINES {
        let kept = Kept::mount(&scene, engine);
        kept.kill_server();
        for reader in kept.start_readers(0) {
            reader.has_read(0);
        }
        let keeper = kept.process("keeper").unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
        let mut held: Vec<_> = descriptors
            .flatten()
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .filter(|file| file.is_absolute() && file != Path::new("/dev/null"))
            .collect();
        held.sort();
        let expected = [
            PathBuf::from("/dev/fuse"),
            scene.path("image.clip"),
            scene.path("log"),
        ];
        assert_eq!(held, expected);
        let maps = std::fs::read_to_string(format!("/proc/{keeper}/maps")).unwrap();
        let state = scene.state();
        assert!(!maps.contains(state.to_str().unwrap()), "{maps}");
        kept.umount();
        std::fs::remove_dir_all(scene.state().join("layers")).unwrap();
    }
}

#[test]
fn s9_a_full_disk_under_the_log_ends_nothing() {
    let scene = Scene::new();
    let published = published(&scene, "image", 0);
    let _small = Mounted::mount("tmpfs", &scene.dir("small"), "size=16k").unwrap();
    symlink("small/log", scene.path("log")).unwrap();
    let kept = Kept::mount(&scene, "fuse");
    // Not even the next line of the log has room.
    File::create(scene.path("log")).unwrap();
    let full = std::fs::write(scene.path("small/rest"), vec![1; 1 << 20]);
    assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    for round in 0..3 {
        published.proxy.set(Mood::Answer {
            status: 404,
            retry_after: None,
        });
        // The server has something to say about each.
        for reader in kept.start_readers(round) {
            reader.has_failed(0);
        }
        published.proxy.set(Mood::Relay);
        for reader in kept.start_readers(round) {
            reader.has_read(0);
        }
        kept.kill_server();
    }
    for reader in kept.start_readers(3) {
        reader.has_read(0);
    }
    kept.umount();
}
