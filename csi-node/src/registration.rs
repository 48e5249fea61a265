//! Makes the driver known to kubelet, which watches a folder for sockets and asks each for the plugin behind it.
//!
//! This is all that the sidecar `node-driver-registrar` does.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::csi::registration::registration_server::Registration;
use crate::csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

/// The version of CSI, as kubelet compares it: the newest `1.x` it knows is meant by `1.0.0`.
const CSI_VERSION: &str = "1.0.0";

/// The socket's name in kubelet's folder for registrations.
pub fn socket_path(folder: &Path) -> PathBuf {
    folder.join(format!("{}-reg.sock", clip_crds::DRIVER))
}

/// Kubelet's questions.
#[derive(Debug)]
pub struct RegistrationService {
    csi_socket: PathBuf,
    refused: mpsc::Sender<String>,
}

impl RegistrationService {
    /// Registers the driver behind `csi_socket`, a path as kubelet sees it. When kubelet refuses, the reason is sent to
    /// `refused`; kubelet asks again only a socket that is made anew.
    pub fn new(csi_socket: PathBuf, refused: mpsc::Sender<String>) -> RegistrationService {
        RegistrationService {
            csi_socket,
            refused,
        }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: clip_crds::DRIVER.to_owned(),
            endpoint: self.csi_socket.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus {
            plugin_registered,
            error,
        } = request.into_inner();
        if plugin_registered {
            tracing::info!(driver = clip_crds::DRIVER, "kubelet registered the driver");
        } else {
            // Nobody listens any more when the plugin is being stopped.
            let _ = self.refused.try_send(error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
