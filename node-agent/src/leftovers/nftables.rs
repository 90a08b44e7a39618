//! What is in nf_tables: kube-proxy's own tables, and the chains of iptables, which writes there too
//! (`iptables-nft`). Rules of others are read for their verdict alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use nfnetlink::{Batch, Error, Family, Socket, TableRef, Verdict, expr::Expr};

use super::Report;
use super::names::{Removal, Rule, TABLES, plan};

/// kube-proxy's, in nftables mode.
pub const KUBE_PROXY: &str = "kube-proxy";
/// Others may change the tables between the reading and the commit.
const ATTEMPTS: usize = 5;

/// Removes all in one commit.
///
/// # Errors
/// When nf_tables cannot be read, or does not let go.
pub fn remove() -> anyhow::Result<Report> {
    let mut socket = Socket::open().context("nf_tables needs CAP_NET_ADMIN")?;
    let mut attempt = 1;
    loop {
        let generation = socket.generation()?.id;
        let mut batch = Batch::new();
        let report = collect(&mut socket, &mut batch)?;
        if batch.is_empty() {
            return Ok(report);
        }
        batch.expect_generation(generation);
        match socket.commit(&batch) {
            Ok(()) => return Ok(report),
            Err(Error::StaleGeneration) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error).context("removing what kube-proxy left in nf_tables"),
        }
    }
}

fn collect(socket: &mut Socket, batch: &mut Batch) -> nfnetlink::Result<Report> {
    let mut report = Report::default();
    for (family, name) in [(Family::Ip, "ip"), (Family::Ip6, "ip6")] {
        let own = TableRef::new(family, KUBE_PROXY);
        if socket.table(own)?.is_some() {
            batch.delete_table(own);
            report.removed.push(format!("the table {name} {KUBE_PROXY}"));
        }
        for table in TABLES {
            let table = TableRef::new(family, table);
            if socket.table(table)?.is_some() {
                let removal = remove_chains(socket, table, batch)?;
                let of = format!("iptables' {name} {}", table.name);
                report.note(&of, removal.chains.len(), &removal.in_use);
            }
        }
    }
    Ok(report)
}

/// Which chains go, and which stay.
fn remove_chains(
    socket: &mut Socket,
    table: TableRef<'_>,
    batch: &mut Batch,
) -> nfnetlink::Result<Removal<u64>> {
    let chains: BTreeMap<String, bool> =
        socket.chains(table)?.into_iter().map(|c| (c.item.name, c.item.base.is_some())).collect();
    let names: BTreeSet<String> = chains.keys().cloned().collect();
    let all = plan::<u64>(&names, |_| false, &[]);
    if all.chains.is_empty() {
        return Ok(all);
    }
    let rules: Vec<Rule<u64>> = socket
        .rules(table)?
        .into_iter()
        .map(|rule| Rule { target: target(&rule.item.exprs), chain: rule.item.chain, id: rule.handle })
        .collect();
    let removal = plan(&names, |chain| chains.get(chain) == Some(&true), &rules);
    for rule in &removal.rules {
        batch.delete_rule(table, &rule.chain, rule.id);
    }
    for chain in &removal.chains {
        batch.flush_chain(table, chain);
    }
    for chain in &removal.chains {
        batch.delete_chain(table, chain);
    }
    Ok(removal)
}

fn target(exprs: &[Expr]) -> Option<String> {
    exprs.iter().find_map(|expr| match expr {
        Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
        _ => None,
    })
}
