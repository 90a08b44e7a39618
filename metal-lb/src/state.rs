//! `metal-lb state`: asks a host what it does, and why.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use metal_lb_api::{HostState, TargetHealth};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::args::StateArgs;
use crate::tls;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks and prints.
///
/// # Errors
/// When the host does not answer, or refuses; with what it said.
#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub async fn print(args: &StateArgs) -> anyhow::Result<()> {
    let body = tokio::time::timeout(TIMEOUT, ask(args))
        .await
        .with_context(|| format!("{} does not answer", args.endpoint))??;
    if args.json {
        println!("{}", String::from_utf8_lossy(&body));
    } else {
        print!("{}", text(&serde_json::from_slice(&body).context("the answer is not a host's state")?));
    }
    Ok(())
}

async fn ask(args: &StateArgs) -> anyhow::Result<Bytes> {
    let endpoint = args.endpoint.trim_start_matches("https://").trim_end_matches('/');
    let (host, _) = endpoint.rsplit_once(':').context("--endpoint is HOST:PORT")?;
    let name = args.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
    let name = ServerName::try_from(name.to_owned())
        .with_context(|| format!("{name:?} is neither a DNS name nor an address"))?;
    let config = tls::client_config(&args.tls_cert, &args.tls_key, &args.tls_ca)?;
    let stream = TcpStream::connect(endpoint).await.with_context(|| format!("connecting to {endpoint}"))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = Request::get("/v1/state").header("Host", host).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if status != StatusCode::OK {
        bail!("{endpoint} answered {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

/// For people.
pub fn text(state: &HostState) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ok = write_text(&mut text, state);
    text
}

fn write_text(out: &mut String, state: &HostState) -> std::fmt::Result {
    match (state.generation, &state.owner) {
        (Some(generation), Some(owner)) => {
            writeln!(out, "{}: document {generation} of {owner}", state.host)?;
        }
        _ => writeln!(out, "{}: waiting for the first document", state.host)?,
    }
    for vip in &state.vips {
        writeln!(out, "VIP {}: {} ({})", vip.vip, vip.owner.as_deref().unwrap_or("nobody"), vip.why)?;
    }
    for listener in &state.listeners {
        let programmed = if listener.programmed { "" } else { "not programmed: " };
        let (protocol, vip, port) = (listener.protocol, listener.vip, listener.port);
        let address = std::net::SocketAddr::new(vip, port);
        writeln!(out, "{protocol} {address} {}: {programmed}{}", listener.service, listener.why)?;
        for target in &listener.targets {
            let mark = if target.in_table { "in " } else { "out" };
            let address = std::net::SocketAddr::new(target.address, target.port);
            writeln!(out, "  {mark} {} {address} {}: {}", target.node, health(target.health), target.why)?;
        }
    }
    Ok(())
}

fn health(health: TargetHealth) -> &'static str {
    match health {
        TargetHealth::Initial => "initial",
        TargetHealth::Healthy => "healthy",
        TargetHealth::Unhealthy => "unhealthy",
        TargetHealth::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_from_the_host_down_to_its_targets() {
        let state: HostState = serde_json::from_value(serde_json::json!({
            "host": "lb-1", "schemas": [1], "generation": {"term": 2, "counter": 7}, "owner": "prod",
            "vips": [
                {"vip": "172.30.0.200", "owner": "lb-1", "why": "lb-1 has it and is alive"},
                {"vip": "fd00::200", "owner": null, "why": "no IPv6"}
            ],
            "listeners": [
                {"service": "shop/web", "vip": "172.30.0.200", "protocol": "TCP", "port": 80,
                 "programmed": true, "why": "1 of 2 targets take connections", "targets": [
                    {"node": "node-1", "address": "172.30.0.11", "port": 30080, "health": "healthy",
                     "in_table": true, "why": "answered 200"},
                    {"node": "node-2", "address": "172.30.0.12", "port": 30080, "health": "unhealthy",
                     "in_table": false, "why": "answered 503"}
                ]},
                {"service": "shop/web", "vip": "fd00::200", "protocol": "UDP", "port": 53,
                 "programmed": false, "why": "no IPv6", "targets": []}
            ]
        }))
        .unwrap();
        let expected = "\
lb-1: document 2.7 of prod
VIP 172.30.0.200: lb-1 (lb-1 has it and is alive)
VIP fd00::200: nobody (no IPv6)
TCP 172.30.0.200:80 shop/web: 1 of 2 targets take connections
  in  node-1 172.30.0.11:30080 healthy: answered 200
  out node-2 172.30.0.12:30080 unhealthy: answered 503
UDP [fd00::200]:53 shop/web: not programmed: no IPv6
";
        assert_eq!(text(&state), expected);
    }
}
