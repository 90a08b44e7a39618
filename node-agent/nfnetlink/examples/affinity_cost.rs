//! What session affinity costs, by the number of Services that ask for it, in two shapes: one set of
//! clients for all with numbered endpoints, and a set and a chain for each endpoint. Needs
//! CAP_SYS_ADMIN for a network namespace of its own, which is all that it touches.
//!
//! ```sh
//! cargo run --release -p nfnetlink --example affinity_cost
//! ```

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod figures;

use std::net::Ipv4Addr;
use std::time::Duration;

use figures::{millis, spread, timed};
use nfnetlink::expr::{Dynset, DynsetOp};
use nfnetlink::{
    Batch, Chain, ChainKind, Element, ElementData, Expr, Family, Field, Hook, MapData, Reg, Result, Rule,
    Set, Socket, Table, TableRef, Value, Verdict,
};

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "cost");
const TIMEOUT: Duration = Duration::from_secs(10_800);
const PLAIN_ELEMENTS: u32 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    OneSet,
    SetEach,
}

fn main() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs CAP_SYS_ADMIN");
    for (services, endpoints) in [(1, 2), (1, 500), (100, 5), (1000, 5), (5000, 2), (5000, 5)] {
        for shape in [Shape::OneSet, Shape::SetEach] {
            // Minutes, and the other has told what there is to know.
            if shape == Shape::SetEach && services * endpoints > 10_000 {
                continue;
            }
            measure(shape, services, endpoints)?;
        }
    }
    Ok(())
}

fn measure(shape: Shape, services: u32, endpoints: u32) -> Result<()> {
    let mut socket = Socket::open()?;
    let mut batch = base();
    for service in 0..services {
        add(shape, service, 0..endpoints, &mut batch);
        lead(service, &mut batch);
    }
    let cold = timed(|| socket.commit(&batch))?;
    let listed = timed(|| socket.rules(TABLE).map(drop))?;
    let (mut changes, mut plain) = (Vec::new(), Vec::new());
    for round in 0..40 {
        let service = round * 37 % services;
        let mut batch = Batch::new();
        match shape {
            // All but one, and all again.
            Shape::OneSet => {
                batch.flush_chain(TABLE, &chain(service));
                add(shape, service, round % 2..endpoints, &mut batch);
            }
            Shape::SetEach => {
                batch.flush_chain(TABLE, &chain(service));
                add(shape, service, 0..endpoints + 1 + round % 2, &mut batch);
            }
        }
        changes.push(timed(|| socket.commit(&batch))?);
        let mut batch = Batch::new();
        batch.add_elements(TABLE, "plain").push(&Element::key(&(PLAIN_ELEMENTS + round).to_be_bytes()));
        plain.push(timed(|| socket.commit(&batch))?);
    }
    println!(
        "{shape:?}, {services} Services of {endpoints} endpoints: cold {:.1} ms, rules listed in {:.1} ms, \
         a Service changed {}, another's element {}",
        millis(cold),
        millis(listed),
        spread(changes),
        spread(plain),
    );
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    socket.commit(&batch)
}

/// Hooks that reach the map on as many ways as node-agent's do, and a large set of others' elements.
fn base() -> Batch {
    let mut batch = Batch::with_capacity(16 << 20);
    batch.add_table(&Table::new(Family::Ip, "cost"));
    let key = [Field::IP_DADDR, Field::L4PROTO, Field::TH_DPORT];
    batch.add_set(TABLE, &Set { data: Some(MapData::Verdict), ..Set::new("affinity", key) });
    batch.add_set(
        TABLE,
        &Set { size: Some(1 << 20), ..dynamic("clients", &[Field::IP_SADDR, Field::random(u32::MAX)]) },
    );
    batch.add_set(TABLE, &Set::new("plain", [Field::IP_SADDR]));
    let mut elements = batch.add_elements(TABLE, "plain");
    for number in 0..PLAIN_ELEMENTS {
        elements.push(&Element::key(&number.to_be_bytes()));
    }
    batch.add_chain(TABLE, &Chain::regular("spread"));
    batch.add_chain(TABLE, &Chain::regular("services"));
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        batch.add_chain(TABLE, &Chain::base(name, ChainKind::Nat, hook, -100));
        batch.add_rule(TABLE, &Rule::new(name, [Expr::goto("services")]));
    }
    let protocol = Reg::R32_01;
    let key = [Expr::ip_daddr(Reg::R1), Expr::l4proto(protocol), Expr::th_dport(Reg::R32_02)];
    let lookup = Expr::map("affinity", Reg::R1, Reg::VERDICT);
    batch.add_rule(TABLE, &Rule::new("spread", key.into_iter().chain([lookup])));
    for way in 0..4 {
        let source = Value::new().ipv4(Ipv4Addr::new(192, 0, 2, way));
        let exprs = [Expr::ip_saddr(Reg::R1), Expr::eq(Reg::R1, source), Expr::goto("spread")];
        batch.add_rule(TABLE, &Rule::new("services", exprs));
    }
    batch
}

fn dynamic(name: &str, key: &[Field]) -> Set {
    Set { flags: Set::DYNAMIC | Set::TIMEOUT, timeout: Some(TIMEOUT), ..Set::new(name, key) }
}

fn chain(service: u32) -> String {
    format!("affinity/namespace/service-{service}/http/tcp")
}

fn lead(service: u32, batch: &mut Batch) {
    let vip = Ipv4Addr::from_bits(0x0a60_0000 + service);
    let key = Value::new().ipv4(vip).u8(6).port(80);
    let jump = Some(ElementData::Verdict(Verdict::Jump(chain(service))));
    batch.add_elements(TABLE, "affinity").push(&Element { data: jump, ..Element::key(key.bytes()) });
}

fn add(shape: Shape, service: u32, endpoints: std::ops::Range<u32>, batch: &mut Batch) {
    let chain = chain(service);
    batch.add_chain(TABLE, &Chain::regular(&chain));
    let named = |endpoint| format!("{chain}/10.244.{}.{}/8080", endpoint >> 8, endpoint & 255);
    for endpoint in endpoints.clone() {
        if shape == Shape::SetEach {
            let name = named(endpoint);
            batch.add_set(TABLE, &Set { size: Some(65_535), ..dynamic(&name, &[Field::IP_SADDR]) });
            batch.add_chain(TABLE, &Chain::regular(&name));
            batch.flush_chain(TABLE, &name);
            batch.add_rule(TABLE, &Rule::new(&name, keep(&name, None, endpoint)));
        }
    }
    for endpoint in endpoints.clone() {
        let number = service << 12 | endpoint;
        let mut exprs = client((shape == Shape::OneSet).then_some(number));
        match shape {
            Shape::OneSet => {
                exprs.push(Expr::in_set("clients", Reg::R1));
                exprs.extend(keep("clients", Some(number), endpoint));
            }
            Shape::SetEach => {
                exprs.extend([Expr::in_set(&named(endpoint), Reg::R1), Expr::goto(&named(endpoint))]);
            }
        }
        batch.add_rule(TABLE, &Rule::new(&chain, exprs));
    }
    for endpoint in endpoints.clone() {
        let zero = Value::new().u32(0);
        let mut exprs = vec![Expr::random(endpoints.end - endpoint, Reg::R1), Expr::eq(Reg::R1, zero)];
        match shape {
            Shape::OneSet => exprs.extend(keep("clients", Some(service << 12 | endpoint), endpoint)),
            Shape::SetEach => exprs.push(Expr::goto(&named(endpoint))),
        }
        batch.add_rule(TABLE, &Rule::new(&chain, exprs));
    }
}

fn client(number: Option<u32>) -> Vec<Expr> {
    let number = number.map(|number| Expr::number(number, Reg::R32_01));
    [Expr::ip_saddr(Reg::R1)].into_iter().chain(number).collect()
}

fn keep(set: &str, number: Option<u32>, endpoint: u32) -> Vec<Expr> {
    let mut exprs = vec![Expr::l4proto(Reg::R1), Expr::eq(Reg::R1, Value::new().u8(6))];
    exprs.extend(client(number));
    let (op, sreg_key) = (DynsetOp::Update, Reg::R1);
    exprs.push(Dynset { set: set.to_owned(), op, sreg_key, sreg_data: None, timeout: TIMEOUT }.into());
    let target = Value::new().ipv4(Ipv4Addr::from_bits(0x0af4_0000 + endpoint));
    exprs.extend([Expr::immediate(Reg::R1, target), Expr::immediate(Reg::R2, Value::new().port(8080))]);
    exprs.push(Expr::dnat(Family::Ip, Reg::R1, Some(Reg::R2)));
    exprs
}
