//! From `kubectl apply` of a Service to the first answer through its VIP, in the whole lab.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::{Lab, wait};

use crate::figures::{Row, Samples, Unit};
use crate::progress;

const WEB: &str = include_str!("../fixtures/web.yaml");
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn measure(rounds: usize) -> Result<Vec<Row>> {
    progress("starting a whole cluster");
    let lab = Lab::builder("bench").start().await?;
    lab.apply(WEB).await?;
    lab.pods_ready("app=web", 2).await?;
    let (mut address, mut answer) = (Samples::default(), Samples::default());
    for round in 0..rounds {
        let name = format!("round-{round}");
        let manifest = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, \
             selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
        );
        let start = Instant::now();
        lab.apply(&manifest).await?;
        let (ip, _) = lab.external_ip(&name, PATIENCE).await?;
        address.add_time(start.elapsed());
        let vip = SocketAddr::new(ip, 80);
        wait::until("the VIP answers", PATIENCE, async || lab.client().get(vip).await).await?;
        answer.add_time(start.elapsed());
        lab.kubectl(&format!("delete service {name}")).await?;
    }
    let row = |what: &str, ours| Row { what: what.to_owned(), unit: Unit::Milliseconds, ours, peer: None };
    Ok(vec![
        row("from the start of `kubectl apply` to EXTERNAL-IP in the API", address),
        row("from the start of `kubectl apply` to the first 200 through the VIP", answer),
    ])
}
