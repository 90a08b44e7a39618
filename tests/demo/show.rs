//! Printing commands with their real output, and keeping count of what was claimed.

use std::fmt::Display;
use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::Lab;
use lab::netns::Netns;

pub(crate) struct Show {
    start: Instant,
    held: usize,
    failed: Vec<String>,
}

impl Show {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), held: 0, failed: Vec::new() }
    }

    pub(crate) fn chapter(&self, title: &str) {
        println!("\n{}", paint("1;36", &format!("== {title}")));
    }

    /// Runs `kubectl ARGUMENTS`, split at spaces, and prints it with what it said.
    pub(crate) async fn kubectl(&self, lab: &Lab, arguments: &str) -> Result<String> {
        self.kubectl_reading(lab, arguments, None).await
    }

    /// The same with manifests on standard input.
    pub(crate) async fn kubectl_reading(
        &self,
        lab: &Lab,
        arguments: &str,
        input: Option<&str>,
    ) -> Result<String> {
        let words: Vec<&str> = arguments.split(' ').collect();
        let said = lab.control_plane.kubectl.say(&words, input).await?;
        self.command(&format!("kubectl {arguments}"), &format!("{}{}", said.stdout, said.stderr));
        ensure!(said.status.success(), "kubectl {arguments} failed");
        Ok(said.stdout)
    }

    /// Runs a command line in a namespace, with `sh`, and prints it with what it said.
    pub(crate) fn shell(&self, netns: &Netns, line: &str) -> Result<String> {
        let said = netns.tool("sh", &["-c", line])?;
        self.command(&format!("ip netns exec {} {line}", netns.name()), &said);
        Ok(said)
    }

    /// A command and its output, indented.
    pub(crate) fn command(&self, command: &str, output: &str) {
        println!("{} {}", paint("32", "$"), paint("1", command));
        self.lines(output);
    }

    pub(crate) fn lines(&self, text: &str) {
        text.lines().for_each(|line| println!("  {line}"));
    }

    pub(crate) fn say(&self, text: impl Display) {
        println!("{text}");
    }

    /// Something that the story claims, and whether it held; an error says what was seen instead.
    pub(crate) fn claim(&mut self, claim: &str, proof: Result<impl Display>) {
        match proof {
            Ok(seen) => {
                self.held += 1;
                println!("{} {claim}: {seen}", paint("1;32", "✔"));
            }
            Err(error) => {
                println!("{} {claim}: {error:#}", paint("1;31", "✘"));
                self.failed.push(claim.to_owned());
            }
        }
    }

    /// The story could not go on.
    pub(crate) fn broke_off(&mut self, error: &anyhow::Error) {
        println!("{} {error:#}", paint("1;31", "✘ the story broke off:"));
        self.failed.push("the story was told to its end".to_owned());
    }

    /// One line at the end; failure if any claim failed.
    pub(crate) fn summary(&self) -> ExitCode {
        let seconds = self.start.elapsed().as_secs_f32();
        if self.failed.is_empty() {
            println!("\n{} {} claims held, in {seconds:.0} s", paint("1;32", "demo passed:"), self.held);
            return ExitCode::SUCCESS;
        }
        let failed = self.failed.join("; ");
        println!(
            "\n{} {} claims held, {} did not: {failed}",
            paint("1;31", "demo failed:"),
            self.held,
            self.failed.len()
        );
        ExitCode::FAILURE
    }
}

pub(crate) fn progress(text: &str) {
    println!("  {} {text}", paint("2", "…"));
}

fn paint(code: &str, text: &str) -> String {
    if stdout().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}
