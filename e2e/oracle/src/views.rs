//! Our side: a stack of layers becomes an archive, the archive a tree, the tree two mounts: the FUSE
//! server's and the kernel's own EROFS with the layers' tars as devices. The very code that `clip`
//! and the node run, from the bytes of the blobs on.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clip_archive::{
    ArchiveWriter, Digest, Entry, LayerSection, RuntimeDirs, head::Indexer, write::ImageInfo,
};
use clip_engine::{
    CacheLimits, Layout, MountOptions, Node, NodeOptions, Session, SpanLimits,
    registry::{ClientOptions, LAYOUT_REGISTRY},
};
use clip_index::{LayerContent, LayerError, LayerIndexer, LayerInfo};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::runtime::Handle;

/// One layer of an image on its way to our side.
pub struct Blob {
    /// As a registry would serve it.
    pub bytes: Vec<u8>,
    /// Its uncompressed tar.
    pub tar: Vec<u8>,
}

/// What became of a stack.
pub enum Outcome {
    /// Indexing or opening refused it.
    Refused(String),
    Mounted(Box<Mounted>),
}

/// Both views, until they are unmounted.
pub struct Mounted {
    fuse: PathBuf,
    erofs: PathBuf,
    session: Option<Session>,
    state: PathBuf,
    /// The layers' entries as we read them.
    pub layers: Vec<Vec<Entry>>,
}

/// A place where one image after the other is mounted.
pub struct Bench {
    dir: PathBuf,
    node: Node,
    runtime: Handle,
}

impl Bench {
    /// Uses the directory `dir`, which is empty.
    pub fn new(dir: &Path, runtime: Handle) -> Result<Self> {
        for name in ["fuse", "erofs", "state", "blobs/sha256"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let options = NodeOptions {
            state_dir: dir.join("state"),
            cache: CacheLimits::default(),
            client: ClientOptions::default(),
            read_timeout: Duration::from_secs(10),
        };
        Ok(Self {
            dir: dir.to_owned(),
            node: Node::new(options, runtime.clone())?,
            runtime,
        })
    }

    /// Where the FUSE view and the EROFS view are while an image is mounted.
    pub fn views(&self) -> [PathBuf; 2] {
        [self.dir.join("fuse"), self.dir.join("erofs")]
    }

    /// The uncompressed tar of layer `index`, once [`Self::write_tars`] has written it.
    pub fn tar(&self, index: usize) -> PathBuf {
        self.dir.join(format!("tar{index}"))
    }

    /// Writes the layers' tars, for the unpackers and as the EROFS mount's devices.
    pub fn write_tars(&self, blobs: &[Blob]) -> Result<()> {
        for (index, blob) in blobs.iter().enumerate() {
            fs::write(self.tar(index), &blob.tar)?;
        }
        Ok(())
    }

    /// Indexes the layers, opens the archive, mounts both views.
    pub fn mount(&self, blobs: &[Blob]) -> Result<Outcome> {
        let sections: Result<Vec<LayerSection>, LayerError> = blobs.iter().map(index).collect();
        let sections = match sections {
            Ok(sections) => sections,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        let archive = self.dir.join("image.clip");
        fs::write(&archive, self.archive(&sections))?;
        for blob in blobs {
            let digest = Digest::of(&blob.bytes).hex().to_string();
            fs::write(self.dir.join("blobs/sha256").join(digest), &blob.bytes)?;
        }
        let opened = match self.node.open_image(&archive, None) {
            Ok(opened) => opened,
            Err(error) => return Ok(Outcome::Refused(error.to_string())),
        };
        let [fuse, erofs] = self.views();
        let options = MountOptions {
            suid: true,
            dev: true,
            allow_other: true,
        };
        let session = Session::mount(
            opened.fs.clone(),
            &fuse,
            "clip:oracle",
            Layout::Tree,
            options,
            self.runtime.clone(),
        )
        .context("cannot mount by FUSE")?;
        let mounted = Mounted {
            fuse,
            erofs,
            session: Some(session),
            state: self.dir.clone(),
            layers: sections.into_iter().map(|layer| layer.entries).collect(),
        };
        self.mount_erofs(blobs.len())?;
        Ok(Outcome::Mounted(Box::new(mounted)))
    }

    fn archive(&self, sections: &[LayerSection]) -> Vec<u8> {
        let mut writer = ArchiveWriter::new();
        sections
            .iter()
            .for_each(|section| writer.add_layer(section));
        writer.finish(ImageInfo {
            registry: LAYOUT_REGISTRY.to_owned(),
            repository: self.dir.to_string_lossy().into_owned(),
            tag: None,
            manifest_digest: Digest::of(b"no manifest"),
            platform: "linux/amd64".to_owned(),
            config: b"{}".to_vec(),
            runtime_dirs: RuntimeDirs::Omit,
            indexer: Indexer::default(),
        })
    }

    /// The one tree in the state directory is this image's.
    fn mount_erofs(&self, layers: usize) -> Result<()> {
        let trees: Vec<_> = fs::read_dir(self.dir.join("state/trees"))?.collect();
        let [Ok(tree)] = trees.as_slice() else {
            anyhow::bail!("there should be one tree in the state directory: {trees:?}");
        };
        let devices: Vec<String> = (0..layers)
            .map(|index| format!("device={}", self.tar(index).display()))
            .collect();
        mount(
            Some(&tree.path()),
            &self.dir.join("erofs"),
            Some("erofs"),
            MsFlags::MS_RDONLY,
            Some(devices.join(",").as_str()),
        )
        .context("cannot mount EROFS on a file (Linux 6.12 or later?)")
    }
}

impl Mounted {
    /// Unmounts both and forgets everything about the image.
    pub fn unmount(mut self) -> Result<()> {
        self.detach()
    }

    fn detach(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        // Not mounted where mounting it failed.
        let _ = umount2(&self.erofs, MntFlags::empty());
        umount2(&self.fuse, MntFlags::empty()).context("cannot unmount FUSE")?;
        session.join().context("the FUSE server failed")?;
        forget(&self.state)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("oracle: {error:#}");
        }
    }
}

/// Empties the node's state: the next image starts cold, and the tmpfs does not fill up.
fn forget(dir: &Path) -> Result<()> {
    for name in ["state/trees", "state/layers", "blobs/sha256"] {
        for entry in fs::read_dir(dir.join(name))? {
            let path = entry?.path();
            match path.is_dir() {
                true => fs::remove_dir_all(path)?,
                false => fs::remove_file(path)?,
            }
        }
    }
    Ok(())
}

fn index(blob: &Blob) -> Result<LayerSection, LayerError> {
    let info = LayerInfo {
        digest: Digest::of(&blob.bytes),
        diff_id: Some(Digest::of(&blob.tar)),
        size: blob.bytes.len() as u64,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        content: LayerContent::Tar { top: None },
    };
    let mut indexer = LayerIndexer::new(info, SpanLimits::default());
    // Odd pieces, as a network delivers them.
    for piece in blob.bytes.chunks(4093) {
        indexer.push(Bytes::copy_from_slice(piece))?;
    }
    Ok(indexer.finish()?.section)
}
