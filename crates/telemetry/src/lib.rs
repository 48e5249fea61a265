//! What every Clip process tells about itself: logs, metrics, health.
//!
//! * [`logs`]: one initialisation for all binaries, text for people or JSON for collectors;
//! * [`metrics`]: every metric's name, type, unit and stability in one table;
//! * [`admin`]: the HTTP listener with `/metrics`, `/healthz` and `/readyz`.

pub mod admin;
pub mod logs;
pub mod metrics;
