//! The generated gRPC types: CSI v1 (`proto/csi`) and kubelet's plugin registration (`proto/pluginregistration`).

/// Container Storage Interface, version 1.13.0.
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// How kubelet learns that a plugin exists (`k8s.io/kubelet/pkg/apis/pluginregistration/v1`).
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
