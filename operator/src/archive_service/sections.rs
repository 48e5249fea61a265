//! Layers that a ClipImage of the namespace has indexed already: the Job of another one takes over the section and
//! does not download the layer (`docs/design/0009-reuse-in-the-cluster.md`).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    io,
    path::Path as FilePath,
    sync::Arc,
};

use axum::{
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use clip_archive::{Digest, Head, ReadHeadError, head::Indexer, header::FORMAT_VERSION};
use serde::Deserialize;

use super::{ArchiveService, ServiceError, archive_response, bearer, blocking, parse_digest};
use crate::store::Store;

/// Layers of all archives together that are kept in memory, 32 bytes each: 10,000 images of 26 layers.
const LAYERS_MAX: usize = 1 << 18;

#[derive(Debug, Deserialize)]
pub(super) struct LayerQuery {
    uid: Option<String>,
    #[serde(default)]
    indexer: String,
}

/// `GET /v1/namespaces/{namespace}/clipimages/{name}/layers/{layer}/archive`
pub(super) async fn get(
    State(service): State<Arc<ArchiveService>>,
    Path((namespace, name, layer)): Path<(String, String, String)>,
    Query(query): Query<LayerQuery>,
    headers: HeaderMap,
) -> Response {
    let result = service
        .with_layer(&namespace, &name, &layer, &query, &headers)
        .await;
    service.downloaded(result)
}

impl ArchiveService {
    /// For the Job that may upload the archive of `name`.
    async fn with_layer(
        &self,
        namespace: &str,
        name: &str,
        layer: &str,
        query: &LayerQuery,
        headers: &HeaderMap,
    ) -> Result<Response, ServiceError> {
        let (token, uid) = (bearer(headers)?, query.uid.as_deref());
        self.access.upload(token, namespace, name, uid).await?;
        let wanted = Wanted {
            layer: parse_digest(layer)?,
            indexer: query.indexer.parse()?,
        };
        let mut sections = self.sections.clone().lock_owned().await;
        let (store, namespace) = (self.store.clone(), namespace.to_owned());
        let found = blocking(move || sections.find(&store, &namespace, wanted)).await?;
        Ok(match found {
            Some((archive, file)) => archive_response(file.into(), archive.digest, archive.size),
            None => StatusCode::NO_CONTENT.into_response(),
        })
    }
}

/// A layer, and how its section must have been made.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    layer: Digest,
    indexer: Indexer,
}

/// An archive that a record names. The smallest come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    size: u64,
    digest: Digest,
}

/// Which archives a namespace has, and which layers they hold.
#[derive(Debug, Default)]
pub(super) struct Sections {
    /// [`Store::changes`] before the records were read.
    read_at: Option<u64>,
    /// By namespace.
    archives: HashMap<String, BTreeSet<Named>>,
    heads: Heads,
}

impl Sections {
    /// The smallest archive of `namespace` that has what is wanted, opened. One that cannot be read is passed over.
    fn find(
        &mut self,
        store: &Store,
        namespace: &str,
        wanted: Wanted,
    ) -> io::Result<Option<(Named, File)>> {
        self.read_records(store)?;
        for &archive in self.archives.get(namespace).into_iter().flatten() {
            match open_if_it_has(&mut self.heads, store, archive, wanted) {
                Ok(None) => {}
                Ok(Some(file)) => return Ok(Some((archive, file))),
                Err(error) => {
                    tracing::warn!(digest = %archive.digest, %error, "archive cannot be reused");
                }
            }
        }
        Ok(None)
    }

    /// A Job asks once for each layer, and reading 10,000 records takes a tenth of a second: only when one has changed.
    fn read_records(&mut self, store: &Store) -> io::Result<()> {
        let changes = store.changes();
        if self.read_at == Some(changes) {
            return Ok(());
        }
        let mut archives = HashMap::<String, BTreeSet<Named>>::new();
        let mut digests = HashSet::new();
        for record in store.records()? {
            let (size, namespace) = (record.size, record.namespace().to_owned());
            // What an operator of another version left cannot be read.
            if let (FORMAT_VERSION, Ok(digest)) = (record.format_version, record.digest.parse()) {
                let named = Named { size, digest };
                archives.entry(namespace).or_default().insert(named);
                digests.insert(digest);
            }
        }
        self.archives = archives;
        self.heads.keep_only(&digests);
        self.read_at = Some(changes);
        Ok(())
    }
}

fn open_if_it_has(
    heads: &mut Heads,
    store: &Store,
    archive: Named,
    wanted: Wanted,
) -> Result<Option<File>, Unusable> {
    let path = store.archive_path(archive.digest);
    if !heads.get(archive.digest, &path)?.has(wanted) {
        return Ok(None);
    }
    let file = File::open(path)?;
    match file.metadata()?.len() {
        size if size == archive.size => Ok(Some(file)),
        found => Err(Unusable::Length {
            expected: archive.size,
            found,
        }),
    }
}

/// Why an archive is passed over.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Head(#[from] ReadHeadError),
    #[error("its file has {found} bytes instead of {expected}")]
    Length { expected: u64, found: u64 },
}

/// What the heads of archives say, as far as it fits into memory.
#[derive(Debug)]
struct Heads {
    known: HashMap<Digest, Known>,
    /// Of all that are known.
    layers: usize,
    layers_max: usize,
}

/// The layers of an archive, and how their sections were made.
#[derive(Debug)]
struct Known {
    indexer: Indexer,
    layers: Box<[Digest]>,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            layers: 0,
            layers_max: LAYERS_MAX,
        }
    }
}

impl Heads {
    /// What is known of the archive `digest`, whose file is `path`; read now if nothing is.
    fn get(&mut self, digest: Digest, path: &FilePath) -> Result<&Known, Unusable> {
        if !self.known.contains_key(&digest) {
            // Not through a memory map: a disk that fails would end the process.
            let head = Head::read(&mut File::open(path)?)?;
            self.insert(digest, Known::from(&head));
        }
        Ok(&self.known[&digest])
    }

    /// Forgets all others when there is no more room: they are read again when their turn comes.
    fn insert(&mut self, digest: Digest, known: Known) {
        if self.layers + known.layers.len() > self.layers_max {
            self.known.clear();
            self.layers = 0;
        }
        self.layers += known.layers.len();
        self.known.insert(digest, known);
    }

    fn keep_only(&mut self, digests: &HashSet<Digest>) {
        self.known.retain(|digest, _| digests.contains(digest));
        self.layers = self.known.values().map(|known| known.layers.len()).sum();
    }
}

impl From<&Head> for Known {
    fn from(head: &Head) -> Self {
        Self {
            indexer: head.indexer,
            layers: head.layers.iter().map(|layer| layer.digest).collect(),
        }
    }
}

impl Known {
    fn has(&self, wanted: Wanted) -> bool {
        self.indexer == wanted.indexer && self.layers.contains(&wanted.layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(layers: usize) -> Known {
        Known {
            indexer: Indexer::default(),
            layers: vec![Digest::of(b"layer"); layers].into(),
        }
    }

    #[test]
    fn heads_take_no_more_memory_than_they_may_and_go_with_their_archives() {
        let [a, b, c, d] = [b"a", b"b", b"c", b"d"].map(|name| Digest::of(name));
        let mut heads = Heads {
            layers_max: 10,
            ..Heads::default()
        };
        heads.insert(a, known(4));
        heads.insert(b, known(6));
        assert_eq!((heads.known.len(), heads.layers), (2, 10));
        heads.keep_only(&HashSet::from([a, c]));
        assert_eq!((heads.known.len(), heads.layers), (1, 4));
        heads.insert(c, known(6));
        heads.insert(d, known(1));
        assert_eq!((heads.known.len(), heads.layers), (1, 1));
        assert!(heads.known.contains_key(&d));
    }
}
