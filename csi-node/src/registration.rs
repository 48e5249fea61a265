//! Makes the driver known to kubelet, which watches a folder for sockets and asks each for the plugin behind it.
//!
//! This is all that the sidecar `node-driver-registrar` does.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::csi::registration::{PluginInfo, RegistrationStatus};

/// The version of CSI, as kubelet compares it: the newest `1.x` it knows is meant by `1.0.0`.
const CSI_VERSION: &str = "1.0.0";

/// The socket's name in kubelet's folder for registrations.
///
/// Kubelet's gRPC client sends the whole path as `:authority`, its slashes as `%2F`. A host name may not contain them,
/// so the HTTP library would refuse every request; but what stands before an `@` is a user name, which may.
pub fn socket_path(folder: &Path) -> PathBuf {
    folder.join(format!("kubelet@{}-reg.sock", clip_crds::DRIVER))
}

/// What kubelet is answered; [`crate::registration_server`] speaks with it.
#[derive(Clone, Debug)]
pub struct Registration {
    csi_socket: PathBuf,
    refused: mpsc::Sender<String>,
}

impl Registration {
    /// Registers the driver behind `csi_socket`, a path as kubelet sees it. When kubelet refuses, the reason is sent to
    /// `refused`; kubelet asks again only a socket that is made anew.
    pub fn new(csi_socket: PathBuf, refused: mpsc::Sender<String>) -> Registration {
        Registration {
            csi_socket,
            refused,
        }
    }

    /// What plugin it is and where.
    pub fn info(&self) -> PluginInfo {
        PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: clip_crds::DRIVER.to_owned(),
            endpoint: self.csi_socket.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }
    }

    /// Whether kubelet took it.
    pub fn notify(&self, status: RegistrationStatus) {
        if status.plugin_registered {
            tracing::info!(driver = clip_crds::DRIVER, "kubelet registered the driver");
        } else {
            // Nobody listens any more when the plugin is being stopped.
            let _ = self.refused.try_send(status.error);
        }
    }
}
