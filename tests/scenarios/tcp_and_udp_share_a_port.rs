//! One Service with TCP and UDP on the same port, as a DNS server has it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, wait};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  type: LoadBalancer
  selector: {app: dns}
  ports:
  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}
  - {name: dns-tcp, port: 53, targetPort: 5353, protocol: TCP}
";
const SERVERS: &str = include_str!("../fixtures/dns.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_udp_share_a_port() -> Result<()> {
    let lab = Lab::builder("dns").start().await?;
    lab.apply(SERVERS).await?;
    lab.apply(SERVICE).await?;
    let (ip, _) = lab.external_ip("dns", Duration::from_secs(10)).await?;
    let pods = lab.pods_ready("app=dns", 2).await?;
    lab.endpoints_ready("dns", 2).await?;
    let service = lab.service("dns").await?;
    let vip = SocketAddr::new(ip, 53);
    let node = SocketAddr::new(lab.nodes[0].host.v4().into(), service.node_port()?);
    let inside = lab.inside(&pods[0])?;
    for (client, target) in [(lab.client(), vip), (lab.client(), node), (inside, service.cluster()?)] {
        wait::until(
            &format!("both pods answer datagrams to {target}"),
            Duration::from_secs(15),
            async || {
                let answers = client.udp(target, 30).await.complete()?;
                ensure!(answers.by_pod().len() == 2, "{answers}");
                Ok(())
            },
        )
        .await?;
    }
    lab.client().http_spread(vip, 30, 2).await?;
    Ok(())
}
