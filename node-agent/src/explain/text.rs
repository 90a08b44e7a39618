//! The answer for humans.

use std::fmt;

use super::answer::{Answer, Outcome, Step, Verdict};

/// So many endpoints are listed; JSON has all.
const ENDPOINTS: usize = 20;

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, port, protocol, .. } = self;
        let of_host = if self.sent_by_this_host { " (this host)" } else { "" };
        let to = if destination.is_ipv6() {
            format!("[{destination}]:{port}")
        } else {
            format!("{destination}:{port}")
        };
        write!(f, "{protocol} from {source}{of_host} to {to}")?;
        match &self.service {
            Some(service) => writeln!(f, ", {service}")?,
            None => writeln!(f)?,
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        fmt_steps(&self.steps, f)?;
        let several = self.outcomes.len() > 1;
        for (number, outcome) in self.outcomes.iter().enumerate() {
            writeln!(f)?;
            if several {
                write!(f, "{}. ", number + 1)?;
            }
            outcome.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, .. } = self;
        match (self.verdict, self.endpoints.as_slice()) {
            (Verdict::Refused, _) => writeln!(f, "Refused at once: {why}.")?,
            (Verdict::Dropped, _) => writeln!(f, "Dropped without an answer: {why}.")?,
            (Verdict::Untouched, _) => writeln!(f, "Untouched, it goes where it was going: {why}.")?,
            (Verdict::Endpoint, [one]) => writeln!(f, "Goes to the endpoint {one},")?,
            (Verdict::Endpoint, many) => {
                writeln!(f, "Goes to one of {} endpoints, each with the same chance,", many.len())?;
            }
        }
        if self.verdict == Verdict::Endpoint {
            match self.masqueraded {
                true => writeln!(f, "masqueraded, so it sees an address of this node: {why}.")?,
                false => writeln!(f, "which sees the client's own address: {why}.")?,
            }
        }
        if let [_, _, ..] = self.endpoints.as_slice() {
            for endpoint in self.endpoints.iter().take(ENDPOINTS) {
                writeln!(f, "  {endpoint}")?;
            }
            if let Some(rest) = self.endpoints.len().checked_sub(ENDPOINTS).filter(|rest| *rest > 0) {
                writeln!(f, "  and {rest} more")?;
            }
        }
        fmt_steps(&self.steps, f)
    }
}

fn fmt_steps(steps: &[Step], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for Step { chain, because, deed, .. } in steps {
        match because.is_empty() {
            true => writeln!(f, "  {chain:<16} {deed}")?,
            false => writeln!(f, "  {chain:<16} {because}: {deed}")?,
        }
    }
    Ok(())
}
