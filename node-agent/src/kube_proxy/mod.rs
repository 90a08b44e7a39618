//! What an operator of kube-proxy brings along: its command line, its configuration file. Both
//! become one [`KubeProxyConfiguration`], which [`crate::settings`] turns into what we work with.
//!
//! ```text
//! flags ─┐                            ┌─▶ Settings (typed; warnings for what is not honoured)
//!        ├─▶ KubeProxyConfiguration ──┤
//! file ──┘                            └─▶ --write-config-to, /configz
//! ```
//!
//! Facts of kube-proxy 1.37: `cmd/kube-proxy/app/options.go`, `pkg/proxy/apis/config`.

pub mod configuration;
pub mod duration;
pub mod file;
pub mod flags;
pub mod unheeded;
pub mod watch;

pub use configuration::KubeProxyConfiguration;
