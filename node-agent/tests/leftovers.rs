//! Real leftovers of kube-proxy in real kernels' tables, beside what others own: the former go.
#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "shared by test binaries; each uses its own part")]
#[path = "support/kernel.rs"]
mod kernel;

use std::io::Write;
use std::process::{Command, Stdio};

use kernel::{in_namespace, nft, ruleset};
use nfnetlink::ipvs::delete_link;
use node_agent::leftovers::{Connections, Report, remove};

/// As kube-proxy 1.37.2 writes them in iptables mode, for one Service with one endpoint.
const KUBE_PROXYS: &str = r#"*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-27K6KH73C6TSL4FM - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-BSEOZZIKZQNBBWGW - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -p tcp -m tcp --dport 80 -m comment --comment "shop/web cluster IP" -j KUBE-SVC-BSEOZZIKZQNBBWGW
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-BSEOZZIKZQNBBWGW -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-BSEOZZIKZQNBBWGW -m comment --comment "shop/web" -j KUBE-SEP-27K6KH73C6TSL4FM
-A KUBE-SEP-27K6KH73C6TSL4FM -p tcp -m tcp -j DNAT --to-destination :8080
COMMIT
"#;

/// The kubelet's, a firewall's, a network plugin's.
const OTHERS: &str = r#"*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -i lo -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
*nat
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j DNAT --to-destination :80
COMMIT
"#;

fn restore(program: &str, text: &str) {
    let mut child = Command::new(format!("{program}-restore"))
        .arg("--noflush")
        .stdin(Stdio::piped())
        .spawn()
        .expect("install iptables: scripts/setup does");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}-restore");
}

/// Without the comments, which say when.
fn saved(program: &str) -> String {
    let saved = Command::new(format!("{program}-save")).output().unwrap();
    let text = String::from_utf8(saved.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned() + "\n").collect()
}

#[test]
fn what_kube_proxy_left_in_iptables_goes_and_what_others_own_stays() {
    for programs in [["iptables-nft", "ip6tables-nft"], ["iptables-legacy", "ip6tables-legacy"]] {
        in_namespace(|| {
            programs.iter().for_each(|program| restore(program, OTHERS));
            let before = programs.map(saved);
            programs.iter().for_each(|program| restore(program, KUBE_PROXYS));
            assert!(saved(programs[0]).contains("KUBE-SEP-"));
            let report = remove(Connections::Keep).unwrap();
            assert_eq!(programs.map(saved), before);
            assert_eq!((report.removed.len(), &report.left), (6, &Vec::new()), "{report}");
            assert_eq!(remove(Connections::Keep).unwrap(), Report::default(), "nothing is left to do");
        });
    }
}

#[test]
fn a_chain_that_a_plugin_still_jumps_to_stays_until_it_does_not() {
    for program in ["iptables-nft", "iptables-legacy"] {
        in_namespace(|| {
            restore(program, KUBE_PROXYS);
            restore(program, "*nat\n:CNI-DN - [0:0]\n-A CNI-DN -j KUBE-MARK-MASQ\nCOMMIT\n");
            let report = remove(Connections::Keep).unwrap();
            let left = saved(program);
            assert!(left.contains("-A CNI-DN -j KUBE-MARK-MASQ\n"), "{left}");
            assert!(left.contains("-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n"), "{left}");
            assert!(!left.contains("KUBE-SERVICES"), "{left}");
            let [told] = &report.left[..] else { panic!("{report}") };
            assert!(told.contains("nat that a rule of somebody else leads to (KUBE-MARK-MASQ)"), "{told}");

            restore(program, "*nat\n-D CNI-DN -j KUBE-MARK-MASQ\nCOMMIT\n");
            let report = remove(Connections::Keep).unwrap();
            assert_eq!((report.removed.len(), &report.left), (1, &Vec::new()), "{report}");
            assert!(!saved(program).contains("KUBE-"), "{}", saved(program));
        });
    }
}

#[test]
fn kube_proxys_tables_go_and_others_stay() {
    in_namespace(|| {
        nft(&["table ip mine {\n chain kube-proxy {\n drop\n }\n }\n table inet kube-proxy {\n }"]);
        let before = ruleset();
        nft(&["table ip kube-proxy {\n chain a {\n jump b\n }\n chain b {\n drop\n }\n }"]);
        nft(&["table ip6 kube-proxy {\n set s {\n type ipv6_addr\n }\n }"]);
        let report = remove(Connections::Keep).unwrap();
        assert_eq!(ruleset(), before);
        assert_eq!(report.removed, ["the table ip kube-proxy", "the table ip6 kube-proxy"]);
        assert_eq!(remove(Connections::Keep).unwrap(), Report::default());
    });
}

fn tool(program: &str, arguments: &str) -> String {
    let output =
        Command::new(program).args(arguments.split_whitespace()).output().expect("scripts/setup installs it");
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// As kube-proxy 1.37.2 makes them in ipvs mode, as far as chains and sets go.
const OF_IPVS_MODE: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
COMMIT
"#;

#[test]
fn the_sets_of_ipvs_mode_go_after_their_chains_and_others_stay() {
    in_namespace(|| {
        for set in [
            "KUBE-CLUSTER-IP hash:ip,port family inet",
            "KUBE-LOOP-BACK hash:ip,port,ip family inet",
            "KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6",
            // A network policy controller's.
            "KUBE-SRC-XYZ hash:ip family inet",
        ] {
            tool("ipset", &format!("create {set}"));
        }
        restore("iptables-nft", OF_IPVS_MODE);
        // One that a rule of somebody else needs.
        tool("ipset", "create KUBE-IPVS-IPS hash:ip");
        restore("iptables-nft", "*filter\n-A INPUT -m set --match-set KUBE-IPVS-IPS dst -j ACCEPT\nCOMMIT\n");
        let report = remove(Connections::Keep).unwrap();
        assert_eq!(tool("ipset", "list -n"), "KUBE-SRC-XYZ\nKUBE-IPVS-IPS\n");
        assert!(report.removed.contains(&"4 ipsets".to_owned()), "{report}");
        assert!(
            report.left.len() == 1
                && report.left[0].contains("the ipset KUBE-IPVS-IPS: Device or resource busy"),
            "{report}"
        );
    });
}

/// This kernel may have no dummy interfaces; one of another kind is not kube-proxy's.
#[test]
fn an_interface_goes_by_its_name_and_kind() {
    in_namespace(|| {
        tool("ip", "link add kube-ipvs0 type bridge");
        let named = remove(Connections::Keep).unwrap();
        assert!(
            named.left.len() == 1 && named.left[0].contains("node-agent cleanup --kube-proxy"),
            "{named}"
        );
        let report = remove(Connections::End).unwrap();
        assert!(report.left.len() == 1 && report.left[0].contains("should be of the kind dummy"), "{report}");
        tool("ip", "link show kube-ipvs0");
        assert!(delete_link("kube-ipvs0", "bridge").unwrap());
        assert!(!delete_link("kube-ipvs0", "bridge").unwrap());
        assert_eq!(remove(Connections::End).unwrap(), Report::default());
    });
}
