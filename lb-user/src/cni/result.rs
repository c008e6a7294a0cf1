//! Results and errors, as each version of the specification has them.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::call::Call;
use crate::pods::talk::{Failure, Made};
use crate::pods::wire::gateway;

pub fn error(version: &str, failure: &Failure) -> Value {
    let mut value = json!({ "cniVersion": version, "code": failure.code, "msg": failure.msg });
    if !failure.details.is_empty() {
        value["details"] = failure.details.clone().into();
    }
    value
}

pub fn made(version: &str, call: &Call, made: &Made) -> Value {
    let (old, new) = (version.starts_with("0."), version == "1.1.0");
    let sandbox = call.netns.as_deref().unwrap_or("".as_ref()).display().to_string();
    let mut interfaces = json!([
        { "name": made.host, "mac": made.host_mac },
        { "name": call.key.interface, "mac": made.mac, "sandbox": sandbox },
    ]);
    if new {
        interfaces[0]["mtu"] = made.mtu.into();
        interfaces[1]["mtu"] = made.mtu.into();
    }
    let ip = |addr: &IpAddr| {
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let mut ip = json!({
            "address": format!("{addr}/{bits}"), "gateway": gateway(addr.is_ipv4()).to_string(), "interface": 1,
        });
        if old {
            ip["version"] = if addr.is_ipv4() { "4" } else { "6" }.into();
        }
        ip
    };
    let route = |addr: &IpAddr| {
        let any = if addr.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        json!({ "dst": any, "gw": gateway(addr.is_ipv4()).to_string() })
    };
    let mut value = json!({
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": made.addresses.iter().map(ip).collect::<Vec<_>>(),
        "routes": made.addresses.iter().map(route).collect::<Vec<_>>(),
        "dns": {},
    });
    if !made.nameservers.is_empty() {
        value["dns"]["nameservers"] = made.nameservers.iter().map(ToString::to_string).collect::<Vec<_>>().into();
    }
    value
}
