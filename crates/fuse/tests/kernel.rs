//! With the kernel: many connections, and how they end. Needs root and `/dev/fuse`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clip_fuse::{
    Attributes, Connection, DirList, Dispatcher, Ended, Filesystem, ROOT, Reply, Statistics, Traits,
};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

const FILE: u64 = 2;
const MOUNTS: usize = 200;

/// One file, `number`, with this in it; or several with the same.
struct Files {
    content: String,
    count: u64,
    lookups: Arc<AtomicU64>,
}

fn one_file(content: impl Into<String>) -> Files {
    Files {
        content: content.into(),
        count: 1,
        lookups: Arc::default(),
    }
}

impl Files {
    fn name(index: u64) -> String {
        match index {
            0 => "number".to_owned(),
            _ => format!("number {index}"),
        }
    }
}

impl Filesystem for Files {
    fn traits(&self) -> Traits {
        Traits {
            xattrs: false,
            idmapped: true,
        }
    }

    fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        let (mode, size) = match node {
            ROOT => (0o040_755, 0),
            _ => (0o100_444, self.content.len() as u64),
        };
        Ok(Attributes {
            node,
            size,
            mtime: 0,
            mtime_nsec: 0,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
        })
    }

    fn lookup(&self, _: u64, name: &[u8]) -> Result<Option<Attributes>, Errno> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let found = (0..self.count).find(|&index| Self::name(index).as_bytes() == name);
        found.map(|index| self.attributes(FILE + index)).transpose()
    }

    fn read_link(&self, _: u64, _: &mut Vec<u8>) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }

    fn read_dir(&self, _: u64, cookie: u64, list: &mut DirList<'_>) -> Result<(), Errno> {
        for index in cookie..self.count {
            let (name, node) = (Self::name(index), FILE + index);
            if !list.add(index + 1, name.as_bytes(), node, 0o100_000, || {
                self.attributes(node)
            })? {
                break;
            }
        }
        Ok(())
    }

    fn read_now(&self, _: u64, _: u64, _: usize, _: &mut Vec<u8>) -> Result<bool, Errno> {
        Ok(false)
    }

    fn read_later(&self, _: u64, offset: u64, len: usize, reply: Reply) {
        let bytes = self.content.clone().into_bytes();
        std::thread::spawn(move || {
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            reply.data(&rest[..len.min(rest.len())]);
        });
    }

    fn xattr(&self, _: u64, _: &[u8], _: &mut Vec<u8>) -> Result<(), Errno> {
        unreachable!("not asked")
    }

    fn xattr_names(&self, _: u64, _: &mut Vec<u8>) -> Result<(), Errno> {
        unreachable!("not asked")
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            bytes: 4096,
            nodes: 2,
        }
    }
}

/// A mount that goes when the test ends, however it does.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> io::Result<(Self, OwnedFd)> {
        let dir = tempfile::tempdir()?;
        let device: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?
            .into();
        let data = format!(
            "fd={},rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data)?;
        rustix::mount::mount(
            "test",
            dir.path(),
            "fuse",
            MountFlags::RDONLY,
            data.as_c_str(),
        )?;
        Ok((Self(dir), device))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// What `cat` says. A program of its own: whoever waits for a server must not hold its descriptors.
fn cat(path: &Path) -> io::Result<String> {
    let output = Command::new("timeout")
        .arg("20")
        .arg("cat")
        .arg(path)
        .output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(io::Error::other(format!("{output:?}"))),
    }
}

fn wait(ended: Ended) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), ended).await })?
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn few_threads_serve_many_mounts_until_each_is_unmounted() {
    let dispatcher = Dispatcher::start(2).unwrap();
    let threads_before = threads();
    let mut served = Vec::new();
    for index in 0..MOUNTS {
        let (mounted, device) = Mounted::new().unwrap();
        let connection = Connection::begin(device, one_file(index.to_string())).unwrap();
        served.push((mounted, dispatcher.serve(connection).unwrap()));
    }
    for (index, (mounted, _)) in served.iter().enumerate() {
        assert_eq!(
            cat(&mounted.path().join("number")).unwrap(),
            index.to_string()
        );
    }
    // Other tests of this program may have begun or ended meanwhile.
    assert!(threads() < threads_before + 20, "{} threads", threads());
    for (mounted, ended) in served {
        drop(mounted);
        wait(ended).unwrap();
    }
}

/// A listing that does not fit into one answer goes on with attributes, also when nobody has looked at one yet: find(1)
/// lists a directory to its end first.
#[test]
fn looking_at_all_of_a_large_directory_looks_nothing_up() {
    let dispatcher = Dispatcher::start(2).unwrap();
    let (mounted, device) = Mounted::new().unwrap();
    let lookups = Arc::new(AtomicU64::new(0));
    let files = Files {
        count: 2000,
        lookups: lookups.clone(),
        ..one_file("")
    };
    let connection = Connection::begin(device, files).unwrap();
    let ended = dispatcher.serve(connection).unwrap();
    let mut list = Command::new("timeout");
    list.args(["20", "find"])
        .arg(mounted.path())
        .args(["-printf", "%s\\n"]);
    let listed = String::from_utf8(list.output().unwrap().stdout).unwrap();
    assert_eq!(listed.lines().count(), 1 + 2000);
    assert_eq!(lookups.load(Ordering::Relaxed), 0);
    drop(mounted);
    wait(ended).unwrap();
}

#[test]
fn an_aborted_connection_ends_and_the_others_go_on() {
    let dispatcher = Dispatcher::start(2).unwrap();
    let [one, other] = [(); 2].map(|()| {
        let (mounted, device) = Mounted::new().unwrap();
        let connection = Connection::begin(device, one_file("right")).unwrap();
        (mounted, dispatcher.serve(connection).unwrap())
    });
    let minor = rustix::fs::minor(rustix::fs::stat(one.0.path()).unwrap().st_dev);
    // fusectl: Documentation/filesystems/fuse.
    let control = Mounted(tempfile::tempdir().unwrap());
    let (kind, flags) = ("fusectl", MountFlags::empty());
    rustix::mount::mount(kind, control.path(), kind, flags, None).unwrap();
    std::fs::write(control.path().join(format!("{minor}/abort")), "1").unwrap();
    wait(one.1).unwrap();
    cat(&one.0.path().join("number")).unwrap_err();
    assert_eq!(cat(&other.0.path().join("number")).unwrap(), "right");
}

#[test]
fn the_next_server_answers_what_the_last_had_taken() {
    let (mounted, device) = Mounted::new().unwrap();
    let kept = device.try_clone().unwrap();
    drop(Connection::begin(device, one_file("right")).unwrap());
    let reader = {
        let path = mounted.path().join("number");
        std::thread::spawn(move || cat(&path))
    };
    // A server that takes the first request, and is gone.
    let mut taken = vec![0; (1 << 20) + 4096];
    rustix::io::read(&kept, &mut taken).unwrap();
    let dispatcher = Dispatcher::start(1).unwrap();
    let next = Connection::resume(kept, one_file("right")).unwrap();
    let ended = dispatcher.serve(next).unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), "right");
    drop(mounted);
    wait(ended).unwrap();
}

#[test]
fn what_is_no_connection_is_refused() {
    let file = File::open("/dev/null").unwrap();
    Connection::begin(file.into(), one_file("")).unwrap_err();
    let (_mounted, device) = Mounted::new().unwrap();
    drop(device);
    let unmounted = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    Connection::begin(unmounted.into(), one_file("")).unwrap_err();
}
