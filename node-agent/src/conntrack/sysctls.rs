//! The limits of the connection table, as kube-proxy sets them at its start (`SetSysctls`,
//! pkg/proxy/conntrack/sysctls.go).
//!
//! The table's size and that of its hash are only ever raised: an administrator may know better
//! (kubernetes/kubernetes#142035). A timeout is set as it is asked for, also to less than it was: a
//! node that changed over from kube-proxy then forgets idle connections when it always did, and the
//! kernel's own five days do not fill its table. 0 leaves a timeout as it is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::kube_proxy::configuration::Conntrack;
use crate::kube_proxy::duration::GoDuration;

const TABLE_SIZE: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const PROCESSORS: &str = "sys/devices/system/cpu/online";
/// What many cores ask for together stops here; `min` does not.
const MOST_BY_CORES: u64 = 1 << 20;
/// Entries for each bucket of the hash.
const ENTRIES_PER_BUCKET: u64 = 4;

/// What a file of the kernel should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    path: &'static str,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// No less than that.
    AtLeast(u64),
    Exactly(u64),
}

/// A file that does not say what it should.
#[derive(Debug, thiserror::Error)]
#[error("{path} should say {wanted}: {source}")]
pub struct Unset {
    path: String,
    wanted: Rule,
    source: io::Error,
}

/// Brings the host's files into line; what could not be. What is right is not written, so a container
/// that sees `/proc/sys` read-only finds nothing amiss after another one set it.
pub fn apply(asked: &Conntrack) -> Vec<Unset> {
    apply_under(Path::new("/"), asked)
}

fn apply_under(root: &Path, asked: &Conntrack) -> Vec<Unset> {
    let settings = settings(asked, processors(root));
    settings.into_iter().filter_map(|setting| setting.apply(root).err()).collect()
}

fn settings(asked: &Conntrack, processors: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    let size = table_size(asked, processors);
    if size > 0 {
        settings.push(Setting { path: TABLE_SIZE, rule: Rule::AtLeast(size) });
        settings.push(Setting { path: HASH_SIZE, rule: Rule::AtLeast(size / ENTRIES_PER_BUCKET) });
    }
    let or_zero = |period: Option<GoDuration>| period.unwrap_or_default().0;
    for (path, period) in [
        (
            "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
            or_zero(asked.tcp_established_timeout),
        ),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", or_zero(asked.tcp_close_wait_timeout)),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", asked.udp_timeout.0),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", asked.udp_stream_timeout.0),
    ] {
        if period.as_secs() > 0 {
            settings.push(Setting { path, rule: Rule::Exactly(period.as_secs()) });
        }
    }
    if asked.tcp_be_liberal {
        let path = "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
        settings.push(Setting { path, rule: Rule::AtLeast(1) });
    }
    settings
}

/// `getConntrackMax`; 0 for as it is.
fn table_size(asked: &Conntrack, processors: u64) -> u64 {
    let number = |count: Option<i32>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
    match number(asked.max_per_core) {
        0 => 0,
        each if each * processors > MOST_BY_CORES => MOST_BY_CORES,
        each => (each * processors).max(number(asked.min)),
    }
}

/// Of the host, whatever part of it this process may use.
fn processors(root: &Path) -> u64 {
    let online = std::fs::read_to_string(root.join(PROCESSORS)).ok();
    online
        .and_then(|list| count(list.trim()))
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |number| number.get() as u64))
}

/// How many numbers there are in a list such as `0-3,8`.
fn count(list: &str) -> Option<u64> {
    let mut number = 0;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        number += last.checked_sub(first)? + 1;
    }
    Some(number)
}

impl Setting {
    fn apply(self, root: &Path) -> Result<(), Unset> {
        let path: PathBuf = root.join(self.path);
        let (Rule::AtLeast(wanted) | Rule::Exactly(wanted)) = self.rule;
        let write = || -> io::Result<()> {
            let text = std::fs::read_to_string(&path)?;
            let now: u64 = text.trim().parse().map_err(io::Error::other)?;
            if self.rule.holds(now) {
                return Ok(());
            }
            std::fs::write(&path, wanted.to_string())?;
            tracing::info!(file = %path.display(), before = now, now = wanted, "set");
            Ok(())
        };
        write().map_err(|source| Unset { path: path.display().to_string(), wanted: self.rule, source })
    }
}

impl Rule {
    fn holds(self, value: u64) -> bool {
        match self {
            Rule::AtLeast(least) => value >= least,
            Rule::Exactly(wanted) => value == wanted,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::AtLeast(least) => write!(f, "{least} or more"),
            Rule::Exactly(wanted) => write!(f, "{wanted}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_proxy::KubeProxyConfiguration;
    use std::collections::BTreeMap;
    use std::fs;

    const NETFILTER: &str = "proc/sys/net/netfilter";

    /// The files of a host with so many processors, as Linux has them at boot.
    fn host(processors: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in [
            (PROCESSORS, processors),
            (TABLE_SIZE, "65536"),
            (HASH_SIZE, "16384"),
            ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", "432000"),
            ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60"),
            ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", "30"),
            ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", "120"),
            ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "0"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        root
    }

    fn read(root: &tempfile::TempDir, path: &str) -> u64 {
        fs::read_to_string(root.path().join(path)).unwrap().trim().parse().unwrap()
    }

    fn usual() -> Conntrack {
        KubeProxyConfiguration::without_file().conntrack
    }

    #[test]
    fn the_table_grows_with_the_processors_and_no_less_than_the_least() {
        let asked = |each, least| Conntrack { max_per_core: Some(each), min: Some(least), ..usual() };
        let cases = [
            ("two processors", usual(), 2, 131_072),
            ("eight", usual(), 8, 262_144),
            ("very many", usual(), 256, 1 << 20),
            ("a larger least", asked(32_768, 2_000_000), 8, 2_000_000),
            ("as kube-proxy: not beyond a million by cores", asked(32_768, 2_000_000), 64, 1 << 20),
            ("as it is", asked(0, 131_072), 8, 0),
            ("no least", asked(10, 0), 8, 80),
        ];
        for (what, asked, processors, size) in cases {
            assert_eq!(table_size(&asked, processors), size, "{what}");
        }
        for (list, number) in
            [("0", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None)]
        {
            assert_eq!(count(list), number, "{list:?}");
        }
    }

    #[test]
    fn sizes_are_raised_and_timeouts_are_set_as_asked_for() {
        let root = host("0-7");
        let asked = Conntrack { udp_timeout: GoDuration::seconds(10), tcp_be_liberal: true, ..usual() };
        assert!(apply_under(root.path(), &asked).is_empty());
        let values: BTreeMap<String, u64> = fs::read_dir(root.path().join(NETFILTER))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .map(|name| (name.clone(), read(&root, &format!("{NETFILTER}/{name}"))))
            .collect();
        let expected = [
            ("nf_conntrack_max", 262_144),
            ("nf_conntrack_tcp_be_liberal", 1),
            ("nf_conntrack_tcp_timeout_close_wait", 3600),
            ("nf_conntrack_tcp_timeout_established", 86_400),
            ("nf_conntrack_udp_timeout", 10),
            ("nf_conntrack_udp_timeout_stream", 120),
        ];
        assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value)).into());
        assert_eq!(read(&root, HASH_SIZE), 65_536);
    }

    #[test]
    fn a_table_that_is_larger_stays() {
        let root = host("0-7");
        for path in [TABLE_SIZE, HASH_SIZE] {
            fs::write(root.path().join(path), "5000000").unwrap();
        }
        assert!(apply_under(root.path(), &usual()).is_empty());
        assert_eq!([read(&root, TABLE_SIZE), read(&root, HASH_SIZE)], [5_000_000; 2]);
    }

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        let root = host("0-7");
        assert!(apply_under(root.path(), &Conntrack::default()).is_empty());
        assert_eq!(read(&root, TABLE_SIZE), 65_536);
        let name = "nf_conntrack_tcp_timeout_established";
        assert_eq!(read(&root, &format!("{NETFILTER}/{name}")), 432_000);
    }

    #[test]
    fn a_file_that_is_missing_or_cannot_be_written_is_named_and_the_others_are_set() {
        let root = host("0-7");
        fs::remove_file(root.path().join(TABLE_SIZE)).unwrap();
        // Cannot be written, whoever we are.
        let hash_size = root.path().join(HASH_SIZE);
        fs::remove_file(&hash_size).unwrap();
        fs::create_dir(&hash_size).unwrap();
        let unset: Vec<String> = apply_under(root.path(), &usual()).iter().map(ToString::to_string).collect();
        assert_eq!(unset.len(), 2, "{unset:?}");
        assert!(unset[0].contains("nf_conntrack_max should say 262144 or more"), "{unset:?}");
        let established = read(&root, &format!("{NETFILTER}/nf_conntrack_tcp_timeout_established"));
        assert_eq!(established, 86_400);
        assert_eq!(apply_under(root.path(), &usual()).len(), 2, "again");
    }
}
