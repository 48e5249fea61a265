//! An archive of ours in the registry, beside its image, where a node finds it.

use crate::{relay::Relay, run, world::World};
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

/// See the module.
#[derive(Debug)]
pub struct Published {
    image: &'static str,
    archive: PathBuf,
}

impl Published {
    /// Indexes `image` and publishes the archive, if no bench has done so.
    pub fn of(world: &World, image: &'static str) -> Result<Self> {
        let archive = world.scratch.path().join(format!("{image}.published.clip"));
        if !archive.exists() {
            let reference = world.reference(image);
            let repository = world.repository_behind(&world.relay, image);
            let mut index = world.clip();
            index.arg("index").arg(&reference).arg(&archive);
            run::timed(index.args(["--publish", &repository]))?;
        }
        Ok(Self { image, archive })
    }

    /// The archive on the disk.
    pub fn path(&self) -> &Path {
        &self.archive
    }

    /// The same archive, made behind another relay: an archive names the registry where it was indexed.
    pub fn behind(&self, world: &World, relay: &Relay) -> Result<PathBuf> {
        let port = relay.address().rsplit(':').next().context("a port")?;
        let archive = self.archive.with_extension(format!("{port}.clip"));
        if !archive.exists() {
            let reference = world.reference_behind(relay, self.image);
            let mut index = world.clip();
            index.arg("index").arg(reference).arg(&archive);
            run::timed(index.arg("--reuse").arg(&self.archive))?;
        }
        Ok(archive)
    }

    /// Gets it over the line, on a new connection, as a node does first.
    pub fn fetch(&self, relay: &Relay) -> Result<()> {
        let sum = Command::new("sha256sum").arg(&self.archive).output()?;
        let digest = String::from_utf8(sum.stdout)?;
        let digest = digest.split(' ').next().context("a digest")?;
        let mut connection = TcpStream::connect(relay.address())?;
        write!(
            connection,
            "GET /v2/bench/{}/blobs/sha256:{digest} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.image,
            relay.address()
        )?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        ensure!(
            answer.starts_with(b"HTTP/1.1 200"),
            "the archive is not in the registry"
        );
        Ok(())
    }
}
