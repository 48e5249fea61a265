//! Programs that know nothing of Clip look at a mounted image, and find what they find in the tree that `umoci unpack`
//! makes: through both engines of `clip mount`, FUSE and the kernel's own EROFS.
//!
//! The one intended difference is S5: `/proc`, `/sys` and `/dev` are left out, so they are removed from umoci's tree.

use crate::scene::{Scene, Server};
use clip_testkit::{
    guard::{Mounted, run},
    images,
    layout::digest_of,
    tree::{self, differences},
};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    ffi::OsStr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// One image, unpacked by umoci and seen in two ways. Fields are dropped in this order: mounts before what they need.
struct Court {
    views: Vec<View>,
    _server: Server,
    /// umoci's tree, on a disk that is read-only.
    unpacked: PathBuf,
    _disk: Mounted,
    scene: Scene,
}

/// Where the kernel's own view is mounted.
const EROFS_DIR: &str = "erofs";

struct View {
    name: &'static str,
    root: PathBuf,
    /// Unmounts the kernel's; the server unmounts its own.
    _mounted: Option<Mounted>,
}

/// docs/semantics.md: "The kernel enforces modes".
/// docs/semantics.md: "Both engines of `clip mount` show the same".
#[test]
fn nobody_can_tell_a_mounted_image_from_the_unpacked_tree_on_a_read_only_disk() {
    let court = Court::assemble();
    ask_the_system(&court);
    ask_the_tools(&court);
}

const FINDS: [&str; 8] = [
    "-printf '%P|%y|%m|%U:%G|%T@|%n|%l\\n'",
    "! -type d -printf '%P %s\\n'",
    "-perm -4000",
    "-samefile app/main.py",
    "-empty",
    "-xtype l ! -name outside", // where that one leads depends on what the tree lies in
    "-newermt 2020-01-01 -type f",
    "-name '*.py' -size +8k",
];

fn ask_the_tools(court: &Court) {
    for look in FINDS {
        court.judge(&format!("find {look}"), |root| {
            shell(root, &format!("find . {look} 2>&1 | sort"))
        });
    }
    // The order of a file's attributes is nobody's promise: each of the only file with two goes into a tar of its own.
    for left_out in ["user.empty", "user.note"] {
        let tar = format!(
            "tar --xattrs --xattrs-include='*' --xattrs-exclude={left_out} --sort=name --numeric-owner --format=posix \
             --pax-option=exthdr.name=%d/pax/%f,delete=atime,delete=ctime -cf - . | sha256sum"
        );
        court.judge("tar", |root| shell(root, &tar));
    }
    court.judge("git", |root| {
        let git = "git --no-optional-locks -c safe.directory='*' -C srv/repo";
        let looks = [
            "status --porcelain=v2",
            "log --stat",
            "diff",
            "fsck --full",
            "stash list",
        ];
        let looks = looks.map(|look| format!("{git} {look} 2>&1"));
        shell(root, &looks.join(" && "))
    });
    court.judge("dpkg --verify", |root| {
        shell(
            root,
            "dpkg --root=. --verify; dpkg --root=. --audit; dpkg --root=. -l | sha256sum",
        )
    });
    court.judge("pip check", |root| {
        let pip = "PYTHONDONTWRITEBYTECODE=1 chroot . python3 -m pip";
        let asks = ["check", "list --format=freeze", "show -f numpy pip"];
        let asks = asks.map(|ask| format!("{pip} --no-color {ask} 2>&1"));
        shell(root, &asks.join("; "))
    });
    court.judge("compileall", |root| court.compile(root));
    court.judge("sha256sum --check", |root| {
        shell(root, "cd var/lib/dpkg/info && sed 's#  #  /#' coreutils.md5sums | chroot ../../../.. md5sum --check 2>&1")
    });
    for view in &court.views {
        let said = court.rsync(&view.root);
        assert_eq!(said, "", "{}: rsync would change something", view.name);
        let copy = court.scene.path("copy");
        run(Command::new("cp").arg("-a").arg(&view.root).arg(&copy)).unwrap();
        let (copied, unpacked) = (tree::look(&copy), tree::look(&court.unpacked));
        let differences = differences(&copied.unwrap(), &unpacked.unwrap());
        assert_eq!(differences, Vec::<String>::new(), "{}: cp -a", view.name);
        std::fs::remove_dir_all(copy).unwrap();
    }
}

fn ask_the_system(court: &Court) {
    for uid in ["0", "1000", "3000000"] {
        court.judge(&format!("posix.py as {uid}"), |root| posix(root, uid));
    }
}

/// What `posix.py` says of every system call that it knows.
fn posix(root: &Path, uid: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clip/posix.py");
    let mut python = Command::new("python3");
    python.arg(script).arg(root).arg(uid);
    let said = run(&mut python).unwrap();
    assert!(said.lines().count() > 900, "{} cases", said.lines().count());
    match root.ends_with(EROFS_DIR) {
        true => set_aside_what_the_kernel_cannot(&said),
        false => said,
    }
}

/// EROFS has no fsync (Linux 6.18 says EINVAL). Nothing in it can be waiting to be written.
fn set_aside_what_the_kernel_cannot(said: &str) -> String {
    let flushes = ["'fsync'\tEINVAL", "'fdatasync'\tEINVAL"];
    assert!(flushes.iter().all(|flush| said.contains(flush)), "{said}");
    let answered = |said: String, flush: &&str| said.replace(flush, &flush.replace("EINVAL", "0"));
    flushes.iter().fold(said.to_owned(), answered)
}

impl Court {
    fn assemble() -> Court {
        let scene = Scene::new();
        let layout = image(&scene);
        let disk = Mounted::mount("tmpfs", &scene.dir("disk"), "size=4g,mode=755").unwrap();
        let unpacked = unpack(&disk.path().join("bundle"), &layout);
        let archive = scene.index_layout(&layout, "image.clip");
        let fuse = scene.dir("fuse");
        let server = scene.mount([
            "--engine".as_ref(),
            "fuse".as_ref(),
            "-o".as_ref(),
            "suid,dev".as_ref(),
            archive.as_os_str(),
            fuse.as_os_str(),
        ]);
        let mut views = vec![View {
            name: "FUSE",
            root: fuse,
            _mounted: None,
        }];
        views.extend(erofs(&scene, &archive));
        touch_root_like(&views[0].root, &unpacked);
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(
            None::<&str>,
            disk.path(),
            None::<&str>,
            read_only,
            None::<&str>,
        )
        .unwrap();
        Court {
            views,
            _server: server,
            unpacked,
            _disk: disk,
            scene,
        }
    }

    /// Asks the judge about each tree; it must say the same of all.
    fn judge(&self, judge: &str, ask: impl Fn(&Path) -> String) {
        let expected = ask(&self.unpacked);
        assert!(!expected.is_empty(), "{judge} says nothing");
        for view in &self.views {
            let said = ask(&view.root);
            assert!(
                said == expected,
                "{judge} on {} (-) and on the unpacked tree (+):\n{}",
                view.name,
                unlike(&said, &expected)
            );
        }
    }

    fn rsync(&self, root: &Path) -> String {
        let mut rsync = Command::new("rsync");
        rsync.args(["-an", "--checksum", "--delete", "-HAX", "--itemize-changes"]);
        rsync.arg(self.unpacked.join(".")).arg(root.join("."));
        run(&mut rsync).unwrap()
    }

    /// Compiles some of the image's Python, and says what came out: the byte code holds the sources' sizes and times.
    fn compile(&self, root: &Path) -> String {
        let out = self.scene.dir("pycache");
        let compile = "python3 -m compileall -q -s \"$PWD\" -p / usr/lib/python3.11/json usr/lib/python3.11/email \
                       usr/lib/python3/dist-packages/numpy/core app 2>&1";
        let said = run(Command::new("sh")
            .args(["-c", compile])
            .env("PYTHONPYCACHEPREFIX", &out)
            .current_dir(root))
        .unwrap();
        let made = out.join(root.strip_prefix("/").unwrap());
        let made = shell(&made, "find . -type f -exec sha256sum {} + | sort -k2");
        assert!(made.lines().count() > 60, "{made}");
        std::fs::remove_dir_all(out).unwrap();
        said + &made
    }
}

/// python-app, and on top of it a repository, pip with a package that lacks something, and links that lead nowhere.
fn image(scene: &Scene) -> PathBuf {
    let layout = scene.path("layout");
    run(Command::new("cp")
        .args(["-r"])
        .arg(images::image("python-app").unwrap())
        .arg(&layout))
    .unwrap();
    let root = scene.dir("top");
    let (top, packages) = (root.join("srv"), root.join("usr/lib/python3/dist-packages"));
    std::fs::create_dir(&top).unwrap();
    std::fs::create_dir_all(&packages).unwrap();
    let repo = "git init -q -b main repo && cd repo && git config user.name T && git config user.email t@example.com &&
        mkdir dir && seq 1000 >dir/numbers && seq 5 >five && echo '#!/bin/sh' >run && chmod +x run && ln -s five link &&
        echo '*.o' >.gitignore && git add . && git commit -q -m first &&
        seq 6 >>five && git commit -q -a -m second && echo staged >new && git add new && rm dir/numbers &&
        echo changed >>five && touch ignored.o untracked && chmod -x run && git repack -q -a -d";
    shell(&top, repo);
    symlink("loop", top.join("loop")).unwrap();
    symlink("../app/sub/..", top.join("to-dir")).unwrap();
    symlink("five", top.join("chain-0")).unwrap();
    std::fs::write(top.join("five"), "5").unwrap();
    for at in 1..=41 {
        symlink(format!("chain-{}", at - 1), top.join(format!("chain-{at}"))).unwrap();
    }
    std::fs::write(top.join("no-interpreter"), "#!/no/such/program\n").unwrap();
    shell(&top, "chmod 755 no-interpreter");
    let pip = "/usr/lib/python3/dist-packages";
    shell(
        &packages,
        &format!(
            "cp -r {pip}/pip {pip}/pip-*info . && find . -name __pycache__ -exec rm -r {{}} +"
        ),
    );
    let info = packages.join("demo-1.0.dist-info");
    std::fs::create_dir(&info).unwrap();
    let metadata = "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\nRequires-Dist: no-such-package\nRequires-Dist: numpy<1\n";
    std::fs::write(info.join("METADATA"), metadata).unwrap();
    std::fs::write(info.join("RECORD"), "").unwrap();
    add_layer(&layout, &root);
    layout
}

/// Puts the tree `root` on top of a layout's image.
fn add_layer(layout: &Path, root: &Path) {
    let read =
        |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &str| layout.join("blobs/sha256").join(&digest["sha256:".len()..]);
    let add = |content: &[u8]| {
        let digest = digest_of(content);
        std::fs::write(blob(&digest), content).unwrap();
        (digest, content.len())
    };
    let add_json = |value: &Value, descriptor: &mut Value| {
        let (digest, size) = add(&serde_json::to_vec(value).unwrap());
        (descriptor["digest"], descriptor["size"]) = (digest.into(), size.into());
    };
    let tar = root.with_extension("tar");
    shell(
        root,
        &format!("tar --sort=name --numeric-owner -cf {} *", tar.display()),
    );
    let diff_id = digest_of(&std::fs::read(&tar).unwrap());
    run(Command::new("gzip").arg(&tar)).unwrap();
    let (digest, size) = add(&std::fs::read(tar.with_extension("tar.gz")).unwrap());

    let mut index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(index["manifests"][0]["digest"].as_str().unwrap()));
    let mut config = read(&blob(manifest["config"]["digest"].as_str().unwrap()));
    config["rootfs"]["diff_ids"]
        .as_array_mut()
        .unwrap()
        .push(diff_id.into());
    add_json(&config, &mut manifest["config"]);
    let layer =
        json!({ "mediaType": manifest["layers"][0]["mediaType"], "digest": digest, "size": size });
    manifest["layers"].as_array_mut().unwrap().push(layer);
    add_json(&manifest, &mut index["manifests"][0]);
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

/// umoci's tree, with S5 and without what umoci 0.4.7 gets wrong (see differential.rs).
fn unpack(bundle: &Path, layout: &Path) -> PathBuf {
    let mut umoci = Command::new("umoci");
    umoci
        .args(["unpack", "--image"])
        .arg(format!("{}:latest", layout.display()));
    run(umoci.arg(bundle)).unwrap();
    let root = bundle.join("rootfs");
    shell(
        &root,
        "rm -rf proc sys dev && setfattr -n user.empty app/noted && touch -d 2024-05-06T07:08:09 app/noted",
    );
    root
}

/// No layer has an entry for the root; ours takes the time of the entry that implied it (S4), umoci's has 1970.
fn touch_root_like(ours: &Path, theirs: &Path) {
    run(Command::new("touch").arg("-r").arg(ours).arg(theirs)).unwrap();
}

/// The kernel's EROFS. None, and a word, where the kernel cannot mount plain files (before Linux 6.12).
fn erofs(scene: &Scene, archive: &Path) -> Option<View> {
    let root = scene.dir(EROFS_DIR);
    let options = ["--background", "--engine", "erofs", "-o", "suid,dev"].map(OsStr::new);
    let mount = [OsStr::new("mount")].into_iter().chain(options);
    let said = scene.run(mount.chain([archive.as_os_str(), root.as_os_str()]));
    if said.err.contains("No such device") || said.err.contains("Block device required") {
        eprintln!("the kernel's own view was not judged: {}", said.err);
        return None;
    }
    assert_eq!(said.code, 0, "{said:?}");
    Some(View {
        name: "EROFS",
        _mounted: Some(Mounted::at(&root)),
        root,
    })
}

/// The lines that only one of two texts has.
fn unlike(ours: &str, theirs: &str) -> String {
    let (our_lines, their_lines): (HashSet<_>, HashSet<_>) =
        (ours.lines().collect(), theirs.lines().collect());
    let only = |sign, text: &str, others: &HashSet<&str>| {
        let lines = text.lines().filter(|line| !others.contains(line));
        lines
            .take(100)
            .map(|line| format!("{sign}{line}\n"))
            .collect::<String>()
    };
    only('-', ours, &their_lines) + &only('+', theirs, &our_lines)
}

/// What a shell script says, run in `dir`. How it ends is part of that.
fn shell(dir: &Path, script: &str) -> String {
    let mut sh = Command::new("sh");
    let output = sh
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::null());
    let output = output.output().unwrap();
    // A judge may name the place that it looks at.
    let said = String::from_utf8_lossy(&output.stdout).replace(dir.to_str().unwrap(), "ROOT");
    let complaints = String::from_utf8_lossy(&output.stderr).replace(dir.to_str().unwrap(), "ROOT");
    format!(
        "{said}{complaints}exit {}\n",
        output.status.code().unwrap_or(-1)
    )
}
