//! What works on this host, but not as it should: nothing here keeps a family from being served.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use nfnetlink::conntrack::{Conntrack, Flow, Tuple, Zone};
use nfnetlink::{Error, Monitor};
use nix::errno::Errno;

/// The oldest kernel that this was made for: the one that kube-proxy's nftables mode asks for
/// (`pkg/proxy/nftables/supported.go` of Kubernetes 1.37). Older ones are tried all the same.
const OLDEST: (u32, u32) = (5, 13);

/// Asks the host. Nothing is changed.
pub(super) fn warnings(kernel: &str) -> Vec<String> {
    let root = Path::new("/");
    [age(kernel), notifications(Monitor::open()), ending_connections(ask_for_ctnetlink()), sctp(root)]
        .into_iter()
        .flatten()
        .chain(forwarding(root))
        .collect()
}

fn age(kernel: &str) -> Option<String> {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next()?, numbers.next()?);
    let (major, minor) = OLDEST;
    (version < OLDEST)
        .then(|| format!("Linux {kernel} is older than {major}.{minor}, the oldest that this was made for"))
}

fn notifications(opened: nfnetlink::Result<Monitor>) -> Option<String> {
    let error = opened.err()?;
    Some(format!("changes by others are found every five minutes only: no notifications ({error})"))
}

/// The end of a connection that there cannot be: from and to nobody. Where ctnetlink is a module, this
/// loads it.
fn ask_for_ctnetlink() -> nfnetlink::Result<usize> {
    let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let original = Tuple::udp(nobody, nobody);
    let flow = Flow { original, reply: original.reversed(), zone: Zone::Usual, id: 0 };
    Conntrack::open()?.delete(&[flow])
}

fn ending_connections(answer: nfnetlink::Result<usize>) -> Option<String> {
    let error = answer.err()?;
    let lacking = match &error {
        // What nfnetlink says of a subsystem that it does not have, and could not load.
        Error::Query { errno, .. } => [Errno::EINVAL, Errno::EOPNOTSUPP].contains(&Errno::from_raw(*errno)),
        _ => false,
    };
    Some(match lacking {
        true => format!(
            "stale UDP connections cannot be ended, so a client may go on asking a pod that is gone: \
             needs CONFIG_NF_CT_NETLINK (module nf_conntrack_netlink); {error}"
        ),
        false => format!("whether stale UDP connections can be ended is not known: {error}"),
    })
}

/// Its timeouts are there if the connection table knows the protocol. Where there are none at all, the
/// table is not there either, which is told as a lack, or not to be seen.
fn sctp(root: &Path) -> Option<String> {
    let files = std::fs::read_dir(root.join("proc/sys/net/netfilter")).ok()?;
    let names: Vec<String> = files.filter_map(|file| file.ok()?.file_name().into_string().ok()).collect();
    let any = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    (any("nf_conntrack_") && !any("nf_conntrack_sctp_timeout_")).then(|| {
        "the ports of SCTP Services cannot be translated, so none works whose targetPort is not its port: \
         needs CONFIG_NF_CT_PROTO_SCTP (in module nf_conntrack)"
            .to_owned()
    })
}

/// Without it, what is sent to an endpoint elsewhere stays here.
fn forwarding(root: &Path) -> Vec<String> {
    let keys = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    let is_off = |key: &&str| {
        let value = std::fs::read_to_string(root.join("proc/sys").join(key));
        value.is_ok_and(|value| value.trim() == "0")
    };
    let off = keys.into_iter().filter(is_off);
    off.map(|key| {
        format!("{} is 0: connections to endpoints are not forwarded; set it to 1", key.replace('/', "."))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with these sysctls.
    fn host(sysctls: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (key, value) in sysctls {
            let file = root.path().join("proc/sys").join(key);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, format!("{value}\n")).unwrap();
        }
        root
    }

    #[test]
    fn an_old_kernel_is_told() {
        for (kernel, old) in
            [("5.12.19", true), ("4.19.0-27-amd64", true), ("5.13.0", false), ("6.1.0-1-cloud", false)]
        {
            assert_eq!(age(kernel).is_some(), old, "{kernel}");
        }
    }

    #[test]
    fn forwarding_that_is_off_is_told() {
        let [told] = forwarding(host(&[("net/ipv4/ip_forward", "0")]).path()).try_into().unwrap();
        let told: String = told;
        assert!(told.starts_with("net.ipv4.ip_forward is 0"), "{told}");
        assert!(forwarding(host(&[("net/ipv4/ip_forward", "1")]).path()).is_empty());
    }

    #[test]
    fn a_connection_table_without_sctp_is_told_and_none_at_all_is_not() {
        let table = ("net/netfilter/nf_conntrack_max", "65536");
        let timeout = ("net/netfilter/nf_conntrack_sctp_timeout_established", "210");
        let told = sctp(host(&[table]).path()).unwrap();
        assert!(told.contains("SCTP Services") && told.contains("CONFIG_NF_CT_PROTO_SCTP"), "{told}");
        for sysctls in [&[table, timeout][..], &[("net/netfilter/nf_log_all_netns", "0")], &[]] {
            assert_eq!(sctp(host(sysctls).path()), None, "{sysctls:?}");
        }
    }

    #[test]
    fn a_kernel_that_cannot_end_connections_is_told_and_one_that_was_short_of_memory_is_not_said_to_be_one() {
        let told = |errno: Errno| {
            let what = "deleting connections".to_owned();
            ending_connections(Err(Error::Query { what, errno: errno as i32 })).unwrap()
        };
        assert!(told(Errno::EINVAL).contains("CONFIG_NF_CT_NETLINK"), "{}", told(Errno::EINVAL));
        assert!(!told(Errno::ENOMEM).contains("CONFIG_"), "{}", told(Errno::ENOMEM));
        assert_eq!(ending_connections(Ok(0)), None);
    }
}
