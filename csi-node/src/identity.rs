//! The CSI Identity service: who we are, and whether this node can do the work.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::csi::v1::identity_server::Identity;
use crate::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, ProbeRequest, ProbeResponse,
};
use crate::publish::Publisher;
use crate::syscalls::check_dev_fuse;

/// The Identity service.
#[derive(Debug)]
pub struct IdentityService {
    publisher: Arc<Publisher>,
}

impl IdentityService {
    /// Reports on the parts of `publisher`.
    pub fn new(publisher: Arc<Publisher>) -> IdentityService {
        IdentityService { publisher }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: clip_crds::DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    /// None: there is no controller service, and a volume may be used on any node.
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let unfit = |error: String| {
            tracing::error!(error, "this node cannot mount images");
            Status::failed_precondition(error)
        };
        check_dev_fuse().map_err(|error| unfit(error.to_string()))?;
        self.publisher
            .archives
            .check_writable()
            .map_err(|error| unfit(format!("cannot write to the folder of archives: {error}")))?;
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
