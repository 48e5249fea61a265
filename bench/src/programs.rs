//! The programs whose start is measured, and when they are useful: when they have said their line and ended.

/// A program of an image.
#[derive(Debug)]
pub struct Program {
    /// What it is called in rows.
    pub name: &'static str,
    /// Its image, one of `world::IMAGES`.
    pub image: &'static str,
    /// What runs.
    pub command: &'static [&'static str],
    /// Seconds on the slow line, the first time and with a profile (DESIGN, targets).
    pub targets: [Option<f64>; 2],
}

/// From small to large.
pub const PROGRAMS: [Program; 5] = [
    Program {
        name: "bash",
        image: "debian-min",
        command: &["/bin/bash", "-c", "echo ready"],
        targets: [Some(0.45), None],
    },
    Program {
        name: "go version",
        image: "go-toolchain",
        // Recorded in a chroot without /proc, where Go does not find out where it is.
        command: &[
            "/usr/bin/env",
            "GOROOT=/usr/local/go",
            "/usr/local/go/bin/go",
            "version",
        ],
        targets: [Some(0.6), None],
    },
    Program {
        name: "node server",
        image: "node-app",
        command: &["/usr/local/bin/node", "/app/server.js", "once"],
        targets: [Some(2.0), Some(1.2)],
    },
    Program {
        name: "import numpy",
        image: "python-ml",
        command: &[
            "/usr/bin/python3",
            "-c",
            "import numpy; print(numpy.__version__)",
        ],
        targets: [Some(2.0), Some(1.2)],
    },
    Program {
        name: "import pandas",
        image: "python-ml",
        command: &[
            "/usr/bin/python3",
            "-c",
            "import pandas; print(pandas.__version__)",
        ],
        targets: [None, None],
    },
];

/// One of them.
pub fn called(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.name == name)
}
