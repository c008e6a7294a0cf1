//! What the agent tells the data plane once, not per object.

plain! {
    /// Times are in ticks: the kernel's jiffies, whose rate the agent measures at load.
    pub struct Settings {
        pub ticks_per_second: u32,
        /// TCP established, idle (RFC 5382 REQ-5: at least 2 h 4 min).
        pub tcp_established: u32,
        /// TCP half-open or half-closed (RFC 5382 REQ-5: at least 4 min).
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
        pub pad: u16,
        /// Log all packets of flows with this port on either side; 0 = none.
        pub trace_port: u32,
    } size = 52
}

impl Settings {
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
            pad: 0,
            trace_port: 0,
        }
    }
}
