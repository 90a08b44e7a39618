//! The AWS half: moto in place of EC2 and ELBv2, with a VPC that a cluster could live in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::network::Host;
use crate::process::Program;
use crate::spawn::{Spawner, Spec};
use crate::sweep::Ground;
use crate::traffic;
use crate::{programs, wait};

pub const REGION: &str = "us-east-1";

const PORT: u16 = 5000;

/// moto knows this image from the start.
const IMAGE: &str = "ami-12c6146b";

/// The name that our controller knows the cluster by.
pub const CLUSTER: &str = "lab";

/// A VPC with a public and a private subnet in each of three zones.
#[derive(Debug)]
pub struct Aws {
    pub moto: Program,
    pub vpc: String,
    /// Zone and private subnet, where the nodes live.
    pub subnets: Vec<(String, String)>,
    gateway: String,
    /// The nodes' security group, with the cluster's tag.
    nodes_group: String,
    host: Host,
}

/// An EC2 instance that stands for a node.
#[derive(Debug, Clone)]
pub struct Instance {
    pub id: String,
    pub zone: String,
}

/// Which API is spoken to.
#[derive(Debug, Clone, Copy)]
pub enum Api {
    Ec2,
    Elbv2,
}

impl Aws {
    /// Starts moto on the control plane's host, and builds the VPC.
    ///
    /// # Errors
    /// When moto is missing or does not come up.
    pub async fn start(host: &Host, ground: &Ground, spawner: &Spawner) -> Result<Self> {
        let spec = Spec {
            program: programs::moto_server()?,
            arguments: ["-H".into(), "0.0.0.0".into(), "-p".into(), PORT.to_string().into()].to_vec(),
            environment: BTreeMap::new(),
            netns: host.netns.clone(),
            hostname: None,
            log: ground.log("moto"),
        };
        let moto = Program::start("moto", spawner, spec).await?;
        let (vpc, gateway, nodes_group) = Default::default();
        let mut aws = Self { moto, vpc, gateway, nodes_group, subnets: Vec::new(), host: host.clone() };
        let vpc = &[("CidrBlock", "172.31.0.0/16")];
        let made = wait::until("moto makes a VPC", Duration::from_secs(30), async || {
            aws.call(Api::Ec2, "CreateVpc", vpc).await.with_context(|| aws.moto.log_tail(3))
        });
        aws.vpc = tag(&made.await?, "vpcId")?.to_owned();
        let gateway = aws.call(Api::Ec2, "CreateInternetGateway", &[]).await?;
        aws.gateway = tag(&gateway, "internetGatewayId")?.to_owned();
        let attached = [("InternetGatewayId", aws.gateway.as_str()), ("VpcId", aws.vpc.as_str())];
        aws.call(Api::Ec2, "AttachInternetGateway", &attached).await?;
        for (nth, letter) in ["a", "b", "c"].into_iter().enumerate() {
            let zone = format!("{REGION}{letter}");
            let public = aws.subnet(&zone, &format!("172.31.{nth}.0/24"), "kubernetes.io/role/elb").await?;
            aws.open_to_the_world(&public).await?;
            let cidr = format!("172.31.{}.0/24", 100 + nth);
            let private = aws.subnet(&zone, &cidr, "kubernetes.io/role/internal-elb").await?;
            aws.subnets.push((zone, private));
        }
        let group = [("GroupName", "nodes"), ("GroupDescription", "nodes"), ("VpcId", aws.vpc.as_str())];
        let group = aws.call(Api::Ec2, "CreateSecurityGroup", &group).await?;
        aws.nodes_group = tag(&group, "groupId")?.to_owned();
        aws.tag(&aws.nodes_group, &format!("kubernetes.io/cluster/{CLUSTER}"), "owned").await?;
        Ok(aws)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// An instance for a node, in one zone after the other.
    ///
    /// # Errors
    /// When moto refuses.
    pub async fn launch(&self, nth: usize) -> Result<Instance> {
        let (zone, subnet) = &self.subnets[nth % self.subnets.len()];
        let said = self
            .call(
                Api::Ec2,
                "RunInstances",
                &[
                    ("ImageId", IMAGE),
                    ("InstanceType", "t3.micro"),
                    ("MinCount", "1"),
                    ("MaxCount", "1"),
                    ("SubnetId", subnet),
                    ("SecurityGroupId.1", &self.nodes_group),
                ],
            )
            .await?;
        Ok(Instance { id: tag(&said, "instanceId")?.to_owned(), zone: zone.clone() })
    }

    /// One call in the Query protocol; the XML of its answer. moto asks for a signature's scope,
    /// and believes it.
    ///
    /// # Errors
    /// When the call is refused; with what was answered.
    pub async fn call(&self, api: Api, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let (scope, version) = match api {
            Api::Ec2 => ("ec2", "2016-11-15"),
            Api::Elbv2 => ("elasticloadbalancing", "2015-12-01"),
        };
        let mut body = format!("Action={action}&Version={version}");
        parameters.iter().for_each(|(name, value)| body += &format!("&{name}={}", encode(value)));
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\nContent-Length: {length}\r\n\
             X-Amz-Date: 20260101T000000Z\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=lab/20260101/{REGION}/{scope}/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature=lab\r\n\r\n{body}",
            address = self.address(),
            length = body.len(),
        );
        let mut stream =
            traffic::connect(&self.host.netns, None, self.address()).await.context("reaching moto")?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, xml) = answer.split_once("\r\n\r\n").context("moto's answer ended early")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{action} was refused: {xml}");
        Ok(xml.to_owned())
    }

    /// What is registered in any target group: `instance:port`, in order.
    ///
    /// # Errors
    /// When moto refuses.
    pub async fn targets(&self) -> Result<Vec<String>> {
        let groups = self.call(Api::Elbv2, "DescribeTargetGroups", &[]).await?;
        let mut targets = Vec::new();
        for group in tags(&groups, "TargetGroupArn") {
            let health = self.call(Api::Elbv2, "DescribeTargetHealth", &[("TargetGroupArn", group)]).await?;
            for target in tags(&health, "Target") {
                targets.push(format!("{}:{}", tag(target, "Id")?, tag(target, "Port")?));
            }
        }
        targets.sort_unstable();
        Ok(targets)
    }

    /// The ARNs or ids of all that a controller can have made: load balancers, target groups, and
    /// security groups beside those that were there.
    ///
    /// # Errors
    /// When moto refuses.
    pub async fn made(&self) -> Result<Vec<String>> {
        let mut made = Vec::new();
        for (action, element) in
            [("DescribeLoadBalancers", "LoadBalancerArn"), ("DescribeTargetGroups", "TargetGroupArn")]
        {
            let said = self.call(Api::Elbv2, action, &[]).await?;
            made.extend(tags(&said, element).map(str::to_owned));
        }
        let of_vpc = [("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", self.vpc.as_str())];
        let groups = self.call(Api::Ec2, "DescribeSecurityGroups", &of_vpc).await?;
        let names = tags(&groups, "groupName").filter(|name| !matches!(*name, "default" | "nodes"));
        made.extend(names.map(str::to_owned));
        Ok(made)
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host.v4(), PORT))
    }

    /// A subnet whose tag says for which kind of balancers it is.
    async fn subnet(&self, zone: &str, cidr: &str, role: &str) -> Result<String> {
        let parameters = [("VpcId", self.vpc.as_str()), ("CidrBlock", cidr), ("AvailabilityZone", zone)];
        let said = self.call(Api::Ec2, "CreateSubnet", &parameters).await?;
        let id = tag(&said, "subnetId")?.to_owned();
        self.tag(&id, role, "1").await?;
        Ok(id)
    }

    async fn tag(&self, id: &str, key: &str, value: &str) -> Result<()> {
        let tags = [("ResourceId.1", id), ("Tag.1.Key", key), ("Tag.1.Value", value)];
        self.call(Api::Ec2, "CreateTags", &tags).await.map(drop)
    }

    /// A subnet is public when its route table leads to an internet gateway.
    async fn open_to_the_world(&self, subnet: &str) -> Result<()> {
        let table = self.call(Api::Ec2, "CreateRouteTable", &[("VpcId", &self.vpc)]).await?;
        let table = ("RouteTableId", tag(&table, "routeTableId")?);
        self.call(Api::Ec2, "AssociateRouteTable", &[table, ("SubnetId", subnet)]).await?;
        let route = [table, ("DestinationCidrBlock", "0.0.0.0/0"), ("GatewayId", &self.gateway)];
        self.call(Api::Ec2, "CreateRoute", &route).await.map(drop)
    }
}

/// The text of the first element of that name.
///
/// # Errors
/// When there is none.
pub fn tag<'a>(xml: &'a str, name: &str) -> Result<&'a str> {
    tags(xml, name).next().with_context(|| format!("no <{name}> in {xml}"))
}

/// The texts of all elements of that name.
pub fn tags<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&open)?;
        let (text, tail) = after.split_once(&close)?;
        rest = tail;
        Some(text)
    })
}

/// Everything but unreserved characters (RFC 3986 §2.3), percent-encoded.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_by_name() {
        let xml = "<r><vpcId>vpc-1</vpcId><s><vpcId>vpc-2</vpcId></s></r>";
        assert_eq!(tag(xml, "vpcId").unwrap(), "vpc-1");
        assert_eq!(tags(xml, "vpcId").collect::<Vec<_>>(), ["vpc-1", "vpc-2"]);
        assert!(tag(xml, "subnetId").is_err());
    }

    #[test]
    fn values_are_safe_in_a_form() {
        assert_eq!(encode("kubernetes.io/role"), "kubernetes.io%2Frole");
        assert_eq!(encode("0.0.0.0/0 a"), "0.0.0.0%2F0%20a");
    }
}
