//! What packets of pods are judged by, on [`Fake`].

use lb_common::path::network_policy::{Pods, PolicyTables};
use lb_common::table::{Admitted, FlowKey, FragmentKey, Peer, PeerPort, Pod, Prefix};

use super::{Fake, InFake, covers};

impl Pods for Fake {
    fn pod(&self, link: u32) -> Option<Pod> {
        self.pods.get(&link).copied()
    }

    fn ports(&self, port: &PeerPort) -> u64 {
        let bits = |proto: u16, port: u16| u32::from(proto) << 16 | u32::from(port);
        let asked = bits(port.proto.get(), port.port.get());
        let holds = |len: u32, prefix: u32| len == 0 || (asked ^ prefix) >> (u32::BITS - len) == 0;
        let all = self.peer_ports.iter().rev().filter(|(prefix, _)| prefix.policy == port.policy);
        let mut all = all.filter(|(p, _)| holds(p.len - u32::BITS, bits(p.proto.get(), p.port.get())));
        // Ordered by length first, so the last match is the longest.
        all.next().map_or(0, |(_, bits)| *bits)
    }
}

impl<A: InFake> PolicyTables<A> for Fake {
    fn peers(&self, peer: &Peer<A>) -> u64 {
        let all = A::family(self).allowed.iter().rev().filter(|(prefix, _)| prefix.policy == peer.policy);
        let mut all = all.filter(|(p, _)| covers(&Prefix { len: p.len - u32::BITS, addr: p.addr }, peer.addr));
        all.next().map_or(0, |(_, bits)| *bits)
    }

    fn admitted(&self, key: &FlowKey<A>) -> Option<Admitted<A>> {
        A::state(self).borrow_mut().admitted.get(key)
    }

    fn admit(&self, key: &FlowKey<A>, admitted: &Admitted<A>) {
        A::state(self).borrow_mut().admitted.put(*key, *admitted);
    }

    fn allowed_fragment(&self, key: &FragmentKey<A>) -> Option<u32> {
        A::state(self).borrow_mut().allowed_fragments.get(key)
    }

    fn allow_fragment(&self, key: &FragmentKey<A>, now: u32) {
        A::state(self).borrow_mut().allowed_fragments.put(*key, now);
    }
}
