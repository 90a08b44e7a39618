//! The command line. Every flag is parsed into a value that cannot be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use kube_watch::Source;
use metal_lb_api::Host;
use service_model::ServiceName;

use crate::aws;
use crate::desired::{Classes, Provider};
use crate::election::Timing;
use crate::metal;
use crate::metal::tls::TlsFiles;

/// Gives every LoadBalancer Service an external load balancer.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Works in the foreground until a signal.
    Run(RunArgs),
    /// Prints what would be done, and does nothing.
    Plan(PlanArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub election: ElectionArgs,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
    pub metrics_listen: SocketAddr,
    /// text or json.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: daemon::log::LogFormat,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Only this Service; without it, all that are ours.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub service: Option<ServiceName>,
    /// dir:PATH reads YAML files instead of a cluster.
    #[arg(long, value_name = "dir:PATH")]
    pub source: Option<Source>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Without it, the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Names the cluster to balancer hosts and in cloud tags.
    #[arg(long, value_name = "NAME")]
    pub cluster_name: String,
    /// What a Service without spec.loadBalancerClass gets; unset, it is left alone.
    #[arg(long, value_name = "CLASS", value_parser = parse_class)]
    pub default_class: Option<Provider>,
    /// Where the Lease and the member key live.
    #[arg(long, value_name = "NAMESPACE", default_value = "fairlead-system")]
    pub leader_election_namespace: String,
    #[command(flatten)]
    pub metal: MetalArgs,
    #[command(flatten)]
    pub aws: AwsArgs,
}

#[derive(Debug, Args)]
pub struct ElectionArgs {
    /// Only the holder of the Lease works; the others stand by.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Tells the replicas apart; unset, the host name.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// How long a silent leader keeps the Lease.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "15")]
    pub leader_elect_lease_duration: Duration,
    /// How long a leader tries to renew before it stops.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "10")]
    pub leader_elect_renew_deadline: Duration,
    /// The pause between tries.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "2")]
    pub leader_elect_retry_period: Duration,
}

/// Metal is on when at least one endpoint is given.
#[derive(Debug, Args)]
pub struct MetalArgs {
    /// A metal-lb host; repeat for each. Its certificate names NAME or IP.
    #[arg(long = "metal-endpoint", value_name = "NAME=IP:PORT", value_parser = parse_endpoint)]
    pub endpoints: Vec<(String, SocketAddr)>,
    /// Our client certificate, PEM.
    #[arg(long = "metal-tls-cert", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long = "metal-tls-key", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The CA that signs the hosts' certificates, PEM.
    #[arg(long = "metal-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// AWS is on when a region is given.
#[derive(Debug, Clone, Args)]
pub struct AwsArgs {
    /// The region of the cluster's VPC; turns AWS on.
    #[arg(long = "aws-region", value_name = "REGION")]
    pub region: Option<String>,
    /// The VPC that the nodes are in; needed with --aws-region.
    #[arg(long = "aws-vpc-id", value_name = "VPC")]
    pub vpc_id: Option<String>,
    /// Instead of the public endpoints, for tests.
    #[arg(long = "aws-endpoint", value_name = "URL")]
    pub endpoint: Option<String>,
}

impl ClusterArgs {
    /// # Errors
    /// When nothing here serves the default class: Services without a class would wait in silence.
    pub fn classes(&self) -> anyhow::Result<Classes> {
        let metal = (!self.metal.endpoints.is_empty()).then_some(Provider::Metal);
        let aws = self.aws.region.is_some().then_some(Provider::Aws);
        let enabled: BTreeSet<Provider> = metal.into_iter().chain(aws).collect();
        if let Some(default) = self.default_class.filter(|p| !enabled.contains(p)) {
            bail!(
                "--default-class {} is served by nothing here: {}",
                default.class(),
                default.how_to_enable()
            );
        }
        Ok(Classes { enabled, default: self.default_class })
    }

    /// The tier; `None` with metal off.
    ///
    /// # Errors
    /// Which flag is missing, or stands twice.
    pub fn metal_setup(&self) -> anyhow::Result<Option<metal::Setup>> {
        let metal = &self.metal;
        if metal.endpoints.is_empty() {
            return Ok(None);
        }
        let endpoints = metal.by_name()?;
        let file = |flag: &str, file: &Option<PathBuf>| {
            file.clone()
                .with_context(|| format!("--metal-endpoint needs {flag} too: hosts speak mutual TLS only"))
        };
        Ok(Some(metal::Setup {
            cluster: self.cluster_name.clone(),
            namespace: self.leader_election_namespace.clone(),
            endpoints,
            tls: TlsFiles {
                cert: file("--metal-tls-cert", &metal.cert)?,
                key: file("--metal-tls-key", &metal.key)?,
                ca: file("--metal-ca", &metal.ca)?,
            },
        }))
    }
}

impl AwsArgs {
    /// `None` with AWS off.
    ///
    /// # Errors
    /// Which flag is missing.
    pub fn setup(&self, cluster: &str) -> anyhow::Result<Option<aws::Setup>> {
        let Some(region) = self.region.clone() else { return Ok(None) };
        let vpc = self.vpc_id.clone().context("--aws-region needs --aws-vpc-id too")?;
        let endpoint = self.endpoint.clone();
        Ok(Some(aws::Setup { cluster: cluster.to_owned(), region, vpc, endpoint }))
    }
}

impl MetalArgs {
    /// The members of the tier, as the document names them.
    ///
    /// # Errors
    /// When there are too many, or one stands twice.
    pub fn hosts(&self) -> anyhow::Result<Vec<Host>> {
        Ok(metal::provider::hosts(&self.by_name()?))
    }

    fn by_name(&self) -> anyhow::Result<BTreeMap<String, SocketAddr>> {
        if self.endpoints.len() > usize::from(Host::SLOTS) {
            bail!("--metal-endpoint: at most {} hosts", Host::SLOTS);
        }
        let mut endpoints = BTreeMap::new();
        for (name, address) in &self.endpoints {
            if endpoints.insert(name.clone(), *address).is_some() {
                bail!("--metal-endpoint: the host {name} stands twice");
            }
        }
        Ok(endpoints)
    }
}

impl ElectionArgs {
    /// # Errors
    /// When two leaders could be at work at once.
    pub fn timing(&self) -> anyhow::Result<Timing> {
        let timing = Timing {
            lease: self.leader_elect_lease_duration,
            renew: self.leader_elect_renew_deadline,
            retry: self.leader_elect_retry_period,
        };
        timing.check().map_err(|why| anyhow::anyhow!("--leader-elect-…: {why}"))
    }
}

fn parse_class(text: &str) -> Result<Provider, String> {
    Provider::of_class(text).ok_or_else(|| {
        let known = Provider::ALL.map(Provider::class).join(", ");
        format!("not a class that this controller serves ({known})")
    })
}

fn parse_endpoint(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("expected NAME=IP:PORT")?;
    if name.is_empty() {
        return Err("the host's name is empty".to_owned());
    }
    let address = address.parse().map_err(|_| format!("{address:?} is not IP:PORT"))?;
    Ok((name.to_owned(), address))
}

/// `15` or `15s`.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: u64 = text.trim_end_matches('s').parse().map_err(|_| "expected seconds, such as 15")?;
    if seconds == 0 { Err("must be at least 1".to_owned()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(extra: &[&str]) -> ClusterArgs {
        let base = ["cloud-controller", "plan", "--cluster-name", "lab"];
        match Cli::try_parse_from(base.iter().chain(extra)).unwrap().verb {
            Verb::Plan(plan) => plan.cluster,
            Verb::Run(_) => unreachable!("the verb is plan"),
        }
    }

    #[test]
    fn providers_are_on_by_their_flags() {
        assert!(cluster(&[]).classes().unwrap().enabled.is_empty());
        let both = cluster(&["--metal-endpoint", "lb-1=10.0.0.1:7443", "--aws-region", "us-east-1"]);
        assert_eq!(both.classes().unwrap().enabled, Provider::ALL.into());
    }

    #[test]
    fn a_default_class_needs_its_provider() {
        let (default, on) =
            (["--default-class", "fairlead.dev/metal"], ["--metal-endpoint", "lb-1=10.0.0.1:7443"]);
        let both = cluster(&[default, on].concat());
        assert_eq!(both.classes().unwrap().default, Some(Provider::Metal));
        let error = cluster(&default).classes().unwrap_err().to_string();
        assert!(error.contains("fairlead.dev/metal") && error.contains("--metal-endpoint"), "{error}");
    }

    #[test]
    fn aws_needs_a_vpc() {
        assert_eq!(cluster(&[]).aws.setup("lab").unwrap(), None);
        let error = cluster(&["--aws-region", "us-east-1"]).aws.setup("lab").unwrap_err().to_string();
        assert!(error.contains("--aws-vpc-id"), "{error}");
        let both = cluster(&["--aws-region", "us-east-1", "--aws-vpc-id", "vpc-1"]);
        assert_eq!(both.aws.setup("lab").unwrap().unwrap().vpc, "vpc-1");
    }

    #[test]
    fn endpoints_need_certificates_and_distinct_names() {
        let endpoint = ["--metal-endpoint", "lb-2=10.0.0.2:7443"];
        let error = cluster(&endpoint).metal_setup().unwrap_err().to_string();
        assert!(error.contains("--metal-tls-cert"), "{error}");
        let tls = ["--metal-tls-cert", "c", "--metal-tls-key", "k", "--metal-ca", "a"];
        let first = ["--metal-endpoint", "lb-1=10.0.0.1:7443"];
        let both = cluster(&[&endpoint[..], &first, &tls].concat());
        assert_eq!(both.metal_setup().unwrap().unwrap().endpoints.len(), 2);
        let hosts: Vec<String> = both
            .metal
            .hosts()
            .unwrap()
            .iter()
            .map(|h| format!("{} {} {}", h.slot, h.name, h.address))
            .collect();
        assert_eq!(hosts, ["0 lb-1 10.0.0.1:7947", "1 lb-2 10.0.0.2:7947"]);
        let twice = [&endpoint[..], &endpoint, &tls].concat();
        assert!(cluster(&twice).metal_setup().unwrap_err().to_string().contains("stands twice"));
    }

    #[test]
    fn a_malformed_flag_is_refused_at_the_start() {
        for wrong in [
            ["--metal-endpoint", "10.0.0.1:7443"],
            ["--metal-endpoint", "=10.0.0.1:7443"],
            ["--metal-endpoint", "lb-1=host:7443"],
            ["--default-class", "fairlead.dev/metall"],
        ] {
            let line = ["cloud-controller", "plan", "--cluster-name", "lab"];
            assert!(Cli::try_parse_from(line.iter().chain(&wrong)).is_err(), "{wrong:?}");
        }
    }
}
