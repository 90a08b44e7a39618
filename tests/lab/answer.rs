//! What a pod says to whoever talks to it. Shared by the pod's program and the clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One line of JSON, whatever the protocol: the body over HTTP, a line over TCP, a datagram over UDP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    pub pod: String,
    pub namespace: String,
    pub node: String,
    pub hostname: String,
    /// Who the pod thinks is asking. IPv4 stays IPv4, also on a dual-stack socket.
    pub client: SocketAddr,
    /// The pod's own end of the conversation. A datagram does not tell its address: `0.0.0.0` or `::`.
    pub server: SocketAddr,
    pub protocol: Protocol,
    /// What was said: the path, the line, or the datagram.
    pub heard: String,
    /// The pod's environment. Only over HTTP, which has room for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http,
    Tcp,
    Udp,
}

impl Answer {
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and addresses always have a JSON form")
    }
}
