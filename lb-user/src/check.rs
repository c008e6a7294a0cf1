//! `stellwerk check`: what a configuration means, without touching anything.
//!
//! Invariant: what it accepts, `run` accepts, as far as files alone tell.

use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use crate::config::{self, Config, Error, Errors};
use crate::intent::{EndpointState, HookChoice, Port, ServicePort};
use crate::source::manifests::{Manifests, Scope};

/// A readable summary, or everything that is wrong.
pub fn check(file: &Path) -> Result<String, Errors> {
    let config = Config::load(file)?;
    let mut notices = config.notices.clone();
    let mut services = None;
    if let Some(path) = &config.manifests {
        let mut manifests = Manifests::new(path.clone(), config.rules());
        notices.extend(manifests.load(&Scope::All, SystemTime::now())?.notices);
        services = Some(manifests.services());
    }
    Ok(summary(&config, services.as_deref(), &notices))
}

fn summary(config: &Config, services: Option<&[ServicePort]>, notices: &[Error]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:<16}{text}");
    line("node", config.node.clone());
    for p in &config.ports {
        line(&format!("port {}", p.name), port(p));
    }
    if let Some(switch) = &config.internal_switch {
        let address = switch.address.map_or(String::new(), |a| format!(", address {a}"));
        line("internal switch", format!("{}{address}", switch.interface));
    }
    if !config.inside.is_empty() {
        line("inside", config.inside.join(", "));
    }
    let ranges =
        |ranges: &[crate::intent::ServiceRange]| ranges.iter().map(config::show).collect::<Vec<_>>().join(", ");
    let subnets = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for (name, text) in [
        ("node IPs", ranges(&config.node_ranges)),
        ("service IPs", ranges(&config.service_ranges)),
        ("pod subnet", subnets(&config.pod_subnets)),
        ("service subnet", subnets(&config.service_subnets)),
    ] {
        if !text.is_empty() {
            line(name, text);
        }
    }
    if let (Some(services), Some(path)) = (services, &config.manifests) {
        let ports = if services.len() == 1 { "port" } else { "ports" };
        line("services", format!("{} {ports} in {}", services.len(), path.display()));
        for service in services {
            line("", self::service(service));
        }
    }
    for notice in notices {
        line("notice", notice.to_string());
    }
    out
}

fn port(port: &Port) -> String {
    let hook = match port.hook {
        HookChoice::Auto => "auto",
        HookChoice::Xdp => "xdp",
        HookChoice::Tc => "tc",
    };
    let gateway = port.gateway.map_or(String::new(), |g| format!(", gateway {g}"));
    let compute = if port.compute { ", compute" } else { "" };
    format!("{}{gateway}{compute}, hook {hook}", port.interface)
}

fn service(service: &ServicePort) -> String {
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
    let node_port = service.node_port.map_or(String::new(), |p| format!(", node port {p}"));
    let ready = service.endpoints.iter().filter(|e| e.state == EndpointState::Ready).count();
    let draining = match service.endpoints.len() - ready {
        0 => String::new(),
        n => format!(", {n} draining"),
    };
    let affinity = service.affinity.map_or(String::new(), |t| format!(", affinity {t} s"));
    let protocol = format!("{:?}", service.protocol).to_uppercase();
    format!(
        "{} {addresses} port {}/{protocol}{node_port}{affinity}: {ready} ready{draining}",
        service.full_name(),
        service.port
    )
}

#[cfg(test)]
mod tests {
    /// The example is what the documentation shows: it must be right.
    #[test]
    fn example() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/stellwerk.yaml");
        let text = super::check(&file).map_err(|e| e.to_string());
        let folder = file.parent().map(|p| p.join("cluster").display().to_string()).unwrap_or_default();
        assert_eq!(text.map(|t| t.replace(&folder, "CLUSTER")), Ok(EXAMPLE.to_owned()));
    }

    const EXAMPLE: &str = "\
node            edge-1
port Port2      eth0, gateway 203.0.113.1, hook auto
port Port3      eth1, compute, hook auto
internal switch br-int, address 10.20.0.1/24
node IPs        192.168.20.10-192.168.20.12
service IPs     192.168.20.100-192.168.20.120
pod subnet      172.27.0.0/16
service subnet  172.28.0.0/16
services        2 ports in CLUSTER
                default/db:5432 172.28.0.20 port 5432/TCP, affinity 600 s: 1 ready
                default/web:http 172.28.0.10, 192.168.20.100 port 80/TCP: 2 ready, 1 draining
";
}
