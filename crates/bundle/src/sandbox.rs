//! What separates a container from its machine: namespaces, capabilities, hidden paths, the mounts every program expects.
//!
//! The lists are those of Docker's, containerd's and Podman's defaults. There is no seccomp profile, as with `ctr run`:
//! theirs is long and moves with the kernel.

use crate::{Network, Wishes};
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxDeviceCgroup,
    LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, get_default_maskedpaths,
    get_default_readonly_paths,
};
use std::path::PathBuf;

/// Docker's default (moby, `oci/caps/defaults.go`).
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Hidden beside what the crate's list hides: both tell tales of the machine's work (moby, `oci/defaults.go`).
const MASKED_TOO: [&str; 2] = ["/proc/interrupts", "/sys/devices/virtual/powercap"];

/// Nothing inheritable or ambient (CVE-2022-24769).
pub(crate) fn capabilities() -> LinuxCapabilities {
    let all = Capabilities::from(CAPABILITIES);
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()))
        .set_effective(Some(all.clone()))
        .set_permitted(Some(all))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

/// Namespaces, hidden paths, and no device but those that runtimes always make.
pub(crate) fn linux(wishes: &Wishes) -> Linux {
    let mut types = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if wishes.network == Network::None {
        types.push(LinuxNamespaceType::Network);
    }
    if wishes.cgroup_v2 {
        types.push(LinuxNamespaceType::Cgroup);
    }
    let namespace = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    };
    let mut no_device = LinuxDeviceCgroup::default();
    no_device.set_allow(false);
    no_device.set_access(Some("rwm".to_owned()));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![no_device]));
    let mut masked = get_default_maskedpaths();
    masked.extend(MASKED_TOO.map(str::to_owned));
    LinuxBuilder::default()
        .namespaces(types.into_iter().map(namespace).collect::<Vec<_>>())
        .resources(resources)
        .masked_paths(masked)
        .readonly_paths(get_default_readonly_paths())
        .build()
        .expect("every field has a default")
}

/// The kernel's own filesystems (containerd, `oci/mounts.go`), and the machine's name resolution with its network.
pub(crate) fn mounts(network: &Network) -> Vec<Mount> {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid,strictatime,mode=755,size=65536k",
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid,noexec,nodev,mode=1777,size=65536k",
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "nosuid,noexec,nodev,relatime,ro",
        ),
    ];
    if let Network::Host { files } = network {
        let shown = |&file| mount(file, "bind", file, "bind,ro,nosuid,nodev,noexec");
        mounts.extend(files.iter().map(shown));
    }
    mounts
}

fn mount(destination: &str, typ: &str, source: &str, options: &str) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from(destination));
    mount.set_typ(Some(typ.to_owned()));
    mount.set_source(Some(PathBuf::from(source)));
    mount.set_options(Some(options.split(',').map(str::to_owned).collect()));
    mount
}
