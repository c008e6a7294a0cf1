//! Which other nodes are there.
//!
//! A node is there from when its agent says that its tables are in force until it says that it leaves, or until
//! neither a word of its agent nor an answer to an echo has come for [`PATIENCE`]: tables outlive their agent, and so
//! does what a node announces; but a node that has just booted answers echo before it has any. Invariant: time is
//! an argument. Not here: sockets ([`super::talk`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// From one word to the next.
pub const BEAT: Duration = Duration::from_millis(500);
/// An agent that has been silent so long has its node asked for an echo.
pub const QUIET: Duration = Duration::from_millis(1_200);
/// A node that has been silent so long is not there.
pub const PATIENCE: Duration = Duration::from_millis(2_200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Nothing has been heard yet, nor has it been missed.
    Unknown,
    Alive,
    Gone,
}

/// What nodes say to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// My tables are in force.
    Here,
    /// I announce nothing from now on.
    Leaving,
}

const GREETING: &str = "stellwerk 1";

impl Word {
    /// As a datagram.
    pub fn text(self, node: &str) -> String {
        let word = match self {
            Word::Here => "here",
            Word::Leaving => "leaving",
        };
        format!("{GREETING} {word} {node}")
    }

    /// The node, and what it says.
    pub fn parse(datagram: &[u8]) -> Option<(&str, Word)> {
        let rest = std::str::from_utf8(datagram).ok()?.strip_prefix(GREETING)?.strip_prefix(' ')?;
        match rest.split_once(' ')? {
            ("here", node) => Some((node, Word::Here)),
            ("leaving", node) => Some((node, Word::Leaving)),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
struct Peer {
    addresses: Vec<IpAddr>,
    life: Life,
    /// When its agent was last heard, and when its node last gave any sign.
    heard: Instant,
    sign: Instant,
}

/// All other nodes.
#[derive(Clone, Debug, Default)]
pub struct Peers(BTreeMap<String, Peer>);

impl Peers {
    /// These are all; `before` says of new ones what is known of them.
    pub fn set(&mut self, wanted: &BTreeMap<String, Vec<IpAddr>>, before: &BTreeMap<String, Life>, now: Instant) {
        self.0.retain(|name, _| wanted.contains_key(name));
        for (name, addresses) in wanted {
            let life = match before.get(name) {
                Some(Life::Alive) => Life::Alive,
                _ => Life::Unknown,
            };
            let new = || Peer { addresses: Vec::new(), life, heard: now, sign: now };
            self.0.entry(name.clone()).or_insert_with(new).addresses.clone_from(addresses);
        }
    }

    /// A datagram came; whether its node was of another life before. None: from nobody whom we know by this name and
    /// address.
    pub fn heard(&mut self, from: IpAddr, node: &str, word: Word, now: Instant) -> Option<bool> {
        let peer = self.0.get_mut(node).filter(|peer| peer.addresses.contains(&from))?;
        (peer.heard, peer.sign) = (now, now);
        let life = match word {
            Word::Here => Life::Alive,
            Word::Leaving => Life::Gone,
        };
        Some(std::mem::replace(&mut peer.life, life) != life)
    }

    /// An answer to an echo came.
    pub fn answered(&mut self, from: IpAddr, now: Instant) {
        for peer in self.0.values_mut().filter(|peer| peer.life == Life::Alive && peer.addresses.contains(&from)) {
            peer.sign = now;
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        for peer in self.0.values_mut().filter(|peer| now.saturating_duration_since(peer.sign) >= PATIENCE) {
            peer.life = Life::Gone;
        }
    }

    pub fn lives(&self) -> BTreeMap<String, Life> {
        self.0.iter().map(|(name, peer)| (name.clone(), peer.life)).collect()
    }

    /// All addresses of all peers.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.values().flat_map(|peer| peer.addresses.iter().copied())
    }

    /// Those of nodes whose agents are silent.
    pub fn quiet(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        let quiet = move |p: &&Peer| p.life == Life::Alive && now.saturating_duration_since(p.heard) >= QUIET;
        self.0.values().filter(quiet).flat_map(|peer| peer.addresses.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 20, 11));

    fn wanted() -> BTreeMap<String, Vec<IpAddr>> {
        [("b".to_owned(), vec![AT])].into()
    }

    /// Each step: what happens at which millisecond, and the peer's life after it.
    #[test]
    fn lives() {
        let start = Instant::now();
        let tables: &[&[(u64, &str, Life)]] = &[
            &[(0, "tick", Life::Unknown), (2_300, "tick", Life::Gone), (2_400, "here", Life::Alive)],
            // An echo alone makes nobody alive, nor keeps him unknown.
            &[(1_000, "echo", Life::Unknown), (2_300, "tick", Life::Gone), (2_500, "echo", Life::Gone)],
            // Its agent dies, its tables don't.
            &[
                (100, "here", Life::Alive),
                (2_000, "echo", Life::Alive),
                (4_000, "echo", Life::Alive),
                (6_100, "tick", Life::Alive),
                (6_300, "tick", Life::Gone),
            ],
            &[(100, "here", Life::Alive), (200, "leaving", Life::Gone), (300, "echo", Life::Gone)],
            &[(100, "stranger", Life::Unknown), (200, "imposter", Life::Unknown)],
        ];
        for steps in tables {
            let mut peers = Peers::default();
            peers.set(&wanted(), &BTreeMap::new(), start);
            for (ms, what, want) in *steps {
                let now = start + Duration::from_millis(*ms);
                match *what {
                    "here" => assert!(peers.heard(AT, "b", Word::Here, now).is_some()),
                    "leaving" => assert_eq!(peers.heard(AT, "b", Word::Leaving, now), Some(true)),
                    "stranger" => assert_eq!(peers.heard(AT, "c", Word::Here, now), None),
                    "imposter" => assert_eq!(peers.heard([192, 168, 20, 12].into(), "b", Word::Here, now), None),
                    "echo" => peers.answered(AT, now),
                    _ => {}
                }
                peers.tick(now);
                assert_eq!(peers.lives()["b"], *want, "{steps:?} at {ms}");
            }
        }
    }

    #[test]
    fn who_was_there_is_until_he_is_missed() {
        let start = Instant::now();
        let mut peers = Peers::default();
        peers.set(&wanted(), &[("b".to_owned(), Life::Alive)].into(), start);
        assert_eq!(peers.lives()["b"], Life::Alive);
        assert_eq!(peers.quiet(start + QUIET).collect::<Vec<_>>(), [AT]);
        peers.tick(start + PATIENCE);
        assert_eq!(peers.lives()["b"], Life::Gone);
    }

    #[test]
    fn words() {
        for word in [Word::Here, Word::Leaving] {
            assert_eq!(Word::parse(word.text("edge-2").as_bytes()), Some(("edge-2", word)));
        }
        for bad in ["", "stellwerk 1", "stellwerk 2 here b", "stellwerk 1 there b", "stellwerk 1 here"] {
            assert_eq!(Word::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
