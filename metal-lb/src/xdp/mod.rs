//! The packet path in XDP, and the only place that talks to it.
//!
//! ```text
//! layout.rs   the structs that the program shares with us
//! object.rs   load, pin, attach, replace without a lost packet
//! link.rs     the tie between program and interface
//! maps.rs     typed access to the pinned maps
//! apply.rs    steps in, maps out; maps in, mirror out
//! pass.rs     a program that passes everything, for the far end of a veth
//! ```

pub mod apply;
pub mod frames;
pub mod layout;
mod link;
pub mod maps;
pub mod object;
pub mod pass;

pub use apply::XdpBackend;
pub use link::Mode;
pub use object::{Attachment, Settings};
