//! What the agent tells the data plane once, not per object.

use crate::tcp;
use crate::wire::Be16;
use crate::wire::header::{SCTP, TCP};

/// A connection's packets touch both its entries when the tick passes a multiple of this, else the one
/// of their own direction: 4 to 41 s.
pub const BOTH: u32 = 4_096;

/// Ticks since `last`. Another CPU may have written a later one: that is now.
#[inline(always)]
pub fn age(now: u32, last: u32) -> u32 {
    let age = now.wrapping_sub(last);
    if age > i32::MAX as u32 { 0 } else { age }
}

plain! {
    /// Times are in ticks: the kernel's jiffies, whose rate the agent measures at load.
    pub struct Settings {
        pub ticks_per_second: u32,
        /// TCP established, idle (RFC 5382 REQ-5: at least 2 h 4 min).
        pub tcp_established: u32,
        /// TCP half-open (RFC 5382 REQ-5: at least 4 min).
        pub tcp_transitory: u32,
        /// TCP after FIN both ways.
        pub tcp_closed: u32,
        pub udp_unanswered: u32,
        pub udp_answered: u32,
        pub sctp_established: u32,
        pub sctp_transitory: u32,
        /// How long a first fragment is remembered (RFC 8200 §4.5: 60 s; Linux: 30 s).
        pub fragment: u32,
        /// ICMP errors of ours a second and CPU (RFC 4443 §2.4 (f)); more are dropped, counted.
        pub icmp_rate: u32,
        /// First and last source port of connections whose source is translated.
        pub snat_first: u16,
        pub snat_last: u16,
        /// Changes when any route changed: flows then look up their next hop again.
        pub epoch: u16,
        /// How inside and outside are translated: of the bits of [`Settings::NAT`] and the following.
        pub nat: u16,
        /// Log all packets of flows with this port on either side; 0 = none.
        pub trace_port: u32,
        /// No answered connection times out before: [`Settings::calmed`].
        pub calm: u32,
        /// Ports that one host on the inside may have at once, of all protocols together.
        pub nat_quota: u32,
        /// VXLAN's network identifier in the overlay between nodes, and
        pub vni: u32,
        /// its UDP port; 0: there is no overlay.
        pub vxlan_port: Be16,
        pub pad: u16,
        /// The tick until which connections that are not in the flow table stay outside, since it is being handed to
        /// another version's programs; 0: it isn't.
        pub held_until: u32,
    } size = 72
}

impl Settings {
    /// There is an inside whose packets are translated.
    pub const NAT: u16 = 1;
    /// Who may send to a mapping (RFC 4787 §5): anybody; else
    pub const FILTER_NONE: u16 = 2;
    /// only who was sent to from it, by address and port; else by address.
    pub const FILTER_PORT: u16 = 4;
    /// Mappings are told by [`crate::tables::Tables::mapping_event`].
    pub const NAT_LOG: u16 = 8;

    /// No connection is kept outside for longer, however old the order.
    pub const HELD: u32 = 1 << 13;

    /// Whether connections that are not in the flow table stay outside.
    #[inline(always)]
    pub fn held(&self, now: u32) -> bool {
        self.held_until != 0 && self.held_until.wrapping_sub(now).wrapping_sub(1) < Settings::HELD
    }

    /// Whether there is an overlay between nodes.
    #[inline(always)]
    pub fn overlay(&self) -> bool {
        self.vxlan_port.raw() != 0
    }

    #[inline(always)]
    pub fn nat(&self, bits: u16) -> bool {
        self.nat & bits != 0
    }

    /// Ports and ICMP ids that translated sources get: the first, and how many (an even number, so that
    /// parity can be kept).
    #[inline(always)]
    pub fn ports(&self) -> (u32, u32) {
        let (first, last) = (self.snat_first as u32, self.snat_last as u32);
        (first, (last.wrapping_sub(first).wrapping_add(1) & 0xfffe).max(2))
    }

    /// Whether translated sources may have the port.
    #[inline(always)]
    pub fn translates_to(&self, port: Be16) -> bool {
        let (first, count) = self.ports();
        (port.get() as u32).wrapping_sub(first) < count
    }

    /// How long a connection may be silent (RFC 5382 REQ-5 for TCP, where half-closed is established;
    /// RFC 4787 REQ-5 for UDP).
    #[inline(always)]
    pub fn idle_limit(&self, proto: u8, state: u8) -> u32 {
        let answered = tcp::protected(state) || state == tcp::WAITING;
        match proto {
            TCP if state == tcp::CLOSED => self.tcp_closed,
            TCP if answered => self.tcp_established,
            TCP => self.tcp_transitory,
            SCTP if answered => self.sctp_established,
            SCTP => self.sctp_transitory,
            _ if answered => self.udp_answered,
            _ => self.udp_unanswered,
        }
    }

    /// Whether a connection that was last heard of at `last` is past its timeout.
    #[inline(always)]
    pub fn is_over(&self, proto: u8, state: u8, last: u32, now: u32) -> bool {
        age(now, last) > self.idle_limit(proto, state)
    }

    /// The defaults, for a clock of `ticks_per_second`.
    pub const fn with_clock(ticks_per_second: u32) -> Self {
        let t = ticks_per_second;
        Settings {
            ticks_per_second: t,
            tcp_established: 7_440 * t,
            tcp_transitory: 240 * t,
            tcp_closed: 10 * t,
            udp_unanswered: 30 * t,
            udp_answered: 180 * t,
            sctp_established: 7_440 * t,
            sctp_transitory: 240 * t,
            fragment: 30 * t,
            icmp_rate: 1_000,
            snat_first: 1_024,
            snat_last: 29_999,
            epoch: 0,
            nat: 0,
            trace_port: 0,
            calm: 0,
            nat_quota: 8_192,
            vni: 0,
            vxlan_port: Be16::new(0),
            pad: 0,
            held_until: 0,
        }
        .calmed()
    }

    /// With [`Settings::calm`] as the other limits make it.
    pub const fn calmed(mut self) -> Self {
        let limits = [self.tcp_established, self.tcp_transitory, self.udp_answered, self.sctp_established];
        self.calm = BOTH;
        let mut i = 0;
        while i < limits.len() {
            if limits[i] < self.calm {
                self.calm = limits[i];
            }
            i += 1;
        }
        self
    }

    /// Whether nobody can have kept a connection alive whose one entry was last touched at `last`, without
    /// asking the other entry: a packet of the other direction touches both every [`BOTH`] ticks.
    #[inline(always)]
    pub fn is_long_over(&self, proto: u8, state: u8, last: u32, now: u32) -> bool {
        age(now, last) > self.idle_limit(proto, state).saturating_add(2 * BOTH)
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn connections_are_held_until_a_tick_and_not_for_ever() {
        let held = |until, now| Settings { held_until: until, ..Settings::default() }.held(now);
        assert!(held(500, 400) && held(500, 499) && held(50, 50u32.wrapping_sub(100)));
        assert!(!held(500, 500) && !held(500, 501) && !held(50, 1 << 31));
        // An order of an age ago, and none, also where ticks begin anew.
        assert!(!held(500, 500u32.wrapping_sub(Settings::HELD + 1)) && !held(0, u32::MAX) && !held(0, 0));
    }
}
