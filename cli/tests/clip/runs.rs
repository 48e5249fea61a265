//! S10: `clip run`, from the terminal's view: stdio, signals, exit codes, and what is left when it ends, however it ends.

use crate::{
    bundles::Stage,
    scene::{PATIENCE, said},
};
use clip_testkit::guard::{Running, run, wait_until};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// A `clip run` that goes on until somebody ends it.
struct Ongoing<'a> {
    stage: &'a Stage,
    process: Running,
    out: BufReader<std::process::ChildStdout>,
}

impl<'a> Ongoing<'a> {
    /// Runs `script` and waits until it says `ready`.
    fn start(stage: &'a Stage, script: &str) -> Ongoing<'a> {
        let mut command = stage.clip(["run", "image.clip", "--", "sh", "-c", script]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut process = Running(command.spawn().unwrap());
        let out = BufReader::new(process.0.stdout.take().unwrap());
        let mut ongoing = Ongoing {
            stage,
            process,
            out,
        };
        ongoing.wait_for("ready");
        ongoing
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            assert_ne!(
                self.out.read_line(&mut line).unwrap(),
                0,
                "it ended without {word:?}"
            );
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.0.id() as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Its exit code and what else it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        let mut status = None;
        wait_until("the end of clip run", PATIENCE, || {
            status = self.process.0.try_wait().unwrap();
            status.is_some()
        })
        .unwrap();
        self.stage.assert_nothing_left();
        (status.and_then(|status| status.code()), rest)
    }
}

#[test]
fn s10_an_image_is_tried_by_its_name_and_leaves_nothing() {
    let stage = Stage::new();
    for engine in ["fuse", "erofs"] {
        for (_, runtime) in stage.runtimes() {
            let image = &stage.published.reference;
            let args = ["run", "--engine", engine, "--runtime", &runtime, image];
            let said = said(stage.clip(args).output().unwrap());
            assert_eq!(said.code, 0, "{said:?}");
            assert!(
                said.out.contains("uid=1000(app)") && said.out.ends_with("hi\n"),
                "{said:?}"
            );
            stage.assert_nothing_left();
        }
    }
}

#[test]
fn s10_the_exit_code_is_the_containers() {
    let stage = Stage::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$; sleep 9", 137)] {
        // The first process of a container cannot be killed from inside.
        let script = format!("sh -c '{script}'; exit $?");
        let said = said(
            stage
                .clip(["run", "image.clip", "--", "sh", "-c", &script])
                .output()
                .unwrap(),
        );
        assert_eq!(said.code, code, "{said:?}");
    }
    let said = said(
        stage
            .clip(["run", "--entrypoint", "/no/such/program", "image.clip"])
            .output()
            .unwrap(),
    );
    assert_ne!(said.code, 0);
    assert!(said.err.contains("/no/such/program"), "{said:?}");
    stage.assert_nothing_left();
}

#[test]
fn s10_what_the_user_says_goes_before_what_the_image_says() {
    let stage = Stage::new();
    let mut command = stage.clip([
        "run",
        "--user",
        "root",
        "--workdir",
        "/tmp",
        "--env",
        "GREETING=ho",
        "--env",
        "PASSED",
    ]);
    command.args([
        "--net",
        "none",
        "--entrypoint",
        "sh",
        "image.clip",
        "--",
        "-c",
    ]);
    command.arg("id -u; pwd; echo $GREETING $PASSED $HOME; tail -n +3 /proc/net/dev | cut -d: -f1; echo hi >/x; cat /x");
    let said = said(command.env("PASSED", "on").output().unwrap());
    assert_eq!(said.out, "0\n/tmp\nho on /root\n    lo\nhi\n", "{said:?}");
    stage.assert_nothing_left();
}

#[test]
fn s10_stdin_goes_in_and_stdout_and_stderr_come_out_apart() {
    let stage = Stage::new();
    let script = "cat; echo complaint >&2; test -t 0 || echo no terminal";
    let mut command = stage.clip(["run", "image.clip", "--", "sh", "-c", script]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let said = said(child.wait_with_output().unwrap());
    assert!(said.out.ends_with("typed\nno terminal\n"), "{said:?}");
    assert_eq!(said.err, "complaint\n");
    stage.assert_nothing_left();
}

#[test]
fn s10_with_a_terminal_the_container_has_one() {
    let stage = Stage::new();
    let clip = stage.clip([
        "run",
        "image.clip",
        "--",
        "sh",
        "-c",
        "test -t 0 && test -t 1 && echo on a $TERM; tty",
    ]);
    let words = std::iter::once(clip.get_program()).chain(clip.get_args());
    let quoted = words.map(|word| format!("'{}'", word.to_str().unwrap()));
    let line = quoted.collect::<Vec<_>>().join(" ");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    script.current_dir(stage.scene.dir.path()).env_clear();
    script.envs(
        clip.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let said = run(&mut script).unwrap();
    assert!(
        said.contains("on a xterm") && said.contains("/dev/"),
        "{said}"
    );
    stage.assert_nothing_left();
}

#[test]
fn s10_signals_reach_the_container_once() {
    let stage = Stage::new();
    let script = "trap 'echo got' INT; trap 'exit 3' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let asked = Ongoing::start(&stage, script);
    asked.signal(Signal::SIGTERM);
    assert_eq!(asked.end(), (Some(9), String::new()));

    // Ctrl-C goes to everybody in front of the terminal.
    let mut group = Ongoing::start(&stage, script);
    killpg(group.pid(), Signal::SIGINT).unwrap();
    group.wait_for("got");
    group.signal(Signal::SIGUSR1);
    assert_eq!(group.end(), (Some(3), String::new()));
}

#[test]
fn s10_who_does_not_listen_is_killed_by_the_second_ctrl_c() {
    let stage = Stage::new();
    let script = "trap '' INT; trap 'echo got' TERM; echo ready; while :; do sleep 0.1; done";
    let mut deaf = Ongoing::start(&stage, script);
    deaf.signal(Signal::SIGTERM);
    deaf.wait_for("got");
    deaf.signal(Signal::SIGINT);
    assert_eq!(deaf.end(), (Some(137), String::new()));
}

#[test]
fn s10_a_signal_at_any_moment_leaves_nothing() {
    let stage = Stage::new();
    // Everything is in the cache, so that all moments are much the same each time.
    said(stage.clip(["run", "image.clip"]).output().unwrap());
    for moment in 0..12 {
        let mut command = stage.clip(["run", "image.clip", "--", "sleep", "100"]);
        let mut process = Running(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        std::thread::sleep(Duration::from_millis(40) * moment);
        let pid = Pid::from_raw(process.0.id() as i32);
        let mut ended = None;
        // sleep(1) as a first process does not listen; and the first signal may come before anybody catches it.
        wait_until("the end of clip run", PATIENCE, || {
            let _ = kill(pid, Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(100));
            ended = process.0.try_wait().unwrap();
            ended.is_some()
        })
        .unwrap();
        stage.assert_nothing_left();
    }
}

#[test]
fn s10_killed_it_leaves_a_bundle_whose_container_goes_on() {
    let stage = Stage::new();
    let script =
        "echo ready; read line; cat /etc/debian_version >/dev/null && echo goes on; exit 0";
    let mut ongoing = Ongoing::start(&stage, script);
    // Waiting would close it.
    let mut stdin = ongoing.process.0.stdin.take().unwrap();
    ongoing.process.0.kill().unwrap();
    ongoing.process.0.wait().unwrap();
    let bundle: Vec<PathBuf> = std::fs::read_dir(stage.temporary.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [bundle] = bundle.as_slice() else {
        panic!("{bundle:?}")
    };
    let remove = || {
        said(
            stage
                .clip(["umount", "--remove"])
                .arg(bundle)
                .output()
                .unwrap(),
        )
    };
    let refused = remove();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("a container runs in"), "{refused:?}");
    assert!(bundle.join("config.json").exists());

    stdin.write_all(b"go\n").unwrap();
    let mut rest = String::new();
    ongoing.out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "goes on\n");
    // The runtime goes away a little after its container.
    wait_until("the end of the container", PATIENCE, || remove().code == 0).unwrap();
    assert!(!bundle.exists());
    stage.assert_nothing_left();
}
