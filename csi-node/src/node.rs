//! The CSI Node service: a thin translation between gRPC and [`Publisher`].
//!
//! What is refused is logged here, for kubelet alone sees the answer. Methods that the capabilities do not list
//! (staging, expansion, health) are not here: the generated trait answers `UNIMPLEMENTED`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

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

    /// Does the work of a request, counts it, and logs what came of it.
    async fn recorded<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let begun = Instant::now();
        let outcome = work.await;
        let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let mounted = self.publisher.mounts.count();
        self.metrics.record(method, code, begun.elapsed(), mounted);
        let took_ms = begun.elapsed().as_millis() as u64;
        match &outcome {
            // Kubelet repeats every publish about once a minute: not worth a line in the log.
            Ok(_) => tracing::debug!(method, took_ms, "done"),
            Err(status) => tracing::error!(method, took_ms, ?code, "{}", status.message()),
        }
        outcome.map(Response::new)
    }
}

/// The pod that a volume is for, as kubelet names it.
fn pod_of(request: &NodePublishVolumeRequest) -> String {
    let say = |key: &str| request.volume_context.get(key).map_or("?", String::as_str);
    format!(
        "{}/{}",
        say("csi.storage.k8s.io/pod.namespace"),
        say("csi.storage.k8s.io/pod.name")
    )
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let span = tracing::info_span!(
            "publish",
            pod = pod_of(&request),
            volume = request.volume_id
        );
        self.recorded("NodePublishVolume", self.publish(request))
            .instrument(span)
            .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let span = tracing::info_span!(
            "unpublish",
            volume = request.volume_id,
            target = request.target_path
        );
        self.recorded("NodeUnpublishVolume", self.unpublish(request))
            .instrument(span)
            .await
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
