//! A moto server of its own for a test, and a VPC with instances in it.

#![allow(clippy::unwrap_used, reason = "a part of a test binary")]

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_ec2::config::{Credentials, Region};
use aws_sdk_ec2::types::{AttributeBooleanValue, InstanceType, ResourceType, Tag, TagSpecification};
use cloud_controller::aws::budget::{Budget, Limit};
use cloud_controller::aws::resources::Scheme;
use cloud_controller::aws::sdk::Sdk;

use crate::aws_suite;
use crate::aws_support::CLUSTER;

const START_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
pub(crate) const REGION: &str = "us-east-1";

/// Ends with the test.
pub(crate) struct Moto {
    server: Child,
    pub(crate) url: String,
}

/// What is in the account before the controller comes.
pub(crate) struct MotoSite {
    config: aws_config::SdkConfig,
    pub(crate) vpc: String,
    private_subnets: BTreeSet<String>,
    public_subnets: BTreeSet<String>,
    pub(crate) instances: [String; 3],
}

impl Moto {
    /// # Panics
    /// If moto is not installed or does not start.
    pub(crate) async fn start() -> Self {
        let program = program();
        assert!(
            program.is_file(),
            "there is no moto at {}: run scripts/setup, which makes the virtual environment .venv \
             (or set FAIRLEAD_VENV to one with tests/moto/requirements.txt installed)",
            program.display()
        );
        let log = tempfile::NamedTempFile::new().unwrap();
        // Which port is free is only known to who listens there: moto chooses, and says what it chose.
        let server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        let mut moto = Self { server, url: String::new() };
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(log.path()).unwrap();
            if let Some(url) = url_in(&said) {
                url.clone_into(&mut moto.url);
                return moto;
            }
            if let Some(status) = moto.server.try_wait().unwrap() {
                panic!("{} ended at once: {status}\n{said}", program.display());
            }
            assert!(begun.elapsed() < START_WITHIN, "{} does not listen\n{said}", program.display());
            tokio::time::sleep(POLL).await;
        }
    }

    async fn config(&self) -> aws_config::SdkConfig {
        let credentials = Credentials::builder()
            .access_key_id("test")
            .secret_access_key("test")
            .provider_name("the test")
            .build();
        let loader = Sdk::base().region(Region::new(REGION)).endpoint_url(&self.url);
        loader.credentials_provider(credentials).load().await
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Where moto listens, in a line that it has finished.
fn url_in(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once(" * Running on ")?;
    rest.split_once('\n').map(|(url, _)| url.trim_end())
}

impl MotoSite {
    /// Two zones, each with a private and a public subnet, and three instances.
    pub(crate) async fn build(moto: &Moto) -> Self {
        let config = moto.config().await;
        let ec2 = aws_sdk_ec2::Client::new(&config);
        let vpc = ec2.create_vpc().cidr_block("10.0.0.0/16").send().await.unwrap();
        let vpc = vpc.vpc().and_then(|v| v.vpc_id()).unwrap().to_owned();
        let gateway = ec2.create_internet_gateway().send().await.unwrap();
        let gateway = gateway.internet_gateway().and_then(|g| g.internet_gateway_id()).unwrap().to_owned();
        ec2.attach_internet_gateway().internet_gateway_id(&gateway).vpc_id(&vpc).send().await.unwrap();
        let table = ec2.create_route_table().vpc_id(&vpc).send().await.unwrap();
        let table = table.route_table().and_then(|t| t.route_table_id()).unwrap().to_owned();
        let route = ec2.create_route().route_table_id(&table).destination_cidr_block("0.0.0.0/0");
        route.gateway_id(&gateway).send().await.unwrap();
        let (mut private_subnets, mut public_subnets) = (BTreeSet::new(), BTreeSet::new());
        for (i, (zone, public)) in
            [("a", false), ("b", false), ("a", true), ("b", true)].into_iter().enumerate()
        {
            let subnet = ec2.create_subnet().vpc_id(&vpc).cidr_block(format!("10.0.{i}.0/24"));
            let subnet = subnet.availability_zone(format!("{REGION}{zone}")).send().await.unwrap();
            let id = subnet.subnet().and_then(|s| s.subnet_id()).unwrap().to_owned();
            if public {
                ec2.associate_route_table().route_table_id(&table).subnet_id(&id).send().await.unwrap();
                let flag = AttributeBooleanValue::builder().value(true).build();
                let modify = ec2.modify_subnet_attribute().subnet_id(&id);
                modify.map_public_ip_on_launch(flag).send().await.unwrap();
                public_subnets.insert(id);
            } else {
                private_subnets.insert(id);
            }
        }
        // What a usual cluster has around its nodes.
        let tag = Tag::builder().key(format!("kubernetes.io/cluster/{CLUSTER}")).value("owned").build();
        let tags = TagSpecification::builder().resource_type(ResourceType::SecurityGroup).tags(tag).build();
        let group = ec2.create_security_group().group_name("nodes").description("nodes").vpc_id(&vpc);
        group.tag_specifications(tags).send().await.unwrap();
        let run = ec2.run_instances().image_id("ami-12c6146b").instance_type(InstanceType::T3Micro);
        let run = run.min_count(3).max_count(3).subnet_id(private_subnets.first().unwrap());
        let reservation = run.send().await.unwrap();
        let instances: Vec<String> =
            reservation.instances().iter().map(|i| i.instance_id().unwrap().to_owned()).collect();
        let instances = instances.try_into().unwrap();
        Self { config, vpc, private_subnets, public_subnets, instances }
    }
}

impl aws_suite::Site for MotoSite {
    type Api = Sdk;

    fn api(&self) -> Sdk {
        let plenty = NonZeroU32::new(10_000).unwrap();
        let budget = Budget::new(|_| Limit { per_second: plenty, burst: plenty });
        Sdk::from_config(&self.config, budget)
    }

    fn vpc(&self) -> &str {
        &self.vpc
    }

    fn instances(&self) -> &[String; 3] {
        &self.instances
    }

    fn subnets(&self, scheme: Scheme) -> BTreeSet<String> {
        match scheme {
            Scheme::Internal => self.private_subnets.clone(),
            Scheme::InternetFacing => self.public_subnets.clone(),
        }
    }
}

fn program() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let venv = std::env::var_os("FAIRLEAD_VENV").map_or_else(|| root.join(".venv"), PathBuf::from);
    venv.join("bin/moto_server")
}
