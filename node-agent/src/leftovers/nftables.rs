//! What is in nf_tables: kube-proxy's own tables, and the chains of iptables, which writes there too
//! (`iptables-nft`). Rules of others are read for their verdict alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use nfnetlink::{Batch, Error, Family, Socket, TableRef, Verdict, expr::Expr};

use super::names::{Rule, TABLES, plan};

/// kube-proxy's, in nftables mode.
pub const KUBE_PROXY: &str = "kube-proxy";
/// Others may change the tables between the reading and the commit.
const ATTEMPTS: usize = 5;

/// Removes all in one commit; a phrase for each table in which something was.
///
/// # Errors
/// When nf_tables cannot be read, or does not let go.
pub fn remove() -> anyhow::Result<Vec<String>> {
    let mut socket = Socket::open().context("nf_tables needs CAP_NET_ADMIN")?;
    let mut attempt = 1;
    loop {
        let generation = socket.generation()?.id;
        let mut batch = Batch::new();
        let removed = collect(&mut socket, &mut batch)?;
        if batch.is_empty() {
            return Ok(removed);
        }
        batch.expect_generation(generation);
        match socket.commit(&batch) {
            Ok(()) => return Ok(removed),
            Err(Error::StaleGeneration) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error).context("removing what kube-proxy left in nf_tables"),
        }
    }
}

fn collect(socket: &mut Socket, batch: &mut Batch) -> nfnetlink::Result<Vec<String>> {
    let mut removed = Vec::new();
    for (family, name) in [(Family::Ip, "ip"), (Family::Ip6, "ip6")] {
        let own = TableRef::new(family, KUBE_PROXY);
        if socket.table(own)?.is_some() {
            batch.delete_table(own);
            removed.push(format!("the table {name} {KUBE_PROXY}"));
        }
        for table in TABLES {
            let table = TableRef::new(family, table);
            if socket.table(table)?.is_some() {
                let chains = remove_chains(socket, table, batch)?;
                if chains > 0 {
                    removed.push(format!("{chains} chains of iptables' {name} {}", table.name));
                }
            }
        }
    }
    Ok(removed)
}

/// How many chains go.
fn remove_chains(socket: &mut Socket, table: TableRef<'_>, batch: &mut Batch) -> nfnetlink::Result<usize> {
    let chains: BTreeMap<String, bool> =
        socket.chains(table)?.into_iter().map(|c| (c.item.name, c.item.base.is_some())).collect();
    let names: BTreeSet<String> = chains.keys().cloned().collect();
    if plan::<u64>(&names, |_| false, &[]).is_empty() {
        return Ok(0);
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
    Ok(removal.chains.len())
}

fn target(exprs: &[Expr]) -> Option<String> {
    exprs.iter().find_map(|expr| match expr {
        Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
        _ => None,
    })
}
