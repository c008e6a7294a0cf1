//! Host ports that a runtime asks for: `runtimeConfig.portMappings`.

use std::net::IpAddr;

use serde_json::Value;

use super::call::config;
use crate::intent::Protocol;
use crate::ipam::HostPort;
use crate::pods::talk::Failure;

const MAPPING: &str = "{ \"hostPort\": 8080, \"containerPort\": 80, \"protocol\": \"tcp\" }";

pub fn read(list: &Value) -> Result<Vec<HostPort>, Failure> {
    let path = "runtimeConfig.portMappings";
    let list = list.as_array().ok_or_else(|| config(format!("{path}: {list}; expected a list such as [{MAPPING}]")))?;
    let mut all: Vec<HostPort> = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let port = mapping(&path, value)?;
        match all.iter().find(|other| other.meets(&port)) {
            None => all.push(port),
            // Said twice.
            Some(other) if *other == port => {}
            Some(other) => {
                let right = format!("leads to {} already; expected a host port of its own", other.container_port);
                return Err(config(format!("{path}: {port} {right}")));
            }
        }
    }
    Ok(all)
}

fn mapping(path: &str, value: &Value) -> Result<HostPort, Failure> {
    if !value.is_object() {
        return Err(config(format!("{path}: {value}; expected {MAPPING}")));
    }
    let number = |name: &str| {
        let port = value[name].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        port.ok_or_else(|| config(format!("{path}.{name}: {}; expected a number from 1 to 65535", value[name])))
    };
    let (host_port, container_port) = (number("hostPort")?, number("containerPort")?);
    let protocol = match &value["protocol"] {
        Value::Null => Protocol::Tcp,
        said => {
            let upper = said.as_str().map(str::to_ascii_uppercase).unwrap_or_default();
            serde_json::from_value(upper.into())
                .map_err(|_| config(format!("{path}.protocol: {said}; expected tcp, udp or sctp")))?
        }
    };
    if protocol == Protocol::Sctp && host_port != container_port {
        let right = "expected that of hostPort, since SCTP's checksum covers it";
        return Err(config(format!("{path}.containerPort: {container_port}; {right}")));
    }
    let host_ip = match &value["hostIP"] {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        said => {
            let addr = said.as_str().and_then(|text| text.parse::<IpAddr>().ok());
            let wrong = || config(format!("{path}.hostIP: {said}; expected an address of this node, or none"));
            Some(addr.ok_or_else(wrong)?.to_canonical())
        }
    };
    Ok(HostPort { host_port, container_port, protocol, host_ip })
}
