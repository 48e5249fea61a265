//! S11 on a real cluster: apiserver, kubelet, containerd, registry, FUSE. `make e2e` starts it,
//! installs the chart, and runs these stories one after the other.

mod archives;
mod chart;
mod deaths;
mod errors;
mod judge;
mod kube;
mod nested;
mod node;
mod pending;
mod quickstart;
mod registries;
mod transcripts;
mod warm_up;
