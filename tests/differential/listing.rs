//! What a person sees who asks the host's `nft` for the rules: an older one than the kernel and
//! node-agent, which has to understand all that node-agent writes.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::twin::Twin;

/// node-agent's tables.
const TABLES: [&str; 2] = ["table ip fairlead {", "table ip6 fairlead {"];

/// # Errors
/// When `nft` does not list the rules of the twin's node, or not all of them; with what it said.
pub(crate) fn check(twin: &Twin) -> Result<()> {
    let list = || Command::new("nft").args(["list", "ruleset"]).stdin(Stdio::null()).output();
    let output = twin.node.netns.enter(list).context("starting nft: is it installed? run scripts/setup")?;
    let objections = objections(&output);
    ensure!(objections.is_empty(), "`nft list ruleset` beside node-agent: {}", objections.join("; "));
    Ok(())
}

/// What is wrong with a listing.
fn objections(output: &Output) -> Vec<String> {
    let (listing, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut objections = Vec::new();
    if !output.status.success() {
        objections.push(format!("it ended with {}", output.status));
    }
    if !said.is_empty() {
        objections.push(format!("it said {}", said.trim()));
    }
    let lacks = TABLES.iter().filter(|table| !listing.lines().any(|line| line == **table));
    objections.extend(lacks.map(|table| format!("no line is `{table}`")));
    objections
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn output(code: i32, listing: &str, said: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: listing.into(), stderr: said.into() }
    }

    #[test]
    fn a_listing_with_both_tables_and_no_complaint_is_whole() {
        let listing = "table ip fairlead {\n}\ntable ip6 fairlead {\n}\n";
        assert_eq!(objections(&output(0, listing, "")), [""; 0]);
        assert_eq!(objections(&output(1, listing, "")).len(), 1);
        assert_eq!(objections(&output(0, listing, "netlink: Error: unknown expression\n")).len(), 1);
        assert_eq!(objections(&output(0, "table ip fairlead {\n}\n", "")).len(), 1);
        assert_eq!(objections(&output(0, "table ip fairlead-2 {\n}\n", "")).len(), 2);
    }
}
