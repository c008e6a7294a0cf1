//! NetworkPolicy at pods' links, as global functions: the verifier walks each once, by itself, and not with each way
//! through the path.
//!
//! Invariant: nothing is decided here ([`lb_common::path::network_policy`]).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use lb_common::path::network_policy::{self, JUDGE, Judgement, Meeting, PASS, Pods, PolicyTables, UNKNOWN};
use lb_common::table::{Admitted, FlowKey, FragmentKey, Peer, PeerPort, Pod};
use lb_common::verdict::{Action, Outcome};
use lb_common::wire::{Addr, Ip4, Ip6};

use crate::maps;
use crate::packet::Skb;
use crate::tables::{Kernel, count, now};

const BPF_ANY: u64 = 0;

/// The maps of one address family.
trait Judges: Addr {
    const PEERS: &'static LpmTrie<Peer<Self>, u64>;
    const ADMITTED: &'static LruHashMap<FlowKey<Self>, Admitted<Self>>;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, u32>;
}

impl Judges for Ip4 {
    const PEERS: &'static LpmTrie<Peer<Self>, u64> = &maps::PEERS4;
    const ADMITTED: &'static LruHashMap<FlowKey<Self>, Admitted<Self>> = &maps::ADMITTED4;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, u32> = &maps::ALLOWED_FRAGMENTS4;
}

impl Judges for Ip6 {
    const PEERS: &'static LpmTrie<Peer<Self>, u64> = &maps::PEERS6;
    const ADMITTED: &'static LruHashMap<FlowKey<Self>, Admitted<Self>> = &maps::ADMITTED6;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, u32> = &maps::ALLOWED_FRAGMENTS6;
}

impl Pods for Kernel {
    #[inline(always)]
    fn pod(&self, link: u32) -> Option<Pod> {
        // SAFETY: the agent replaces whole entries: an update makes a new element.
        unsafe { maps::PODS.get(&link) }.copied()
    }

    #[inline(always)]
    fn ports(&self, port: &PeerPort) -> u64 {
        maps::PEER_PORTS.get(Key::new(u64::BITS, *port)).copied().unwrap_or_default()
    }
}

impl<A: Judges> PolicyTables<A> for Kernel {
    #[inline(always)]
    fn peers(&self, peer: &Peer<A>) -> u64 {
        A::PEERS.get(Key::new(u32::BITS + A::BITS, *peer)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn admitted(&self, key: &FlowKey<A>) -> Option<Admitted<A>> {
        // SAFETY: packets replace whole entries. One that is pushed out meanwhile may be half another's: its packet is
        // judged by a policy that one of the two had, or not found to be of this link.
        unsafe { A::ADMITTED.get(key) }.copied()
    }

    #[inline(always)]
    fn admit(&self, key: &FlowKey<A>, admitted: &Admitted<A>) {
        // A least-recently-used map makes room; without an entry the next packet is judged anew.
        let _ = A::ADMITTED.insert(key, admitted, BPF_ANY);
    }

    #[inline(always)]
    fn allowed_fragment(&self, key: &FragmentKey<A>) -> Option<u32> {
        // SAFETY: one word.
        unsafe { A::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn allow_fragment(&self, key: &FragmentKey<A>, now: u32) {
        // As above; a lost one shows as `policy_fragment`.
        let _ = A::FRAGMENTS.insert(key, &now, BPF_ANY);
    }
}

#[inline(always)]
fn room<'a>() -> Option<&'a mut Judgement> {
    // SAFETY: the map's value, of this CPU and this packet alone, as that of `SCRATCH`.
    maps::JUDGEMENT.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// Counts why a packet is dropped, if it is.
#[inline(always)]
fn counted(found: u32) -> u32 {
    if let Some(reason) = network_policy::reason(found) {
        count(&maps::DROPS, reason);
    }
    found
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn policy_outward(skb: *mut __sk_buff, link: u32) -> u32 {
    let at = Meeting { link, from: link, now: now() };
    let Some(room) = room() else { return UNKNOWN };
    room.asked = 0;
    let found = counted(network_policy::outward(&mut Skb(skb), &at, &Kernel, room));
    room.asked = found;
    found
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn policy_translated(skb: *mut __sk_buff, link: u32) -> u32 {
    let at = Meeting { link, from: link, now: now() };
    let Some(room) = room() else { return UNKNOWN };
    if room.asked != JUDGE {
        return PASS;
    }
    counted(network_policy::translated(&mut Skb(skb), &at, &Kernel, room))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn policy_inward(skb: *mut __sk_buff, link: u32, from: u32) -> u32 {
    let at = Meeting { link, from, now: now() };
    let Some(room) = room() else { return UNKNOWN };
    counted(network_policy::inward(&mut Skb(skb), &at, &Kernel, room))
}

/// Whether a packet from a pod goes on to the path.
#[inline(always)]
pub fn outward(skb: *mut __sk_buff, link: u32) -> bool {
    policy_outward(skb, link) <= JUDGE
}

/// Behind the path, what becomes of it.
#[inline(always)]
pub fn translated(packet: &mut Skb, outcome: Outcome, link: u32) -> Outcome {
    // What is an answer of ours by now is no packet of the pod's.
    if matches!(outcome.action, Action::Drop | Action::Reply | Action::Refuse) {
        return outcome;
    }
    match policy_translated(packet.0, link) {
        PASS => outcome,
        found => Outcome { action: Action::Drop, value: network_policy::reason(found).unwrap_or_default() },
    }
}

/// Whether a packet goes on to a pod.
#[inline(always)]
pub fn inward(skb: *mut __sk_buff, link: u32, from: u32) -> bool {
    policy_inward(skb, link, from) == PASS
}
