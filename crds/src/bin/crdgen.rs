//! Prints the CustomResourceDefinitions as YAML: `cargo run -p clip-crds --bin crdgen`.

fn main() {
    print!("{}", clip_crds::clip_image_crd_yaml());
}
