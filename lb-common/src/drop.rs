//! Why a packet was dropped, and what else is worth counting.
//!
//! Invariant: these lists are the only source of counter indexes, metric labels, command-line text
//! and documentation. "Not ours" is a pass, never a drop.

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        #[must_use]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The name in metrics, packet cases and listings.
            pub const fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)+ }
            }

            /// What it means, for people.
            pub const fn text(self) -> &'static str {
                match self { $($name::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

reasons! {
    /// Why a packet was not delivered.
    Drop {
        /// the service has no backend; refused with ICMP port unreachable
        NoBackend = "no_backend",
        /// the service has backends, but none on this node, and its traffic policy is Local
        NoLocalBackend = "no_local_backend",
        /// to a load balancer from outside its source ranges
        SourceNotAllowed = "source_not_allowed",
        /// a service address, but no service has this port; refused with ICMP port unreachable
        NoService = "no_service",
        /// an address of the service range that no service has
        UnusedServiceAddress = "unused_service_address",
        /// a packet for us whose headers end before they should
        Truncated = "truncated",
        /// a fragment whose first fragment has not been seen
        FragmentOutOfOrder = "fragment_out_of_order",
        /// all source ports tried for a translated connection are in use
        SnatPortsExhausted = "snat_ports_exhausted",
        /// no port is free for a host on the inside
        NatPortsExhausted = "nat_ports_exhausted",
        /// a host on the inside has all the ports that it may have
        NatQuota = "nat_quota",
        /// no room to count the ports of another host on the inside
        NatHostsFull = "nat_hosts_full",
        /// from the inside to the outside, but of a kind that can't be translated, such as a fragment without its first one
        NatUntranslatable = "nat_untranslatable",
        /// another host on the inside has just this connection, of a protocol whose ports can't change
        NatTupleTaken = "nat_tuple_taken",
        /// to a port that a host on the inside has, from somebody whom it has not sent to
        NatFiltered = "nat_filtered",
        /// of a translated connection whose uplink is not the way out any more; its next packet opens a new one
        NatMoved = "nat_moved",
        /// the service's slot names a backend that is not there
        StaleSlot = "stale_slot",
        /// no room in the flow table for a new connection: both its places are full of answered ones; or, for part of a second, the table is being handed to another version
        FlowTableFull = "flow_table_full",
        /// a TCP RST of no connection, whose sender's translated port is not known any more
        StrayReset = "stray_reset",
        /// to a destination that a blackhole route leads to
        Blackhole = "blackhole",
        /// our ICMP errors exceed their rate
        IcmpRateLimited = "icmp_rate_limited",
        /// an ICMP error about a connection of ours quotes too little of the packet
        IcmpQuoteTooShort = "icmp_quote_too_short",
        /// nobody answers for names on this node until its agent runs again: who is not told so goes on waiting
        NoAgentForNames = "no_agent_for_names",
        /// to the node of a backend, as it came or in the overlay, but larger than the way there takes; its sender is told by ICMP, where it may be
        TooLarge = "too_large",
        /// to the node of a backend, as it came, but that node is not to be found any more
        DirectUnsent = "direct_unsent",
        /// another node sent it on to an endpoint of this one, but here it belongs to one elsewhere: nodes know different endpoints for a moment
        DirectElsewhere = "direct_elsewhere",
        /// in the overlay, from an address that is no node's
        OverlayStranger = "overlay_stranger",
        /// in the overlay, but no IP packet, or of another network identifier
        OverlayMalformed = "overlay_malformed",
        /// to a pod of a node that the way to isn't known, or to whose neighbour
        OverlayUnresolved = "overlay_unresolved",
        /// the kernel refused to make or take away the room for the overlay's headers
        OverlayRefused = "overlay_refused",
        /// the packet could not be resized for an ICMP answer
        ResizeFailed = "resize_failed",
        /// the kernel refused a checksum or header write
        RewriteFailed = "rewrite_failed",
        /// a socket of this node asked a service that has no backend; its call was refused, with ECONNREFUSED
        SocketRefused = "socket_refused",
        /// to a pod, and no NetworkPolicy that selects it allows it
        PolicyIngress = "policy_ingress",
        /// from a pod, and no NetworkPolicy that selects it allows it
        PolicyEgress = "policy_egress",
        /// to or from a pod that a NetworkPolicy selects, a fragment whose first fragment has not been allowed
        PolicyFragment = "policy_fragment",
        /// from a pod, with a source address that is not the pod's
        PolicySource = "policy_source",
        /// to or from a pod of which it isn't known yet which NetworkPolicies select it
        PolicyUnknown = "policy_unknown",
    }
}

reasons! {
    /// What happened to packets that were delivered, where somebody will want to know.
    Note {
        /// no room in the flow table for the other direction of a connection that is answered now: it can still be pushed out
        Unprotected = "unprotected",
        /// a TCP packet of an unknown connection was taken over in mid-stream
        MidStream = "mid_stream",
        /// the next hop was not resolved: the kernel forwarded the packet
        NextHopUnresolved = "next_hop_unresolved",
        /// the packet is larger than its next hop's MTU: the kernel got it, or its sender was told
        TooBig = "too_big",
        /// an echo request to a service address was answered
        EchoAnswered = "echo_answered",
        /// whoever asked for the link-layer address of a load balancer was told this node's
        AddressAnnounced = "address_announced",
        /// an ICMP error was translated
        IcmpTranslated = "icmp_translated",
        /// a fragment followed its first fragment
        FragmentFollowed = "fragment_followed",
        /// a connection ended by RST
        Reset = "reset",
        /// a host on the inside got a port
        NatMapped = "nat_mapped",
        /// a port came back at the end of its connection
        NatUnmapped = "nat_unmapped",
        /// ports past their timeout were taken back for another host
        NatReclaimed = "nat_reclaimed",
        /// A free port was left to a socket of this node that waits at it.
        NatLeftToSocket = "nat_left_to_socket",
        /// a mapping's beginning or end was not logged, since nobody read the log fast enough
        NatLogLost = "nat_log_lost",
        /// a packet that `stellwerk monitor` had no room for
        MonitorLost = "monitor_lost",
        /// a socket of this node got a service's backend: at its connect, or with its first datagram to the service
        SocketTranslated = "socket_translated",
        /// a socket of this node asked a service, and its packets are left to say what becomes of them: there are source ranges, or no backend that it may have
        SocketLeft = "socket_left",
        /// no room to remember a socket's service: its packets are translated instead
        SocketTableFull = "socket_table_full",
    }
}
