//! What answers at every endpoint's address: where it is, and who it thinks is asking.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

/// Every endpoint's address answers at these, by TCP and UDP. Slices name one of them.
pub(crate) const PORTS: [u16; 3] = [8080, 8081, 9090];

const BACKLOG: u32 = 1024;

/// Answers at the address from now on. Runs in the runtime that it is called from, and ends with it.
///
/// # Errors
/// When the port is taken.
pub(crate) async fn answer_at(address: SocketAddr) -> Result<()> {
    let listener = listen(address).with_context(|| format!("listening at {address}"))?;
    let socket = UdpSocket::bind(address).await.with_context(|| format!("opening {address}/UDP"))?;
    tokio::spawn(answer_connections(listener, address));
    tokio::spawn(answer_datagrams(socket, address));
    Ok(())
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn answer_connections(listener: TcpListener, address: SocketAddr) {
    loop {
        let Ok((stream, client)) = listener.accept().await else { continue };
        // A fresh connection has room for a line, and who has hung up wants none.
        let _ = stream.into_std().and_then(|mut stream| stream.write_all(line(address, client).as_bytes()));
    }
}

async fn answer_datagrams(socket: UdpSocket, address: SocketAddr) {
    let mut datagram = [0; 16];
    loop {
        // An error is an ICMP message about an earlier answer.
        let Ok((_, client)) = socket.recv_from(&mut datagram).await else { continue };
        let _ = socket.send_to(line(address, client).as_bytes(), client).await;
    }
}

fn line(address: SocketAddr, client: SocketAddr) -> String {
    format!("{address} {}", client.ip())
}
