//! csi-sanity, the conformance test of the CSI project, against the real plugin with real mounts.
//!
//! Its most telling specs (`should work`, `should be idempotent`, `should remove target path`) run only for a driver that
//! can create volumes, which this one never can. So a shim that exists in this test alone stands before the plugin: it
//! adds a controller whose "volumes" are the attributes of an image, and passes everything else on.

mod common;
#[path = "sanity/shim.rs"]
mod shim;

use std::path::PathBuf;
use std::process::Command;

use clip_csi_node::server::Socket;
use common::Scene;

/// Where `e2e/cluster/setup` puts the tools that it builds.
fn csi_sanity() -> PathBuf {
    let cache = std::env::var_os("CLIP_CACHE_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/clip")
        });
    let found = std::fs::read_dir(cache.join("tools"))
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = found
        .map(|entry| entry.path().join("csi-sanity"))
        .filter(|path| path.exists())
        .collect();
    found.sort_by_key(|path| {
        path.metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
    });
    found
        .pop()
        .expect("csi-sanity is not built yet: run e2e/cluster/setup")
}

#[test]
fn the_driver_passes_csi_sanity_with_real_mounts() {
    let scene = Scene::running();
    let socket = scene.path("shim.sock");
    let status = scene.run(async {
        let shim = Socket::listen(&socket).unwrap();
        tokio::spawn(shim::serve(
            shim,
            scene.identity().await.unwrap(),
            scene.node().await.unwrap(),
        ));
        let sanity = Command::new(csi_sanity())
            .arg(format!("--csi.endpoint={}", socket.display()))
            .arg(format!(
                "--csi.mountdir={}",
                scene.path("volumes/mount").display()
            ))
            .arg(format!(
                "--csi.stagingdir={}",
                scene.path("volumes/staging").display()
            ))
            .arg("--ginkgo.no-color")
            .spawn()
            .unwrap();
        let waited = tokio::task::spawn_blocking(|| {
            let mut sanity = sanity;
            sanity.wait()
        });
        waited.await.unwrap().unwrap()
    });
    assert!(status.success(), "csi-sanity failed; its report is above");
    scene.assert_nothing_left();
}
