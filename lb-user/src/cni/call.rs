//! A call of the plugin, out of its environment and its standard input.
//!
//! Invariant: a pure function of both; what is wrong is said with its name, its value and what would be right.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::Value;

use super::{VERSIONS, bandwidth, pins, ports};
use crate::ipam::{Bandwidth, HostPort, Key};
use crate::pods::talk::{Failure, code};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub verb: Verb,
    pub key: Key,
    pub netns: Option<PathBuf>,
    pub namespace: String,
    pub pod: String,
    /// Asked for.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<HostPort>,
    pub bandwidth: Bandwidth,
    /// Of the previous result.
    pub before: Vec<IpAddr>,
    /// Of a GC: what there still is.
    pub valid: Vec<Key>,
    pub pins: PathBuf,
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The version that a configuration says it is of.
pub fn version_said(text: &[u8]) -> Option<String> {
    let conf: Value = serde_json::from_slice(text).ok()?;
    Some(conf.get("cniVersion")?.as_str()?.to_owned())
}

fn environment(details: impl Into<String>) -> Failure {
    Failure::new(code::ENVIRONMENT, "invalid environment variables", details.into())
}

pub(super) fn config(details: impl Into<String>) -> Failure {
    Failure::new(code::CONFIG, "invalid network configuration", details.into())
}

/// As containers and networks are called.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    text.bytes().all(plain) && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_interface(text: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.contains(bad)
}

pub fn read(env: Env<'_>, text: &[u8]) -> Result<Call, Failure> {
    let verb = verb(env)?;
    let mut call = Call {
        verb,
        key: Key { container: String::new(), interface: String::new() },
        netns: None,
        namespace: String::new(),
        pod: String::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        before: Vec::new(),
        valid: Vec::new(),
        pins: PathBuf::new(),
    };
    if verb == Verb::Version {
        return Ok(call);
    }
    if !matches!(verb, Verb::Status | Verb::Gc) {
        attachment(&mut call, env)?;
    }
    let conf: Value = serde_json::from_slice(text)
        .map_err(|error| Failure::new(code::DECODE, "the network configuration is not JSON", error))?;
    version(verb, &conf)?;
    network(&mut call, &conf)?;
    Ok(call)
}

fn verb(env: Env<'_>) -> Result<Verb, Failure> {
    let right = "expected ADD, DEL, CHECK, STATUS, GC or VERSION";
    Ok(match env("CNI_COMMAND").as_deref() {
        Some("ADD") => Verb::Add,
        Some("DEL") => Verb::Del,
        Some("CHECK") => Verb::Check,
        Some("STATUS") => Verb::Status,
        Some("GC") => Verb::Gc,
        Some("VERSION") => Verb::Version,
        Some(other) => return Err(environment(format!("CNI_COMMAND: `{other}`; {right}"))),
        None => return Err(environment(format!("CNI_COMMAND is missing; {right}"))),
    })
}

fn attachment(call: &mut Call, env: Env<'_>) -> Result<(), Failure> {
    let given = |name: &str, right: &str, fits: fn(&str) -> bool| match env(name).filter(|text| !text.is_empty()) {
        None => Err(environment(format!("{name} is missing; expected {right}"))),
        Some(text) if fits(&text) => Ok(text),
        Some(text) => Err(environment(format!("{name}: `{text}`; expected {right}"))),
    };
    let id = "a container's id of letters, digits, `_`, `.` and `-`";
    call.key.container = given("CNI_CONTAINERID", id, is_name)?;
    call.key.interface = given("CNI_IFNAME", "an interface's name of at most 15 characters", is_interface)?;
    if call.verb != Verb::Del {
        let netns = given("CNI_NETNS", "the path of a network namespace", |text| text.starts_with('/'))?;
        call.netns = Some(netns.into());
    }
    for pair in env("CNI_ARGS").unwrap_or_default().split(';').filter(|pair| !pair.is_empty()) {
        let right = "expected pairs such as K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
        let Some((name, value)) = pair.split_once('=') else {
            return Err(environment(format!("CNI_ARGS: `{pair}`; {right}")));
        };
        match name {
            "K8S_POD_NAMESPACE" => call.namespace = value.into(),
            "K8S_POD_NAME" => call.pod = value.into(),
            "IP" => call.addresses = addresses(value)?,
            // Runtimes say more than anybody needs.
            _ => {}
        }
    }
    Ok(())
}

/// Addresses that a pod asks for; a prefix length says nothing here.
fn addresses(text: &str) -> Result<Vec<IpAddr>, Failure> {
    let one = |text: &str| text.split('/').next().and_then(|addr| addr.trim().parse().ok());
    let all: Option<Vec<IpAddr>> = text.split(',').map(one).collect();
    all.ok_or_else(|| environment(format!("CNI_ARGS: IP=`{text}`; expected an address, or one a family and a comma")))
}

fn version(verb: Verb, conf: &Value) -> Result<(), Failure> {
    let said = conf.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    let all = VERSIONS.join(", ");
    let Some(at) = VERSIONS.iter().position(|known| *known == said) else {
        let details = format!("cniVersion: `{said}`; expected one of {all}");
        return Err(Failure::new(code::INCOMPATIBLE, "incompatible CNI version", details));
    };
    let since = match verb {
        Verb::Check => "0.4.0",
        Verb::Status | Verb::Gc => "1.1.0",
        _ => VERSIONS[0],
    };
    if VERSIONS.iter().position(|known| *known == since) > Some(at) {
        let details = format!("cniVersion: `{said}`; expected {since} or later for this command");
        return Err(Failure::new(code::INCOMPATIBLE, "incompatible CNI version", details));
    }
    Ok(())
}

fn network(call: &mut Call, conf: &Value) -> Result<(), Failure> {
    let name = conf.get("name").and_then(Value::as_str).unwrap_or_default();
    if !is_name(name) {
        let right = "expected a network's name of letters, digits, `_`, `.` and `-`";
        return Err(config(format!("name: `{name}`; {right}")));
    }
    call.pins = pins(conf)?;
    for field in ["ipam", "ipMasq"] {
        if conf.get(field).is_some_and(|value| !value.is_null() && value != &Value::Bool(false)) {
            let details = format!("{field}: stellwerk's own configuration says this; expected none here");
            return Err(Failure::new(code::UNSUPPORTED, "unsupported field", details));
        }
    }
    let runtime = conf.get("runtimeConfig").and_then(Value::as_object).into_iter().flatten();
    let says = |value: &Value| !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty());
    for (field, value) in runtime.filter(|(_, value)| call.verb == Verb::Add && says(value)) {
        match field.as_str() {
            "portMappings" => call.ports = ports::read(value)?,
            "bandwidth" => call.bandwidth = bandwidth::read(value)?,
            _ => {
                let details = format!("runtimeConfig.{field}: stellwerk has no such capability");
                return Err(Failure::new(code::UNSUPPORTED, "unsupported field", details));
            }
        }
    }
    match (call.verb, conf.get("prevResult").filter(|value| !value.is_null())) {
        (Verb::Add, Some(_)) => Err(config("prevResult: expected stellwerk to be the first plugin of its list")),
        (Verb::Check, None) => Err(config("prevResult is missing; expected what ADD gave")),
        (Verb::Check, Some(before)) => previous(call, before),
        (Verb::Gc, _) => valid(call, conf),
        _ => Ok(()),
    }
}

fn previous(call: &mut Call, before: &Value) -> Result<(), Failure> {
    let ips = before.get("ips").and_then(Value::as_array).into_iter().flatten();
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let all: Option<Vec<IpAddr>> = ips.map(address).collect();
    call.before = all.ok_or_else(|| config("prevResult.ips: expected addresses such as 172.27.1.2/32"))?;
    let interfaces = before.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    let ours = |interface: &Value| {
        let sandbox = interface.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty());
        sandbox && interface.get("name").and_then(Value::as_str) == Some(&call.key.interface)
    };
    if interfaces.clone().any(ours) {
        return Ok(());
    }
    Err(config(format!(
        "prevResult.interfaces: there is no {} in a sandbox; expected the one of ADD",
        call.key.interface
    )))
}

fn valid(call: &mut Call, conf: &Value) -> Result<(), Failure> {
    let right = "expected a list such as [{ \"containerID\": \"c1\", \"ifname\": \"eth0\" }]";
    let wrong = || config(format!("cni.dev/valid-attachments: {right}"));
    let list = conf.get("cni.dev/valid-attachments").and_then(Value::as_array).ok_or_else(wrong)?;
    let text = |entry: &Value, name: &str| Some(entry.get(name)?.as_str()?.to_owned());
    let key = |entry: &Value| Some(Key { container: text(entry, "containerID")?, interface: text(entry, "ifname")? });
    call.valid = list.iter().map(key).collect::<Option<_>>().ok_or_else(wrong)?;
    Ok(())
}
