//! `node-agent preflight`, and the same at every start: whether this kernel can do what our tables
//! need, for each family, and the name of what it lacks.

mod warnings;

use std::fmt;

use anyhow::Context;
use nfnetlink::{Error, Socket};
use nix::errno::Errno;
use serde::Serialize;
use service_model::IpFamily;

use crate::args::{Output, PreflightArgs};
use crate::config::Families;
use crate::nft::layout::FAMILIES;
use crate::nft::probe::{Lack, probe};

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
/// When it has no nf_tables, or we have no CAP_NET_ADMIN, or the host had no memory for an answer: then
/// nothing is known, and nothing is left out.
pub fn check() -> anyhow::Result<Report> {
    let mut socket = Socket::open().context(UNREACHABLE)?;
    let mut families = Vec::new();
    for of in FAMILIES {
        let lacks = probe(&mut socket, of).map_err(unanswered)?;
        let lacks = lacks.iter().map(Lack::to_string).collect();
        families.push(FamilyReport { family: of.to_string(), of, lacks });
    }
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let warnings = warnings::warnings(&kernel);
    Ok(Report { kernel, families, warnings })
}

const UNREACHABLE: &str =
    "nf_tables needs CAP_NET_ADMIN and a kernel with CONFIG_NF_TABLES (module nf_tables)";

const SHORT: &str = "this host had no memory or time to say what its kernel can do: start it again";

fn unanswered(error: Error) -> anyhow::Error {
    let forbidden = |errno| [Errno::EPERM, Errno::EACCES].contains(&Errno::from_raw(errno));
    let why = match &error {
        Error::Rejected(said) if said.failures.iter().any(|failure| forbidden(failure.errno)) => UNREACHABLE,
        Error::Rejected(said) if said.is_of_the_host() => SHORT,
        _ => UNREACHABLE,
    };
    anyhow::Error::new(error).context(why)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use nfnetlink::{Failure, Rejection};

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
    fn a_host_that_is_short_of_memory_is_not_told_as_a_kernel_that_lacks_something() {
        let told = |errno: Errno| {
            let what = "add table".to_owned();
            let failure = Failure { message: None, what, errno: errno as i32, text: None, offset: None };
            format!("{:#}", unanswered(Error::Rejected(Rejection { failures: vec![failure] })))
        };
        let short = told(Errno::ENOMEM);
        assert!(short.contains("Cannot allocate memory") && !short.contains("CONFIG_"), "{short}");
        assert!(told(Errno::EPERM).contains("CAP_NET_ADMIN"), "{}", told(Errno::EPERM));
    }
}
