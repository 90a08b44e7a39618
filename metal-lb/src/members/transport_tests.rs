use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

const KEY: [u8; 32] = [7; 32];
const GENERATION: Generation = Generation { term: 1, counter: 3 };
const DEADLINE: Duration = Duration::from_secs(10);
const PEER: &str = "lb-2";

/// A host under test, and a socket that plays its only peer.
struct Stage {
    peer: UdpSocket,
    host: SocketAddr,
    heard: mpsc::Receiver<Heard>,
    standing: watch::Sender<Standing>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    tier: watch::Sender<Option<Tier>>,
}

impl Stage {
    async fn set() -> Self {
        Self::set_at(Ipv4Addr::LOCALHOST.into()).await
    }

    async fn set_at(address: IpAddr) -> Self {
        let peer = UdpSocket::bind((address, 0)).await.unwrap();
        let free = UdpSocket::bind((address, 0)).await.unwrap();
        let host = free.local_addr().unwrap();
        drop(free);
        let peers = [(peer.local_addr().unwrap(), PEER.to_owned())].into();
        let (tier, tiers) = watch::channel(Some(Tier { own: host, peers, key: MemberKey::new(KEY) }));
        let (standing, standings) = watch::channel(Standing::default());
        let (heard_tx, heard) = mpsc::channel(16);
        let task = tokio::spawn(run("lb-1".into(), tiers, standings, heard_tx));
        Self { peer, host, heard, standing, task, tier }
    }

    /// The next message that `read` makes something of.
    async fn receive<T>(&self, mut read: impl FnMut(&[u8]) -> Option<T>) -> T {
        let mut buffer = [0; 4096];
        let found = async {
            loop {
                let length = self.peer.recv(&mut buffer).await.unwrap();
                if let Some(found) = read(&buffer[..length]) {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, found).await.expect("the host speaks")
    }

    async fn probe(&self) -> Probe {
        self.receive(Probe::from_bytes).await
    }

    async fn say(&self, message: &[u8]) {
        self.peer.send_to(message, self.host).await.unwrap();
    }

    async fn hear(&mut self) -> Heard {
        tokio::time::timeout(DEADLINE, self.heard.recv()).await.expect("something is heard").unwrap()
    }

    /// The same hosts and one more.
    fn add_a_host(&self) {
        self.tier.send_modify(|tier| {
            let peers = &mut tier.as_mut().unwrap().peers;
            peers.insert("127.0.0.1:9".parse().unwrap(), "lb-3".into());
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(to: &Probe) -> Probe {
    let Generation { term, counter } = GENERATION;
    Probe {
        kind: PROBE_ANSWER.to_be(),
        control_age_ms: 40u32.to_be(),
        generation_term: term.to_be(),
        generation_counter: counter.to_be(),
        ..*to
    }
}

fn hello(host: &str, boot: u64, sequence: u64) -> Hello {
    let owned = [(Ipv4Addr::new(10, 0, 0, 1), 1)].into();
    Hello { host: host.into(), boot, sequence, generation: GENERATION, owned }
}

#[tokio::test]
async fn only_answers_to_recent_probes_are_heard() {
    let mut stage = Stage::set().await;
    let probe = stage.probe().await;
    let nonce = |n: u64| Probe { nonce: n.to_be(), ..answer(&probe) };
    stage.say(nonce(u64::from_be(probe.nonce) - PROBES_IN_FLIGHT).as_bytes()).await;
    stage.say(nonce(u64::from_be(probe.nonce) + 1000).as_bytes()).await;
    stage.say(probe.as_bytes()).await;
    stage.say(answer(&stage.probe().await).as_bytes()).await;
    let expected = Heard::Answer { peer: PEER.into(), age: Duration::from_millis(40), serves: GENERATION };
    assert_eq!(stage.hear().await, expected);
    assert!(stage.heard.try_recv().is_err(), "the others were not heard");
}

#[tokio::test]
async fn a_request_over_ipv6_is_answered_and_one_over_ipv4_is_the_packet_paths() {
    for (address, answered) in
        [(IpAddr::from(Ipv6Addr::LOCALHOST), true), (IpAddr::from(Ipv4Addr::LOCALHOST), false)]
    {
        let stage = Stage::set_at(address).await;
        stage.probe().await;
        let request = request(77);
        stage.say(request.as_bytes()).await;
        let mut probes = 0;
        let answer = Probe { kind: PROBE_ANSWER.to_be(), ..request };
        let heard = stage.receive(|m| {
            let probe = Probe::from_bytes(m)?;
            probes += 1;
            (probe == answer || probes == 4).then_some(probe)
        });
        assert_eq!(heard.await == answer, answered, "{address}");
    }
}

#[tokio::test]
async fn a_hello_is_heard_once_and_only_from_the_peer_that_it_names() {
    let mut stage = Stage::set().await;
    stage.probe().await;
    let key = MemberKey::new(KEY);
    let refused = [
        hello(PEER, 5, 3).seal(&MemberKey::new([8; 32])),
        hello("lb-3", 5, 3).seal(&key),
        hello(PEER, 5, 2).seal(&key),
        hello(PEER, 5, 1).seal(&key),
        hello(PEER, 4, 9).seal(&key),
    ];
    stage.say(&hello(PEER, 5, 2).seal(&key)).await;
    for message in &refused {
        stage.say(message).await;
    }
    stage.say(&hello(PEER, 6, 1).seal(&key)).await;
    let owned = hello(PEER, 0, 0).owned;
    let expected = Heard::Hello { peer: PEER.into(), generation: GENERATION, owned };
    assert_eq!([stage.hear().await, stage.hear().await], [expected.clone(), expected]);
    assert!(stage.heard.try_recv().is_err(), "the others were not heard");
}

#[tokio::test]
async fn what_is_owned_is_told_at_once_and_then_regularly() {
    let stage = Stage::set().await;
    stage.probe().await;
    let claims = Claims::from([(Ipv4Addr::new(10, 0, 0, 9), 1)]);
    stage.standing.send_replace(Standing { generation: Some(GENERATION), claims: claims.clone() });
    let key = MemberKey::new(KEY);
    let first = stage.receive(|m| Hello::open(m, &key)).await;
    let second = stage.receive(|m| Hello::open(m, &key)).await;
    assert_eq!((first.host.as_str(), first.generation, &first.owned), ("lb-1", GENERATION, &claims));
    assert!(second.sequence > first.sequence && second.boot == first.boot && second.owned == first.owned);
}

#[tokio::test]
async fn a_host_that_joins_the_tier_changes_nothing_between_the_others() {
    let mut stage = Stage::set().await;
    stage.standing.send_replace(Standing { generation: Some(GENERATION), claims: Claims::new() });
    let key = MemberKey::new(KEY);
    let mut before = stage.receive(|m| Hello::open(m, &key)).await;
    while before.sequence < 3 {
        before = stage.receive(|m| Hello::open(m, &key)).await;
    }
    stage.say(&hello(PEER, 5, 2).seal(&key)).await;
    stage.hear().await;
    stage.add_a_host();
    for _ in 0..3 {
        let after = stage.receive(|m| Hello::open(m, &key)).await;
        assert!(after.sequence > before.sequence, "peers would take {after:?} for an old one");
        before = after;
    }
    stage.say(&hello(PEER, 5, 2).seal(&key)).await;
    let mut newer = hello(PEER, 5, 3);
    newer.owned.clear();
    stage.say(&newer.seal(&key)).await;
    let expected = Heard::Hello { peer: PEER.into(), generation: GENERATION, owned: Claims::new() };
    assert_eq!(stage.hear().await, expected, "what was heard before the change is not heard again");
}

#[test]
fn a_peer_whose_clock_went_back_is_heard_again_after_a_silence() {
    let (mut lives, now) = (Lives::default(), Instant::now());
    assert!(lives.is_news(&hello(PEER, 5, 9), now));
    for (boot, sequence, later, is_news) in [
        (5, 9, LIFE_ENDS / 2, false),
        (1, 1, LIFE_ENDS / 2, false),
        (1, 2, LIFE_ENDS, true),
        (1, 1, LIFE_ENDS, false),
        (1, 3, LIFE_ENDS, true),
    ] {
        assert_eq!(lives.is_news(&hello(PEER, boot, sequence), now + later), is_news, "{boot} {sequence}");
    }
}
