//! The configuration's ports: what their drivers can, and who else hangs on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};

use super::Finding;
use crate::apply::{Paths, Point, State as Noted, attached};
use crate::config::Config;
use crate::intent::{Link, Port};
use crate::plan::by_xdp;
use crate::source::netlink::Mirror;
use crate::source::netlink::message::Connection;
use crate::source::netlink::write::filters;

/// Drivers that run XDP programs themselves, for kernels that don't say (before 6.3).
const NATIVE: [&str; 22] = [
    "atlantic",
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "fsl_dpa",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "nfp",
    "stmmac",
    "veth",
    "virtio_net",
];
/// What fits into a page with the room that XDP wants; larger ones ask a driver for programs of several buffers.
const XDP_MTU: u32 = 3498;
/// RFC 8200: below it there is no IPv6.
const V6_MTU: u32 = 1280;

pub fn examine(paths: &Paths, config: &Config, mirror: &mut Mirror) -> Result<Vec<Finding>> {
    let native = mirror.native_xdp()?;
    let ours = ours(paths)?;
    let mut all = Vec::new();
    for port in &config.ports {
        // One that isn't there is the configuration's error.
        let Some(link) = mirror.network().links.iter().find(|link| link.name == port.interface).cloned() else {
            continue;
        };
        let driver = driver(&link);
        let runs = native.as_ref().map_or_else(|| NATIVE.contains(&driver.as_str()), |all| all.contains(&link.index));
        all.push(carrier(port, &link));
        all.push(xdp(port, &link, &driver, runs));
        all.push(mtu(port, &link, runs));
        let filter = mirror.network().forwarding.get(&link.index).map_or(0, |forwarding| forwarding.rp_filter);
        all.push(reverse_path(port, filter));
        let mine = ours.contains(&(link.index, Point::Xdp));
        let mode = mirror.xdp_modes().get(&link.index).copied().filter(|_| !mine);
        all.extend(foreign_xdp(port, &link, mode));
        all.extend(foreign_tc(port, &link)?);
    }
    Ok(all)
}

/// Where programs of this pin path hang.
fn ours(paths: &Paths) -> Result<BTreeSet<(u32, Point)>> {
    if !paths.links().exists() {
        return Ok(BTreeSet::new());
    }
    Ok(attached(paths, &Noted::read(paths)?)?.into_keys().collect())
}

/// A virtual link's kind, or the driver of hardware, where /sys is that of this network namespace.
fn driver(link: &Link) -> String {
    let device = Path::new("/sys/class/net").join(&link.name);
    let same = fs::read_to_string(device.join("ifindex")).is_ok_and(|index| index.trim() == link.index.to_string());
    let name = || fs::read_link(device.join("device/driver")).ok().filter(|_| same);
    let hardware = || name().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    link.kind.clone().or_else(hardware).unwrap_or_else(|| "unknown".into())
}

fn carrier(port: &Port, link: &Link) -> Finding {
    match link.up {
        true => Finding::ok("port", &*port.name, format!("{} is up", link.name)),
        false => {
            let found = format!("{} is down or has no carrier", link.name);
            Finding::warn("port", &*port.name, found, "ip link set dev INTERFACE up, and look at the cable")
        }
    }
}

fn xdp(port: &Port, link: &Link, driver: &str, native: bool) -> Finding {
    let how = |text: &str| format!("driver {driver}: {text}");
    match (by_xdp(port.hook, link), native) {
        (false, _) => Finding::ok("xdp", &*port.name, how("TC serves this port")),
        (true, true) => Finding::ok("xdp", &*port.name, how("native")),
        (true, false) => {
            let advice = "say `hook: tc` for this port, which is faster than generic XDP";
            Finding::warn("xdp", &*port.name, how("takes no native XDP, generic XDP serves it"), advice)
        }
    }
}

fn mtu(port: &Port, link: &Link, native: bool) -> Finding {
    let found = link.mtu.to_string();
    if link.mtu < V6_MTU {
        let advice = "set 1280 or more, or do without IPv6 on this port";
        return Finding::warn("mtu", &*port.name, format!("{found}: too small for IPv6"), advice);
    }
    if native && link.mtu > XDP_MTU && by_xdp(port.hook, link) {
        let advice = "set 3498 or less, or say `hook: tc` for this port";
        return Finding::warn("mtu", &*port.name, format!("{found}: drivers refuse native XDP for so much"), advice);
    }
    Finding::ok("mtu", &*port.name, found)
}

fn reverse_path(port: &Port, filter: u32) -> Finding {
    match filter {
        1 => {
            let found = "strict; `run` makes it loose, and `unload` strict again";
            let advice = "nothing, unless another program makes it strict again (see /etc/sysctl.d)";
            Finding::warn("rp_filter", &*port.name, found, advice)
        }
        2 => Finding::ok("rp_filter", &*port.name, "loose"),
        _ => Finding::ok("rp_filter", &*port.name, "off"),
    }
}

fn foreign_xdp(port: &Port, link: &Link, mode: Option<u8>) -> Option<Finding> {
    let mode = if mode? == 2 { "generic" } else { "native" };
    let found = format!("{} carries another's {mode} XDP program, which sees packets first", link.name);
    let advice = format!("take it off (ip link set dev {} xdp off, or stop its owner), or say `hook: tc`", link.name);
    Some(match by_xdp(port.hook, link) {
        true => Finding::fail("programs", &*port.name, found, &advice),
        false => Finding::warn("programs", &*port.name, found, &advice),
    })
}

/// Programs of TC, as filters or links, that aren't stellwerk's by name.
fn foreign_tc(port: &Port, link: &Link) -> Result<Vec<Finding>> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let mut names = BTreeSet::new();
    for (egress, direction) in [(false, TcAttachType::Ingress), (true, TcAttachType::Egress)] {
        // A link without a qdisc has no filters, a kernel before 6.6 no links.
        let filters = filters(&mut connection, link.index, egress).unwrap_or_default();
        let ids: BTreeSet<u32> = filters.iter().map(|filter| filter.program).collect();
        let linked = SchedClassifier::query_tcx(&link.name, direction).map(|(_, all)| all).unwrap_or_default();
        let filtered = loaded_programs().flatten().filter(|program| !ids.is_empty() && ids.contains(&program.id()));
        names.extend(linked.into_iter().chain(filtered).map(|program| name(&program)));
    }
    names.retain(|name| !name.starts_with("stellwerk"));
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = names.into_iter().collect();
    let found = format!("{} carries TC programs of others: {}", link.name, names.join(", "));
    let advice = "see that they let packets pass: what they take, stellwerk doesn't see";
    Ok(vec![Finding::warn("programs", &*port.name, found, advice)])
}

fn name(program: &ProgramInfo) -> String {
    let name = program.name_as_str().unwrap_or_default();
    if name.is_empty() { format!("program {}", program.id()) } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::intent::HookChoice;

    fn link(kind: Option<&str>, mtu: u32) -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu,
            up: true,
            master: None,
            kind: kind.map(Into::into),
            master_kind: None,
            xdp_transmit: false,
            queued: false,
        }
    }

    fn port(hook: HookChoice) -> Port {
        Port {
            name: "Port2".into(),
            interface: "eth0".into(),
            gateways: Vec::new(),
            nat_addresses: Vec::new(),
            compute: false,
            hook,
            reply_via: Default::default(),
        }
    }

    #[test]
    fn drivers() {
        for (hook, kind, native, want) in [
            (HookChoice::Auto, None, true, State::Ok),
            (HookChoice::Auto, None, false, State::Warn),
            (HookChoice::Auto, Some("veth"), false, State::Ok),
            (HookChoice::Xdp, Some("bridge"), false, State::Warn),
            (HookChoice::Tc, None, false, State::Ok),
        ] {
            assert_eq!(xdp(&port(hook), &link(kind, 1500), "d", native).state, want, "{hook:?} {kind:?} {native}");
        }
    }

    #[test]
    fn sizes() {
        for (size, native, want) in
            [(1500, true, State::Ok), (1279, true, State::Warn), (9000, true, State::Warn), (9000, false, State::Ok)]
        {
            assert_eq!(mtu(&port(HookChoice::Xdp), &link(None, size), native).state, want, "{size} {native}");
        }
        assert_eq!(mtu(&port(HookChoice::Tc), &link(None, 9000), true).state, State::Ok);
    }

    #[test]
    fn foreign_programs_fail_where_ours_would_hang() {
        let at = |hook, mode| foreign_xdp(&port(hook), &link(None, 1500), mode).map(|finding| finding.state);
        assert_eq!(at(HookChoice::Xdp, Some(1)), Some(State::Fail));
        assert_eq!(at(HookChoice::Tc, Some(2)), Some(State::Warn));
        assert_eq!(at(HookChoice::Xdp, None), None);
    }
}
