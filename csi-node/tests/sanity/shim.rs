//! A driver that can create volumes: the real plugin behind, a controller for the test in front.

use clip_csi_node::csi::v1::controller_server::{Controller, ControllerServer};
use clip_csi_node::csi::v1::identity_client::IdentityClient;
use clip_csi_node::csi::v1::identity_server::{Identity, IdentityServer};
use clip_csi_node::csi::v1::node_client::NodeClient;
use clip_csi_node::csi::v1::node_server::{Node, NodeServer};
use clip_csi_node::csi::v1::*;
use clip_csi_node::server::Socket;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use crate::common::IMAGE;

/// Serves the shim until the runtime ends.
pub async fn serve(socket: Socket, identity: IdentityClient<Channel>, node: NodeClient<Channel>) {
    Server::builder()
        .add_service(IdentityServer::new(Front { identity }))
        .add_service(NodeServer::new(Behind { node }))
        .add_service(ControllerServer::new(Shim))
        .serve_with_incoming(socket.incoming)
        .await
        .unwrap();
}

struct Front {
    identity: IdentityClient<Channel>,
}

struct Behind {
    node: NodeClient<Channel>,
}

struct Shim;

#[tonic::async_trait]
impl Identity for Front {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        self.identity
            .clone()
            .get_plugin_info(request.into_inner())
            .await
    }

    async fn probe(
        &self,
        request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        self.identity.clone().probe(request.into_inner()).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        use plugin_capability::service::Type as ServiceType;
        use plugin_capability::{Service, Type};
        let service = Service {
            r#type: ServiceType::ControllerService as i32,
        };
        let capabilities = vec![PluginCapability {
            r#type: Some(Type::Service(service)),
        }];
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities,
        }))
    }
}

/// A Node service that passes everything on as it is.
macro_rules! pass_on {
    ($($method:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl Node for Behind {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.node.clone().$method(request.into_inner()).await
            })*
        }
    };
}

pass_on! {
    node_publish_volume(NodePublishVolumeRequest) -> NodePublishVolumeResponse;
    node_unpublish_volume(NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
    node_get_volume_stats(NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
    node_get_capabilities(NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse;
    node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse;
    node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse;
    node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
    node_expand_volume(NodeExpandVolumeRequest) -> NodeExpandVolumeResponse;
    node_get_volume_health(NodeGetVolumeHealthRequest) -> NodeGetVolumeHealthResponse;
    node_get_storage_health(NodeGetStorageHealthRequest) -> NodeGetStorageHealthResponse;
}

#[tonic::async_trait]
impl Controller for Shim {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let CreateVolumeRequest {
            name,
            capacity_range,
            volume_capabilities,
            ..
        } = request.into_inner();
        if name.is_empty() || volume_capabilities.is_empty() {
            return Err(Status::invalid_argument(
                "name and volume_capabilities are required",
            ));
        }
        // What a pod's volume says, and what kubelet adds.
        let context = [
            ("clipImage", IMAGE),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "team-a"),
        ];
        let size = capacity_range.map_or(0, |range| range.required_bytes);
        // csi-sanity wants the same name with another size to be refused; its "different capacities" specs use 20 GB.
        if size > 15_000_000_000 {
            return Err(Status::already_exists("exists with another size"));
        }
        let volume = Volume {
            capacity_bytes: size,
            volume_id: name,
            volume_context: context
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            ..Default::default()
        };
        Ok(Response::new(CreateVolumeResponse {
            volume: Some(volume),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        if request.into_inner().volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is required"));
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        if request.volume_id.is_empty() || request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument(
                "volume_id and volume_capabilities are required",
            ));
        }
        // Volumes that were created have the names that csi-sanity made up; the one it did not create has not.
        if !request.volume_id.starts_with("sanity") {
            return Err(Status::not_found("no such volume"));
        }
        let confirmed = validate_volume_capabilities_response::Confirmed {
            volume_capabilities: request.volume_capabilities,
            ..Default::default()
        };
        Ok(Response::new(ValidateVolumeCapabilitiesResponse {
            confirmed: Some(confirmed),
            ..Default::default()
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        use controller_service_capability::rpc::Type as RpcType;
        use controller_service_capability::{Rpc, Type};
        let rpc = Rpc {
            r#type: RpcType::CreateDeleteVolume as i32,
        };
        let capabilities = vec![ControllerServiceCapability {
            r#type: Some(Type::Rpc(rpc)),
        }];
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities,
        }))
    }
}
