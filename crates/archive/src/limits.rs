//! Upper bounds on what an archive may claim. Each is far above what real images hold, and low
//! enough that a crafted archive cannot exhaust a node.

/// Decoded size of the head: dominated by the image configuration, which registries cap at 4–8 MiB.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// Layers of one image: EROFS device identifiers are 16 bits wide; overlayfs stops at 500.
pub const LAYERS_MAX: usize = 4096;
/// Decoded size of one layer's tree part: about 10 million entries of 100 bytes.
pub const TREE_BYTES_MAX: usize = 1 << 30;
/// Decoded size of one layer's seek part.
pub const SEEK_BYTES_MAX: usize = 512 << 20;
/// Length of a path in a tar entry: Linux' `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 4096;
/// Length of one path component: Linux' `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// Length of a symbolic link's target: Linux refuses longer ones.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Uncompressed size of one layer: EROFS counts 512-byte blocks in 32 bits.
pub const TAR_BYTES_MAX: u64 = (u32::MAX as u64) * 512;
