//! What the user says about a container, and how it becomes the container's configuration.

use crate::{archive_source::Opened, failure::Failure};
use clap::{Args, ValueEnum};
use clip_archive::erofs::FileType;
use clip_bundle::{Image, Network, Spec, UserFiles, Wishes, runtime_spec};
use clip_fs::Resolved;
use std::path::Path;

/// How a container differs from what its image says.
#[derive(Debug, Args)]
#[command(next_help_heading = "Container")]
pub struct ContainerArgs {
    /// Run as this user of the image; names or numbers.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// Start in this directory of the image.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Set a variable, or pass on the caller's. May be repeated.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,

    /// Run this program in place of the image's entrypoint and its arguments.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,

    /// Let the container write nothing but /dev/shm.
    #[arg(long)]
    read_only: bool,

    /// What the container sees of the network.
    #[arg(long, value_enum, default_value = "host")]
    net: Net,

    /// Arguments for the entrypoint, in place of the image's. Without an entrypoint, the command.
    #[arg(last = true, value_name = "ARGS", help_heading = None::<&str>)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Net {
    /// What the machine sees, with its /etc/resolv.conf and /etc/hosts.
    Host,
    /// A loopback interface of its own.
    None,
}

/// How names are found on the machine's network.
const HOST_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// Lists of users are a few kilobytes; so many bytes are read at most.
const USER_FILE_LIMIT: u64 = 4 << 20;

impl ContainerArgs {
    /// The configuration of a container of this image. Reads the image's users, perhaps from its registry.
    pub fn spec(&self, opened: &Opened, terminal: bool) -> Result<Spec, Failure> {
        let wishes = Wishes {
            entrypoint: self.entrypoint.clone(),
            arguments: self.arguments.clone(),
            environment: self.env.clone(),
            user: self.user.clone(),
            directory: self.workdir.clone(),
            read_only: self.read_only,
            terminal,
            hostname: short_name(&opened.image.fs.info().name).to_owned(),
            network: self.network(opened),
            // As systemd and runtimes tell it.
            cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        };
        let image = Image {
            config: &opened.image.config,
            users: UserFiles {
                passwd: user_file(opened, "/etc/passwd")?,
                group: user_file(opened, "/etc/group")?,
            },
        };
        runtime_spec(&image, &wishes).map_err(|problem| {
            let name = &opened.image.fs.info().name;
            Failure::local(format!("cannot make a container of {name}: {problem}"))
        })
    }

    fn network(&self, opened: &Opened) -> Network {
        let wanted = |path: &&str| Path::new(path).is_file() && self.can_be_mounted(opened, path);
        match self.net {
            Net::Host => Network::Host {
                files: HOST_FILES.into_iter().filter(wanted).collect(),
            },
            Net::None => Network::None,
        }
    }

    /// Whether there is a file in the image to mount on, or one can be made.
    fn can_be_mounted(&self, opened: &Opened, path: &str) -> bool {
        let resolve = |follow| opened.image.fs.resolve(path.as_bytes(), follow);
        match resolve(true) {
            Ok(Resolved::Found(inode)) => inode.kind == FileType::Regular,
            // A link that leads nowhere: the runtime makes what it leads to, if it can.
            Ok(Resolved::Missing) => {
                !self.read_only || matches!(resolve(false), Ok(Resolved::Missing))
            }
            _ => false,
        }
    }
}

fn user_file(opened: &Opened, path: &str) -> Result<Vec<u8>, Failure> {
    let read = opened.image.read_file(path, USER_FILE_LIMIT);
    let content = opened.runtime.block_on(read);
    content
        .map(Option::unwrap_or_default)
        .map_err(|error| Failure::new("ReadFailed", error))
}

/// `app` of `registry.example.com:5000/team/app:1`.
fn short_name(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last)
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => match std::env::var(text) {
            Ok(value) => (text, value),
            Err(_) => return Err("it is not set here: write NAME=VALUE".to_owned()),
        },
    };
    match name.is_empty() {
        true => Err("a variable needs a name".to_owned()),
        false => Ok((name.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_name_of_an_image_has_no_registry_and_no_tag() {
        assert_eq!(short_name("registry.example.com:5000/team/app:1"), "app");
        assert_eq!(short_name("oci:/tmp/layout:latest"), "layout");
        assert_eq!(short_name("docker.io/library/debian"), "debian");
    }
}
