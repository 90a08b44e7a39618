//! `node-agent preflight`, and the same at every start: whether this kernel can do what our tables
//! need, for each family, and the name of what it lacks.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use nfnetlink::{Monitor, Socket};
use serde::Serialize;
use service_model::IpFamily;

use crate::args::{Output, PreflightArgs};
use crate::config::Families;
use crate::nft::layout::FAMILIES;
use crate::nft::probe::{Lack, probe};

/// The oldest kernel that this was made for: the one that kube-proxy's nftables mode asks for
/// (`pkg/proxy/nftables/supported.go` of Kubernetes 1.37). Older ones are tried all the same.
const OLDEST: (u32, u32) = (5, 13);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// As `uname -r` says it.
    pub kernel: String,
    pub families: Vec<FamilyReport>,
    /// What works, but perhaps not as it should.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyReport {
    pub family: String,
    #[serde(skip)]
    of: IpFamily,
    /// What the kernel lacks; one sentence each.
    pub lacks: Vec<String>,
}

/// Answers on standard output.
///
/// # Errors
/// When no family can be served.
#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub fn print(args: &PreflightArgs) -> anyhow::Result<()> {
    let report = check()?;
    match args.output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    report.families().map(drop)
}

/// Asks the kernel. Nothing is changed.
///
/// # Errors
/// When it has no nf_tables, or we have no CAP_NET_ADMIN.
pub fn check() -> anyhow::Result<Report> {
    let mut socket = Socket::open().context(UNREACHABLE)?;
    let mut families = Vec::new();
    for of in FAMILIES {
        let lacks = probe(&mut socket, of).context(UNREACHABLE)?;
        let lacks = lacks.iter().map(Lack::to_string).collect();
        families.push(FamilyReport { family: of.to_string(), of, lacks });
    }
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut warnings: Vec<String> = age(&kernel).into_iter().collect();
    if let Err(error) = Monitor::open() {
        warnings
            .push(format!("changes by others are found every five minutes only: no notifications ({error})"));
    }
    warnings.extend(forwarding(Path::new("/proc/sys")));
    Ok(Report { kernel, families, warnings })
}

const UNREACHABLE: &str =
    "nf_tables needs CAP_NET_ADMIN and a kernel with CONFIG_NF_TABLES (module nf_tables)";

impl Report {
    /// Those that can be served.
    ///
    /// # Errors
    /// When there is none; names what the kernel lacks.
    pub fn families(&self) -> anyhow::Result<Families> {
        let usable = |of| self.families.iter().any(|family| family.of == of && family.lacks.is_empty());
        let families = Families { v4: usable(IpFamily::V4), v6: usable(IpFamily::V6) };
        anyhow::ensure!(families.v4 || families.v6, "this kernel cannot serve Services: {}", self.lacks());
        Ok(families)
    }

    /// Everything that is missing, in one line.
    pub fn lacks(&self) -> String {
        let lacks = self
            .families
            .iter()
            .flat_map(|family| family.lacks.iter().map(move |lack| format!("{}: {lack}", family.family)));
        lacks.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        for FamilyReport { family, lacks, .. } in &self.families {
            match lacks.is_empty() {
                true => writeln!(f, "{family}: the kernel has all that is needed")?,
                false => writeln!(f, "{family}: cannot be served")?,
            }
            for lack in lacks {
                writeln!(f, "    {lack}")?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

fn age(kernel: &str) -> Option<String> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next()?, numbers.next()?);
    let (major, minor) = OLDEST;
    (version < OLDEST)
        .then(|| format!("Linux {kernel} is older than {major}.{minor}, the oldest that this was made for"))
}

/// Without it, what is sent to an endpoint elsewhere stays here.
fn forwarding(sysctls: &Path) -> Vec<String> {
    let keys = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    let off = keys
        .into_iter()
        .filter(|key| std::fs::read_to_string(sysctls.join(key)).is_ok_and(|value| value.trim() == "0"));
    off.map(|key| {
        format!("{} is 0: connections to endpoints are not forwarded; set it to 1", key.replace('/', "."))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(v4: &[&str], v6: &[&str]) -> Report {
        let family = |of: IpFamily, lacks: &[&str]| FamilyReport {
            family: of.to_string(),
            of,
            lacks: lacks.iter().map(|lack| (*lack).to_owned()).collect(),
        };
        let families = vec![family(IpFamily::V4, v4), family(IpFamily::V6, v6)];
        Report { kernel: "6.1.0".to_owned(), families, warnings: Vec::new() }
    }

    #[test]
    fn a_family_that_the_kernel_cannot_serve_is_switched_off_and_the_other_is_served() {
        let half = report(&[], &["nf_tables for IPv6: needs CONFIG_NF_TABLES_IPV6"]);
        assert_eq!(half.families().unwrap(), Families { v4: true, v6: false });
        let text = half.to_string();
        assert!(text.contains("IPv4: the kernel has all"), "{text}");
        assert!(text.contains("IPv6: cannot be served\n    nf_tables for IPv6: needs"), "{text}");
        let none = report(&["fib"], &["fib"]).families().unwrap_err().to_string();
        assert_eq!(none, "this kernel cannot serve Services: IPv4: fib; IPv6: fib");
    }

    #[test]
    fn an_old_kernel_is_told() {
        for (kernel, old) in
            [("5.12.19", true), ("4.19.0-27-amd64", true), ("5.13.0", false), ("6.1.0-1-cloud", false)]
        {
            assert_eq!(age(kernel).is_some(), old, "{kernel}");
        }
    }

    #[test]
    fn forwarding_that_is_off_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("net/ipv4/ip_forward");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "0\n").unwrap();
        let [told] = forwarding(folder.path()).try_into().unwrap();
        let told: String = told;
        assert!(told.starts_with("net.ipv4.ip_forward is 0"), "{told}");
        std::fs::write(&file, "1\n").unwrap();
        assert!(forwarding(folder.path()).is_empty());
    }
}
