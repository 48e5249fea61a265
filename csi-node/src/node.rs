//! The CSI Node service: a thin translation between gRPC and [`Publisher`].
//!
//! What is refused is logged here, for kubelet alone sees the answer. Methods that the capabilities do not list
//! (staging, expansion, health) are not here: the generated trait answers `UNIMPLEMENTED`.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tonic::{Code, Request, Response, Status};

use crate::csi::v1::node_server::Node;
use crate::csi::v1::node_service_capability::rpc::Type as RpcType;
use crate::csi::v1::node_service_capability::{Rpc, Type};
use crate::csi::v1::volume_usage::Unit;
use crate::csi::v1::*;
use crate::metrics::NodeMetrics;
use crate::publish::Publisher;
use crate::request::{PublishRequest, required};
use crate::syscalls::canonical;

/// The Node service.
#[derive(Debug)]
pub struct NodeService {
    node_name: String,
    publisher: Arc<Publisher>,
    metrics: NodeMetrics,
}

impl NodeService {
    /// Serves the node called `node_name`.
    pub fn new(node_name: String, publisher: Arc<Publisher>, metrics: NodeMetrics) -> NodeService {
        NodeService {
            node_name,
            publisher,
            metrics,
        }
    }

    async fn publish(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<NodePublishVolumeResponse, Status> {
        let request = PublishRequest::try_from(request)?;
        self.publisher.publish(request).await?;
        Ok(NodePublishVolumeResponse {})
    }

    async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        required("volume_id", request.volume_id)?;
        let target_path = required("target_path", request.target_path)?;
        match canonical(Path::new(&target_path)) {
            Ok(target) => self.publisher.unpublish(target).await?,
            // Not even the parent is there, so nothing is mounted below it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Status::invalid_argument(format!(
                    "target path {target_path}: {error}"
                )));
            }
        }
        Ok(NodeUnpublishVolumeResponse {})
    }

    /// From memory: asking the filesystem could wait for a server that hangs, and kubelet's statistics with it.
    fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        let volume_id = required("volume_id", request.volume_id)?;
        let path = required("volume_path", request.volume_path)?;
        let bound = canonical(Path::new(&path))
            .ok()
            .and_then(|path| self.publisher.volume_at(&volume_id, &path));
        let not_found =
            || Status::not_found(format!("volume {volume_id} is not published at {path}"));
        let summary = bound.ok_or_else(not_found)?.summary;
        // An image is as full as it will ever be.
        let full = |unit: Unit, amount: u64| {
            let amount = i64::try_from(amount).unwrap_or(i64::MAX);
            VolumeUsage {
                available: 0,
                total: amount,
                used: amount,
                unit: unit as i32,
            }
        };
        let usage = vec![
            full(Unit::Bytes, summary.bytes),
            full(Unit::Inodes, summary.files),
        ];
        Ok(NodeGetVolumeStatsResponse { usage })
    }

    /// Counts and logs what came of a request.
    fn report<T>(
        &self,
        method: &'static str,
        volume: &str,
        target: impl Display,
        begun: Instant,
        outcome: Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let (archives, volumes) = self.publisher.mounts.count();
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.metrics
            .record(method, code, begun.elapsed(), archives, volumes);
        let took_ms = begun.elapsed().as_millis() as u64;
        match &outcome {
            Ok(_) => tracing::info!(method, volume, %target, took_ms, "done"),
            Err(status) => {
                let (code, reason) = (status.code(), status.message());
                tracing::error!(method, volume, %target, took_ms, ?code, reason, "failed");
            }
        }
        outcome.map(Response::new)
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let (begun, request) = (Instant::now(), request.into_inner());
        let (volume, target) = (request.volume_id.clone(), request.target_path.clone());
        let outcome = self.publish(request).await;
        self.report("NodePublishVolume", &volume, target, begun, outcome)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let (begun, request) = (Instant::now(), request.into_inner());
        let (volume, target) = (request.volume_id.clone(), request.target_path.clone());
        let outcome = self.unpublish(request).await;
        self.report("NodeUnpublishVolume", &volume, target, begun, outcome)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        self.stats(request.into_inner()).map(Response::new)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let rpc = Rpc {
            r#type: RpcType::GetVolumeStats as i32,
        };
        let capabilities = vec![NodeServiceCapability {
            r#type: Some(Type::Rpc(rpc)),
        }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_name.clone(),
            ..Default::default()
        }))
    }
}
