//! From listings to samples.
//!
//! Invariant: a number is that of the listing's column, so that metrics and command line can't differ. A listing that
//! can't be read leaves its metrics out, and `listing_up` says so.

use crate::show::{Row, Table};
use crate::web::listings::Kind;

use super::families as f;
use super::samples::Samples;

/// Adds what a listing says.
pub fn listing(samples: &mut Samples, kind: Kind, table: &Table) {
    let row: fn(&mut Samples, Row<'_>) = match kind {
        Kind::Status => status,
        Kind::Ports => port,
        Kind::Services => service,
        Kind::Backends => backend,
        Kind::Addresses => address,
        Kind::Announce => announce,
        Kind::Routes => route,
        Kind::Nat => nat,
        Kind::Drops => drop,
        Kind::FlowCounts => flows,
        Kind::Pods => {
            samples.level(&f::PODS, [], table.rows() as f64);
            samples.level(&f::POD_ADDRESSES, [], 0.0);
            |samples, row| samples.level(&f::POD_ADDRESSES, [], row.members("addresses") as f64)
        }
        Kind::Dns => dns,
        // Of connections and hosts there may be any number.
        Kind::Flows | Kind::NatTop => return,
    };
    table.for_each(|cells| row(samples, cells));
}

fn up(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn status(samples: &mut Samples, row: Row<'_>) {
    let (name, state, used) = (row.text("name"), row.text("state"), row.number("used"));
    match row.text("what").as_str() {
        "hook" => {
            let detail = row.text("detail");
            let point = detail.split(" (").next().unwrap_or_default();
            samples.level(&f::HOOK, [&name, point, &state], 1.0);
        }
        "sockets" => {
            samples.count(&f::SOCKETS, [], used);
            if state != "off" {
                samples.level(&f::SOCKETS_UP, [], up(state == "on"));
            }
        }
        "cluster" => samples.level(&f::SOURCE, [&name], up(state != "away")),
        "refused" => samples.level(&f::SOURCE_REFUSED, [], 1.0),
        "forwarding" => samples.count(&f::FORWARDED, [], used),
        "health" => {
            samples.number(&f::PROBES_FAILING, [], used);
            samples.number(&f::PROBED, [], row.number("capacity"));
        }
        "health check" => samples.level(&f::HEALTH_CHECK, [&name], up(state == "listening")),
        "table" => {
            samples.number(&f::TABLE_ENTRIES, [&name], used);
            samples.number(&f::TABLE_CAPACITY, [&name], row.number("capacity"));
        }
        _ => {}
    }
}

fn port(samples: &mut Samples, row: Row<'_>) {
    let (name, interface, role) = (row.text("name"), row.text("interface"), row.text("role"));
    samples.level(&f::PORT_UP, [&name, &interface, &role], up(row.text("state") == "up"));
    for (family, column) in [
        (&f::PORT_RECEIVED, "rx_bytes"),
        (&f::PORT_RECEIVED_PACKETS, "rx_packets"),
        (&f::PORT_RECEIVED_ERRORS, "rx_errors"),
        (&f::PORT_RECEIVED_DROPPED, "rx_dropped"),
        (&f::PORT_SENT, "tx_bytes"),
        (&f::PORT_SENT_PACKETS, "tx_packets"),
        (&f::PORT_SENT_ERRORS, "tx_errors"),
        (&f::PORT_SENT_DROPPED, "tx_dropped"),
    ] {
        samples.count(family, [&name, &interface], row.number(column));
    }
}

fn service(samples: &mut Samples, row: Row<'_>) {
    let name = row.text("name");
    if !row.is_none("waiting") {
        samples.level(&f::SERVICE_WAITS, [&name], 1.0);
    }
    // Without an address it is in no table.
    if row.is_none("id") {
        return;
    }
    // One that has just lost its name.
    let name = if name.is_empty() { format!("id {}", row.text("id")) } else { name };
    let (protocol, port) = (row.text("protocol"), row.text("port"));
    samples.number(&f::SERVICE_BACKENDS, [&name, &protocol, &port], row.number("backends"));
    samples.level(&f::SERVICE_FAILING, [&name, &protocol, &port], row.members("failing") as f64);
    samples.count(&f::SERVICE_CONNECTIONS, [&name, &protocol, &port], row.number("connections"));
    for (direction, packets, bytes) in [("request", "packets", "bytes"), ("reply", "reply_packets", "reply_bytes")] {
        samples.count(&f::SERVICE_PACKETS, [&name, &protocol, &port, direction], row.number(packets));
        samples.count(&f::SERVICE_BYTES, [&name, &protocol, &port, direction], row.number(bytes));
    }
}

fn backend(samples: &mut Samples, row: Row<'_>) {
    let (service, address, port) = (row.text("service"), row.text("address"), row.text("port"));
    let backend = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    samples.level(&f::BACKEND_SHARE, [&service, &backend], row.ratio("share").unwrap_or_default());
    samples.level(&f::BACKEND_DRAINS, [&service, &backend], up(row.text("state") == "draining"));
    samples.count(&f::BACKEND_CONNECTIONS, [&service, &backend], row.number("connections"));
    for (direction, packets, bytes) in [("request", "packets", "bytes"), ("reply", "reply_packets", "reply_bytes")] {
        samples.count(&f::BACKEND_PACKETS, [&service, &backend, direction], row.number(packets));
        samples.count(&f::BACKEND_BYTES, [&service, &backend, direction], row.number(bytes));
    }
}

fn address(samples: &mut Samples, row: Row<'_>) {
    if row.text("what") == "pool" {
        let name = row.text("name");
        samples.number(&f::POOL_USED, [&name], row.number("used"));
        samples.number(&f::POOL_FREE, [&name], row.number("free"));
    }
}

fn announce(samples: &mut Samples, row: Row<'_>) {
    match row.text("what").as_str() {
        "node" => samples.level(&f::NODE_UP, [&row.text("name")], up(row.text("state") == "alive")),
        _ => samples.level(&f::ANNOUNCED, [&row.text("state")], 1.0),
    }
}

fn route(samples: &mut Samples, row: Row<'_>) {
    samples.level(&f::ROUTES, [&row.text("origin"), &row.text("state")], 1.0);
}

fn nat(samples: &mut Samples, row: Row<'_>) {
    let (name, state, count) = (row.text("name"), row.text("state"), row.number("count"));
    match row.text("what").as_str() {
        "ports" => {
            samples.number(&f::NAT_PORTS, [&name, &state], count);
            samples.number(&f::NAT_CAPACITY, [&name, &state], row.number("capacity"));
        }
        "hosts" => samples.number(&f::NAT_HOSTS, [&state], count),
        "quota" => samples.number(&f::NAT_QUOTA, [], row.number("capacity")),
        "ended" => samples.count(&f::NAT_ENDED, [&name], count),
        _ => {}
    }
}

fn drop(samples: &mut Samples, row: Row<'_>) {
    let family = if row.text("kind") == "drop" { &f::DROPPED } else { &f::NOTED };
    samples.count(family, [&row.text("reason")], row.number("count"));
}

fn flows(samples: &mut Samples, row: Row<'_>) {
    let [kind, protocol, set, state] = ["kind", "protocol", "set", "state"].map(|column| row.text(column));
    samples.number(&f::FLOWS, [&kind, &protocol, &set, &state], row.number("count"));
}

fn dns(samples: &mut Samples, row: Row<'_>) {
    let family = match row.text("kind").as_str() {
        "type" => &f::DNS_QUERIES,
        "transport" => &f::DNS_TRANSPORT,
        "code" => &f::DNS_RESPONSES,
        "zone" => &f::DNS_ZONES,
        _ => &f::DNS_EVENTS,
    };
    samples.count(family, [&row.text("name")], row.number("count"));
}
