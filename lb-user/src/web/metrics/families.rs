//! Every metric that there is: the one registry of names, kinds, units, labels and meanings.
//!
//! Invariant: what isn't here isn't told; docs/metrics.md is made of it. Names follow Prometheus' conventions: base units,
//! `_total` behind what only rises.

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric, in one or many series.
#[derive(Debug)]
pub struct Family {
    /// Without the unit and `_total`.
    pub base: &'static str,
    pub kind: Kind,
    pub unit: Option<&'static str>,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Family {
    /// As samples have it; those of a histogram have an ending more.
    pub fn name(&self) -> String {
        let mut name = self.base.to_owned();
        if let Some(unit) = self.unit {
            name = name + "_" + unit;
        }
        if self.kind == Kind::Counter {
            name += "_total";
        }
        name
    }
}

macro_rules! families {
    ($($name:ident: $kind:ident $base:literal $($unit:ident)? [$($label:ident),*] $help:literal;)+) => {
        $(pub static $name: Family = Family {
            base: concat!("stellwerk_", $base),
            kind: Kind::$kind,
            unit: families!(unit $($unit)?),
            labels: &[$(stringify!($label)),*],
            help: $help,
        };)+
        /// All of them, in the order in which they are told.
        pub static ALL: &[&Family] = &[$(&$name),+];
    };
    (unit) => { None };
    (unit $unit:ident) => { Some(stringify!($unit)) };
}

families! {
    BUILD: Gauge "build_info" [version] "1; the version of the agent";
    STARTED: Gauge "agent_start_time" seconds [] "When the agent began, in seconds since 1970";
    REVISION: Gauge "agent_revision" [] "The revision of the wish that is in force";
    LAG: Gauge "agent_revision_lag" [] "Revisions that are wished, but not in force";
    LAG_TIME: Gauge "agent_revision_lag" seconds [] "How long what is in force has been behind what is wished";
    APPLY: Histogram "apply_duration" seconds [] "From a change to the kernel's tables, of those that were taken";
    OPERATIONS: Counter "apply_operations" [] "Entries of the kernel's tables written or removed";
    FAILED: Counter "apply_failures" [] "Plans and changes of tables that failed, and were tried again or taken back";
    REFUSED: Counter "changes_refused" [] "Changes of files or of the cluster that were refused";
    REPAIRED: Counter "repaired_entries" [] "Entries of the kernel's tables that others broke, set right";
    ROUTES_REPAIRED: Counter "repaired_routes" [] "Changes by others to operators' routes, set right";
    OVERLAY_ERRORS: Counter "overlay_icmp_errors" [kind] "ICMP errors about packets in the overlay to other nodes: too_large for the way, which is then taken to be narrower, or unreachable";
    OVERRUNS: Counter "network_overruns" [] "Times that the kernel's network changed faster than it could be followed, and was read anew";
    SOURCE: Gauge "source_up" [source] "1 where services come from can be read, 0 while an API is away";
    SOURCE_REFUSED: Gauge "source_refused" [] "Places in files, or objects, that are not in force as they are now";

    HOOK: Gauge "hook_attached" [interface, point, mode] "1; a program that hangs on an interface";
    PORT_UP: Gauge "port_up" [port, interface, role] "Whether the interface is up";
    PORT_RECEIVED: Counter "port_receive" bytes [port, interface] "Bytes that came in by an interface";
    PORT_RECEIVED_PACKETS: Counter "port_receive_packets" [port, interface] "Packets that came in by an interface";
    PORT_RECEIVED_ERRORS: Counter "port_receive_errors" [port, interface] "Packets that came in wrong";
    PORT_RECEIVED_DROPPED: Counter "port_receive_dropped" [port, interface] "Packets that the kernel dropped on their way in";
    PORT_SENT: Counter "port_transmit" bytes [port, interface] "Bytes that left by an interface";
    PORT_SENT_PACKETS: Counter "port_transmit_packets" [port, interface] "Packets that left by an interface";
    PORT_SENT_ERRORS: Counter "port_transmit_errors" [port, interface] "Packets that could not be sent";
    PORT_SENT_DROPPED: Counter "port_transmit_dropped" [port, interface] "Packets that the kernel dropped on their way out";

    DROPPED: Counter "dropped_packets" [reason] "Packets that were not delivered, by reason";
    NOTED: Counter "noted_packets" [reason] "Packets that were delivered, with something worth knowing";
    FORWARDED: Counter "forwarded_packets" [] "Packets forwarded ahead of the kernel that are of no connection here";
    SOCKETS: Counter "socket_calls_translated" [] "Calls of this node's sockets that got a service's backend";
    SOCKETS_UP: Gauge "socket_balancing_up" [] "1 where services are balanced at sockets, 0 where it failed; absent where it is off";

    TABLE_ENTRIES: Gauge "table_entries" [table] "Entries in a table of the kernel";
    TABLE_CAPACITY: Gauge "table_capacity" [table] "Entries that a table of the kernel has room for";
    FLOWS: Gauge "flows" [kind, protocol, set, state] "Connections: of services, or translated between inside and outside";

    SERVICE_BACKENDS: Gauge "service_backends" [service, protocol, port] "Backends that take new connections";
    SERVICE_FAILING: Gauge "service_failing_endpoints" [service, protocol, port] "Endpoints that fail their probes";
    SERVICE_WAITS: Gauge "service_waits" [service] "1; the service goes without an address that it asks for";
    SERVICE_CONNECTIONS: Counter "service_connections" [service, protocol, port] "New connections";
    SERVICE_PACKETS: Counter "service_packets" [service, protocol, port, direction] "Packets to backends (request) and from them (reply)";
    SERVICE_BYTES: Counter "service" bytes [service, protocol, port, direction] "Bytes to backends (request) and from them (reply)";

    BACKEND_SHARE: Gauge "backend_share" ratio [service, backend] "Share of the service's new connections";
    BACKEND_DRAINS: Gauge "backend_draining" [service, backend] "1: it keeps its connections and gets no new one";
    BACKEND_CONNECTIONS: Counter "backend_connections" [service, backend] "New connections";
    BACKEND_PACKETS: Counter "backend_packets" [service, backend, direction] "Packets to the backend (request) and from it (reply)";
    BACKEND_BYTES: Counter "backend" bytes [service, backend, direction] "Bytes to the backend (request) and from it (reply)";
    PROBED: Gauge "probed_endpoints" [] "Endpoints that are probed";
    PROBES_FAILING: Gauge "failing_endpoints" [] "Endpoints that fail their probes";
    HEALTH_CHECK: Gauge "health_check_port_up" [service] "Whether the service's health check node port is listened at";

    POOL_USED: Gauge "pool_addresses_used" [pool] "Addresses of a pool that somebody has";
    POOL_FREE: Gauge "pool_addresses_free" [pool] "Addresses of a pool that can be given";
    ANNOUNCED: Gauge "announced_addresses" [state] "Load balancers' addresses, by where they are announced: here, elsewhere, nowhere";
    NODE_UP: Gauge "node_up" [node] "Whether another node is heard";

    NAT_PORTS: Gauge "nat_ports" [address, protocol] "Ports outside that are in use";
    NAT_CAPACITY: Gauge "nat_ports_capacity" [address, protocol] "Ports outside that there are";
    NAT_HOSTS: Gauge "nat_hosts" [family] "Hosts inside that have a port outside";
    NAT_QUOTA: Gauge "nat_quota_ports" [] "Ports outside that one host inside may have";
    NAT_ENDED: Counter "nat_ended_connections" [reason] "Translated connections ended since what they had outside is gone";

    ROUTES: Gauge "routes" [origin, state] "Operators' routes";
    PODS: Gauge "pods" [] "Pods' interfaces that have addresses from here";
    POD_ADDRESSES: Gauge "pod_addresses" [] "Addresses that pods have from here";

    DNS_QUERIES: Counter "dns_queries" [type] "Queries, by the type of records";
    DNS_TRANSPORT: Counter "dns_queries_by_transport" [transport] "Queries, by how they came";
    DNS_RESPONSES: Counter "dns_responses" [code] "Answers, by their code";
    DNS_ZONES: Counter "dns_answers" [zone] "Answers, by whose knowledge they are";
    DNS_EVENTS: Counter "dns_events" [event] "What became of queries on their way; docs/json.md, `dns status`, has the words";

    LISTING: Gauge "listing_up" [listing] "Whether what these metrics are made of could be read, by the listing";
    REQUESTS: Counter "http_requests" [code] "Requests that were answered here before this one, by status";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = BTreeSet::new();
        for family in ALL {
            let name = family.name();
            assert!(seen.insert(name.clone()), "{name} is there twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
            let unit = |unit| matches!(unit, "bytes" | "seconds" | "ratio");
            assert!(family.unit.is_none_or(unit), "{name} is in no base unit");
            assert!(!family.base.ends_with("_total") && !family.base.contains("__"), "{name}");
            assert!(!family.help.is_empty() && !family.help.ends_with('.'), "{name}: {}", family.help);
            let labels: BTreeSet<_> = family.labels.iter().collect();
            assert_eq!(labels.len(), family.labels.len(), "{name}");
            assert!(!family.labels.contains(&"le"), "{name}");
        }
    }
}
