//! What can go wrong between us and the kernel.

use std::fmt;
use std::io;

/// The result of everything that talks to the kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a batch was not committed or a dump not finished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed: no privilege (CAP_NET_ADMIN), no memory, no nf_tables.
    #[error("netlink {call}")]
    Os {
        /// The system call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The kernel refused the batch. Nothing of it is in force.
    #[error("the kernel refused the batch: {0}")]
    Rejected(Rejection),
    /// Somebody else committed since the generation that the batch expects
    /// ([`crate::Batch::expect_generation`]). Nothing of it is in force; read again,
    /// plan again.
    #[error("the ruleset changed since it was read; read it again and retry")]
    StaleGeneration,
    /// The receive buffer overflowed, so answers are missing (ENOBUFS). Whether a batch
    /// is in force is unknown: read the ruleset again.
    #[error(
        "the kernel's answers overflowed the receive buffer; the outcome is unknown, read the ruleset again"
    )]
    Overrun,
    /// The ruleset changed under the dump each time it was tried.
    #[error("the ruleset kept changing while it was read ({attempts} attempts)")]
    Interrupted {
        /// How often the dump was started.
        attempts: u32,
    },
    /// The kernel refused a query.
    #[error("{what}: {}", describe_errno(*.errno))]
    Query {
        /// What was asked for.
        what: String,
        /// The kernel's error number, positive.
        errno: i32,
    },
    /// A message cannot be expressed on the wire; nothing was sent.
    #[error("message {message} of the batch ({what}) cannot be sent: {why}")]
    Invalid {
        /// Index of the message in the batch.
        message: usize,
        /// What the message does.
        what: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The kernel's answer was not understood or did not come.
    #[error("unexpected answer from the kernel: {0}")]
    Protocol(&'static str),
}

impl Error {
    /// Wraps the last OS error of `call`.
    pub(crate) fn last_os(call: &'static str) -> Self {
        Self::Os { call, source: io::Error::last_os_error() }
    }

    /// Whether the kernel says that what was named does not exist (ENOENT).
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Query { errno, .. } => *errno == libc::ENOENT,
            Self::Rejected(rejection) => {
                rejection.failures.iter().all(|failure| failure.errno == libc::ENOENT)
            }
            _ => false,
        }
    }
}

/// Errors that say nothing of what was asked for: the same batch may pass later, or never, whatever is in it.
const OF_THE_HOST: [i32; 8] = [
    libc::EPERM,
    libc::EACCES,
    libc::ENOMEM,
    libc::ENOBUFS,
    libc::EMFILE,
    libc::ENFILE,
    libc::EAGAIN,
    libc::EINTR,
];

impl Rejection {
    /// Whether the kernel had no quarrel with the content, but no memory, no permission or no time for it.
    pub fn is_of_the_host(&self) -> bool {
        self.failures.iter().any(|failure| OF_THE_HOST.contains(&failure.errno))
    }
}

/// All complaints about one batch, in the order of its messages; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// One entry a complaint.
    pub failures: Vec<Failure>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.failures.iter().take(5).enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            failure.fmt(f)?;
        }
        match self.failures.len() {
            0..=5 => Ok(()),
            more => write!(f, "; and {} more", more - 5),
        }
    }
}

/// One complaint of the kernel about a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Index of the message in the batch, as returned by the methods of
    /// [`crate::Batch`]; `None` if the complaint is about the batch as a whole.
    pub message: Option<usize>,
    /// What that message does, for humans: `add chain ip fairlead services`.
    pub what: String,
    /// The kernel's error number, positive.
    pub errno: i32,
    /// The kernel's explanation, if it gives one.
    pub text: Option<String>,
    /// Offset of the offending attribute in the message, if the kernel gives it.
    pub offset: Option<u32>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(message) = self.message {
            write!(f, "message {message}, ")?;
        }
        write!(f, "{}: {}", self.what, describe_errno(self.errno))?;
        if let Some(text) = &self.text {
            write!(f, " ({text})")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        Ok(())
    }
}

fn describe_errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_and_no_permission_are_not_the_contents_fault() {
        let of = |errnos: &[i32]| {
            let failure = |errno: &i32| Failure {
                message: Some(0),
                what: String::new(),
                errno: *errno,
                text: None,
                offset: None,
            };
            Rejection { failures: errnos.iter().map(failure).collect() }.is_of_the_host()
        };
        for errno in [libc::EPERM, libc::ENOMEM, libc::ENOBUFS] {
            assert!(of(&[errno]));
        }
        assert!(of(&[libc::EEXIST, libc::ENOMEM]), "the others may follow from it");
        for errno in [libc::EEXIST, libc::ENOENT, libc::EINVAL, libc::EOPNOTSUPP, libc::EBUSY] {
            assert!(!of(&[errno]));
        }
    }
}
