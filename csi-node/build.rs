//! Generates the gRPC types of CSI and of kubelet's plugin registration from `proto/`.
//!
//! protox parses the files in this process, so no `protoc` has to be installed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (folder, file) in [
        ("proto/csi", "csi.proto"),
        ("proto/pluginregistration", "api.proto"),
    ] {
        let path = Path::new(folder).join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        let descriptors = protox::compile([&path], [folder])?;
        // A client is built too: tests speak to the real binary over its socket. Methods that a service does not write
        // answer UNIMPLEMENTED.
        tonic_prost_build::configure()
            .build_transport(false)
            .generate_default_stubs(true)
            .compile_fds(descriptors)?;
    }
    Ok(())
}
