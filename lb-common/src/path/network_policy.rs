//! NetworkPolicy: what may come to a pod of this node and what may leave it, judged at the node's end of its link.
//!
//! A connection is known by its tuple as the pod sees it, before translation on the way out and behind it on the way in,
//! so that an answer finds it. Who is judged is the other end as it is translated: behind a service the endpoint.
//! Invariant: what opens a connection is judged, and an answer never; a connection that was allowed by what is not in
//! force any more is judged anew, in the direction in which it was opened. What can't be read of a pod that a policy
//! selects doesn't pass. Not here: what policies say ([`crate::table::network_policy`] is what became of them).

use zerocopy::FromZeros;

use super::icmp;
use super::parse::{self, Ip, Parsed, Part};
use crate::apply::Packet;
use crate::drop::Drop;
use crate::table::{Admitted, FlowKey, FragmentKey, Peer, PeerPort, Pod, age};
use crate::tables::Configured;
use crate::wire::header::{ETH_P_IP, ETH_P_IPV6, ICMP6, SCTP, TCP, TCP_ACK, TCP_SYN, UDP};
use crate::wire::{Addr, Be16, Ip4, Ip6};

/// What is known of pods, for both families.
pub trait Pods: Configured {
    /// The pod at a link.
    fn pod(&self, link: u32) -> Option<Pod>;
    /// The bits of a port's longest prefix.
    fn ports(&self, port: &PeerPort) -> u64;
}

/// What is known of one family's peers and connections.
pub trait PolicyTables<A: Addr>: Pods {
    /// The bits of a peer's longest prefix.
    fn peers(&self, peer: &Peer<A>) -> u64;
    fn admitted(&self, key: &FlowKey<A>) -> Option<Admitted<A>>;
    fn admit(&self, key: &FlowKey<A>, admitted: &Admitted<A>);
    /// The tick of a first fragment that was allowed.
    fn allowed_fragment(&self, key: &FragmentKey<A>) -> Option<u32>;
    fn allow_fragment(&self, key: &FragmentKey<A>, now: u32);
}

/// Where and when a packet is met.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    /// The node's end of the pod's link.
    pub link: u32,
    /// The link that it came to this node by; 0: this node's own stack made it.
    pub from: u32,
    pub now: u32,
}

/// What the steps hand on to each other; it lies outside the stack.
#[derive(FromZeros)]
#[repr(C)]
pub struct Judged<A: Addr> {
    pod: Pod,
    parsed: Parsed<A>,
    /// As packets from the pod have it.
    key: FlowKey<A>,
    /// What is known of the connection, if anything.
    admitted: Admitted<A>,
    known: u32,
    /// Whom to judge.
    remote: Peer<A>,
    port: PeerPort,
}

/// Room for a packet's [`Judged`].
#[derive(FromZeros)]
#[repr(C)]
pub struct Judgement {
    /// What [`outward`] found, for who comes behind the path.
    pub asked: u32,
    v4: Judged<Ip4>,
    v6: Judged<Ip6>,
}

impl Default for Judgement {
    fn default() -> Self {
        Judgement::new_zeroed()
    }
}

// What a step found: numbers, since a function of its own has one register to answer by.
/// It goes on.
pub const PASS: u32 = 0;
/// Once it is translated it is to be judged by [`translated`].
pub const JUDGE: u32 = 1;
/// Beside the reason.
const DROPPED: u32 = 2;
/// Nothing is known of its pod.
pub const UNKNOWN: u32 = dropped(Drop::PolicyUnknown);

const INGRESS: u16 = Admitted::<Ip4>::INGRESS;
const EGRESS: u16 = Admitted::<Ip4>::EGRESS;

#[inline(always)]
const fn dropped(reason: Drop) -> u32 {
    DROPPED + reason as u32
}

/// The number of the [`Drop`] that a step found, if it did.
#[inline(always)]
pub fn reason(found: u32) -> Option<u32> {
    found.checked_sub(DROPPED)
}

#[inline(always)]
const fn refusal(direction: u16) -> Drop {
    if direction == INGRESS { Drop::PolicyIngress } else { Drop::PolicyEgress }
}

/// A packet from a pod, before it is translated.
#[inline(always)]
pub fn outward<P, T>(packet: &mut P, at: &Meeting, tables: &T, room: &mut Judgement) -> u32
where
    P: Packet,
    T: PolicyTables<Ip4> + PolicyTables<Ip6>,
{
    let Some(pod) = tables.pod(at.link) else {
        return UNKNOWN;
    };
    match parse::link(&packet.frame()) {
        Some(link) if link.ethertype == ETH_P_IP => {
            room.v4.pod = pod;
            from_pod(packet, link.l3, at, tables, &mut room.v4)
        }
        Some(link) if link.ethertype == ETH_P_IPV6 => {
            room.v6.pod = pod;
            from_pod(packet, link.l3, at, tables, &mut room.v6)
        }
        _ => PASS,
    }
}

/// The same packet, where that said [`JUDGE`], as it is translated.
#[inline(always)]
pub fn translated<P, T>(packet: &mut P, at: &Meeting, tables: &T, room: &mut Judgement) -> u32
where
    P: Packet,
    T: PolicyTables<Ip4> + PolicyTables<Ip6>,
{
    match parse::link(&packet.frame()) {
        Some(link) if link.ethertype == ETH_P_IP => to_remote(packet, link.l3, at, tables, &mut room.v4),
        Some(link) if link.ethertype == ETH_P_IPV6 => to_remote(packet, link.l3, at, tables, &mut room.v6),
        _ => PASS,
    }
}

/// A packet to a pod, as the pod will see it.
#[inline(always)]
pub fn inward<P, T>(packet: &mut P, at: &Meeting, tables: &T, room: &mut Judgement) -> u32
where
    P: Packet,
    T: PolicyTables<Ip4> + PolicyTables<Ip6>,
{
    // Its own packet, or our answer to it.
    if at.from == at.link {
        return PASS;
    }
    let Some(pod) = tables.pod(at.link) else {
        return UNKNOWN;
    };
    match parse::link(&packet.frame()) {
        Some(link) if link.ethertype == ETH_P_IP => {
            room.v4.pod = pod;
            to_pod(packet, link.l3, at, tables, &mut room.v4)
        }
        Some(link) if link.ethertype == ETH_P_IPV6 => {
            room.v6.pod = pod;
            to_pod(packet, link.l3, at, tables, &mut room.v6)
        }
        _ => PASS,
    }
}

#[inline(never)]
fn from_pod<A: Ip, P: Packet, T: PolicyTables<A>>(
    packet: &mut P,
    l3: u32,
    at: &Meeting,
    tables: &T,
    work: &mut Judged<A>,
) -> u32 {
    // Handed over by reference for certain, as in `path::parse_into`.
    let packet = core::hint::black_box(packet);
    if !parsed_into(packet, l3, work) {
        return if work.pod.egress == 0 { PASS } else { dropped(Drop::PolicyEgress) };
    }
    if is_between_neighbours(&work.parsed) {
        return PASS;
    }
    if work.parsed.key.src != work.pod.addr() {
        return dropped(Drop::PolicySource);
    }
    if !work.parsed.has_l4 {
        return followed(at, tables, work, EGRESS);
    }
    if is_error(&work.parsed) && quote_into(packet, work, true) && find(at, tables, work) {
        return PASS;
    }
    work.key = work.parsed.key;
    if !find(at, tables, work) || is_opened(work, EGRESS) {
        return JUDGE;
    }
    answered(at, tables, work, INGRESS, EGRESS)
}

#[inline(never)]
fn to_remote<A: Ip, P: Packet, T: PolicyTables<A>>(
    packet: &mut P,
    l3: u32,
    at: &Meeting,
    tables: &T,
    work: &mut Judged<A>,
) -> u32 {
    let packet = core::hint::black_box(packet);
    if !parsed_into(packet, l3, work) {
        return dropped(Drop::PolicyEgress);
    }
    let key = work.parsed.key;
    // Nobody is kept from himself.
    if key.dst == work.pod.addr() {
        return PASS;
    }
    aim(work, key.dst, key.dport);
    judged(at, tables, work, EGRESS)
}

#[inline(never)]
fn to_pod<A: Ip, P: Packet, T: PolicyTables<A>>(
    packet: &mut P,
    l3: u32,
    at: &Meeting,
    tables: &T,
    work: &mut Judged<A>,
) -> u32 {
    let packet = core::hint::black_box(packet);
    if !parsed_into(packet, l3, work) {
        return if work.pod.ingress == 0 { PASS } else { dropped(Drop::PolicyIngress) };
    }
    if is_between_neighbours(&work.parsed) {
        return PASS;
    }
    let own = is_own(at, tables, work);
    if !work.parsed.has_l4 {
        return if own { PASS } else { followed(at, tables, work, INGRESS) };
    }
    if is_error(&work.parsed) && quote_into(packet, work, false) && find(at, tables, work) {
        return PASS;
    }
    work.key = work.parsed.key.reversed();
    if find(at, tables, work) && !is_opened(work, INGRESS) {
        return answered(at, tables, work, EGRESS, INGRESS);
    }
    let key = work.parsed.key;
    aim(work, key.src, key.dport);
    if own {
        // So that the pod may answer. What ends a connection, or goes on with it, opens none.
        if work.known != 0 && work.admitted.policy == Admitted::<A>::OWN {
            refresh(at, tables, work);
        } else if opens(&work.parsed) {
            admit(at, tables, work, Admitted::<A>::OWN, INGRESS);
        }
        return PASS;
    }
    judged(at, tables, work, INGRESS)
}

/// False: it can't be read.
#[inline(always)]
fn parsed_into<A: Ip, P: Packet>(packet: &P, l3: u32, work: &mut Judged<A>) -> bool {
    match parse::packet(&packet.frame(), l3, 0) {
        Some(parsed) => {
            work.parsed = parsed;
            true
        }
        None => false,
    }
}

/// Neighbour and router discovery, and who listens to which group: never forwarded, as their hop limits say (RFC 4861
/// §6.1 and §7.1, RFC 9777 §5).
#[inline(always)]
fn is_between_neighbours<A: Ip>(parsed: &Parsed<A>) -> bool {
    if !A::IS_V6 || parsed.proto != ICMP6 || !parsed.has_l4 {
        return false;
    }
    match parsed.icmp_type {
        133..=137 => parsed.ttl == 255,
        130..=132 | 143 => parsed.ttl == 1,
        _ => false,
    }
}

#[inline(always)]
fn is_error<A: Ip>(parsed: &Parsed<A>) -> bool {
    parsed.proto == A::ICMP && A::is_error(parsed.icmp_type)
}

/// Whether this node itself sends it: its kubelet's probes, above all.
#[inline(always)]
fn is_own<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &Judged<A>) -> bool {
    at.from == 0 && tables.peers(&Peer { policy: Peer::<A>::NODE, addr: work.parsed.key.src }) != 0
}

/// Whether a packet may begin a connection: of TCP the first one alone.
#[inline(always)]
fn opens<A: Ip>(parsed: &Parsed<A>) -> bool {
    parsed.proto != TCP || parsed.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// The tuple that the packet which an error quotes had on the way from the pod; `turned`: it was one to the pod.
#[inline(never)]
fn quote_into<A: Ip, P: Packet>(packet: &mut P, work: &mut Judged<A>, turned: bool) -> bool {
    let packet = core::hint::black_box(packet);
    let Some(quoted) = icmp::quoted::<A, P>(packet, &work.parsed) else {
        return false;
    };
    let header = &quoted.header;
    let (sport, dport, proto) = (quoted.sport, quoted.dport, header.proto as u32);
    let key = FlowKey { src: header.src, dst: header.dst, sport, dport, proto };
    work.key = if turned { key.reversed() } else { key };
    true
}

/// Looks for the connection of the key, which has not been silent for too long.
#[inline(never)]
fn find<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &mut Judged<A>) -> bool {
    let settings = tables.settings();
    let proto = work.key.proto;
    let limit = if proto == TCP as u32 {
        settings.tcp_established
    } else if proto == SCTP as u32 {
        settings.sctp_established
    } else {
        settings.udp_answered
    };
    work.known = 0;
    if let Some(admitted) = tables.admitted(&work.key)
        && admitted.link == at.link
        && age(at.now, admitted.last) <= limit
    {
        work.admitted = admitted;
        work.known = 1;
    }
    work.known != 0
}

/// Whether the packet is of the side that opened the connection, or opens another one.
#[inline(always)]
fn is_opened<A: Ip>(work: &Judged<A>, direction: u16) -> bool {
    work.admitted.direction == direction || (work.parsed.proto == TCP && opens(&work.parsed))
}

/// An answer, in a connection that was opened in one direction; the packet itself goes in the other.
#[inline(never)]
fn answered<A: Ip, T: PolicyTables<A>>(
    at: &Meeting,
    tables: &T,
    work: &mut Judged<A>,
    direction: u16,
    packets: u16,
) -> u32 {
    let policy = work.pod.policy(direction);
    let Admitted { policy: by, remote, port, .. } = work.admitted;
    if by == policy || by == Admitted::<A>::OWN {
        refresh(at, tables, work);
    } else {
        aim(work, remote, port);
        if !allowed(tables, work, policy) {
            return dropped(refusal(direction));
        }
        admit(at, tables, work, policy, direction);
    }
    remember(at, tables, work, packets);
    PASS
}

/// A packet of the side that opens: it goes on if its connection was allowed by what is in force, or is now.
#[inline(never)]
fn judged<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &mut Judged<A>, direction: u16) -> u32 {
    let policy = work.pod.policy(direction);
    let Admitted { policy: by, remote, port, direction: opened, .. } = work.admitted;
    let same = opened == direction && remote == work.remote.addr && port.raw() == work.port.port.raw();
    if work.known != 0 && by == policy && same {
        refresh(at, tables, work);
    } else {
        if !allowed(tables, work, policy) {
            return dropped(refusal(direction));
        }
        admit(at, tables, work, policy, direction);
    }
    remember(at, tables, work, direction);
    PASS
}

/// Whom to judge, and by which port; only some protocols have one.
#[inline(always)]
fn aim<A: Ip>(work: &mut Judged<A>, remote: A, port: Be16) {
    let proto = work.parsed.proto;
    work.remote.addr = remote;
    work.port.proto = Be16::new(proto as u16);
    work.port.port = if matches!(proto, TCP | UDP | SCTP) { port } else { Be16::default() };
}

#[inline(never)]
fn allowed<A: Ip, T: PolicyTables<A>>(tables: &T, work: &mut Judged<A>, policy: u32) -> bool {
    if policy == 0 {
        return true;
    }
    work.remote.policy = policy;
    work.port.policy = policy;
    let peers = tables.peers(&work.remote);
    peers != 0 && peers & tables.ports(&work.port) != 0
}

#[inline(always)]
fn admit<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &mut Judged<A>, policy: u32, direction: u16) {
    let (remote, port) = (work.remote.addr, work.port.port);
    work.admitted = Admitted { policy, link: at.link, last: at.now, remote, port, direction };
    tables.admit(&work.key, &work.admitted);
}

/// Keeps a connection alive.
#[inline(always)]
fn refresh<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &mut Judged<A>) {
    if age(at.now, work.admitted.last) >= tables.settings().ticks_per_second {
        work.admitted.last = at.now;
        tables.admit(&work.key, &work.admitted);
    }
}

/// Fragments are told apart by link, too: on their way between two pods of this node they are met twice.
#[inline(always)]
fn fragment_key<A: Ip>(at: &Meeting, src: A, dst: A, parsed: &Parsed<A>) -> FragmentKey<A> {
    FragmentKey { src, dst, id: parsed.id, proto: parsed.proto as u32 | at.link << 8 }
}

/// Lets the later fragments of a datagram follow the first one.
#[inline(always)]
fn remember<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &Judged<A>, direction: u16) {
    if work.parsed.part == Part::First && work.pod.policy(direction) != 0 {
        // As they are met before translation, like those that follow.
        let FlowKey { src, dst, .. } = work.key;
        let (src, dst) = if direction == EGRESS { (src, dst) } else { (dst, src) };
        tables.allow_fragment(&fragment_key(at, src, dst, &work.parsed), at.now);
    }
}

/// A later fragment, or a packet that ends before its transport header does.
#[inline(never)]
fn followed<A: Ip, T: PolicyTables<A>>(at: &Meeting, tables: &T, work: &Judged<A>, direction: u16) -> u32 {
    if work.pod.policy(direction) == 0 {
        return PASS;
    }
    if work.parsed.part == Part::Cut {
        return dropped(refusal(direction));
    }
    let FlowKey { src, dst, .. } = work.parsed.key;
    match tables.allowed_fragment(&fragment_key(at, src, dst, &work.parsed)) {
        Some(first) if age(at.now, first) <= tables.settings().fragment => PASS,
        _ => dropped(Drop::PolicyFragment),
    }
}
