//! `node-agent explain SRC DST:PORT[/PROTO]`: the way of a connection's first packet, with the
//! reason for each decision.
//!
//! Rules, sets and the host's addresses are read from the kernel as they are now; nothing is asked
//! of a running agent. The walk is the evaluator's ([`crate::nft::evaluate`]), which tests compare
//! with the kernel's own.

mod answer;
mod question;
mod text;
mod words;

pub use answer::{Answer, Outcome, Step, Verdict};
pub use question::{Destination, ParseQuestionError, Place, Question};

use anyhow::Context;

use crate::args::{ExplainArgs, Output};
use crate::host;
use crate::nft::kernel::Kernel;
use crate::nft::reading::Reading;

/// Answers on standard output.
///
/// # Errors
/// A question that cannot be answered on this host, or a kernel that cannot be read.
#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub fn print(args: &ExplainArgs) -> anyhow::Result<()> {
    let question = Question { source: args.source, to: args.destination, interface: args.interface };
    let mut kernel = Kernel::open_listening().context("reading our tables needs CAP_NET_ADMIN")?;
    let mut reading = Reading::of(&mut kernel).context("reading our tables")?;
    let host = host::addresses().context("asking for this host's addresses")?;
    let packet = question.packet(&reading.mirror, &host)?;
    reading.ask_for(&mut kernel, packet).context("asking who keeps the client")?;
    let answer = Answer::of(&reading, &host, packet);
    match args.output {
        Output::Text => print!("{answer}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
    }
    Ok(())
}
