//! `stellwerk check`: what a configuration means, without touching anything.
//!
//! Invariant: what it accepts, `run` accepts, as far as files alone tell. It accepts no manifests of which a
//! file is refused, though `run` takes the others.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::config::{self, Config, Error, Errors};
use crate::intent::{EndpointState, HookChoice, Nat, Overlay, OverlayMode, Port, ServicePort, Translation};
use crate::moment::Moment;
use crate::source::manifests::{Manifests, Scope};

/// A readable summary, or everything that is wrong.
pub fn check(file: &Path) -> Result<String, Errors> {
    let config = Config::load(file)?;
    let mut notices = config.notices.clone();
    let (mut services, mut policies) = (None, 0);
    if let Some(path) = &config.manifests {
        let mut manifests = Manifests::new(path.clone(), config.rules());
        notices.extend(manifests.load(&Scope::All, Moment::now())?.notices);
        if !manifests.refused().is_empty() {
            return Err(Errors(manifests.refused().to_vec()));
        }
        services = Some(manifests.services());
        policies = manifests.cluster().policies.len();
    }
    notices.extend(config.dns_notices(services.as_deref().unwrap_or_default()));
    Ok(summary(&config, services.as_deref(), policies, &notices))
}

fn summary(config: &Config, services: Option<&[ServicePort]>, policies: usize, notices: &[Error]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:<16}{text}");
    line("node", config.node.clone());
    for p in &config.ports {
        line(&format!("port {}", p.name), port(p));
    }
    if let Some(switch) = &config.internal_switch {
        let addresses: String = switch.addresses.iter().map(|a| format!(", address {a}")).collect();
        line("internal switch", format!("{}{addresses}", switch.interface));
        for text in translations(&config.nat) {
            line("translated", text);
        }
    }
    if !config.inside.is_empty() {
        line("inside", config.inside.join(", "));
    }
    let ranges =
        |ranges: &[crate::intent::ServiceRange]| ranges.iter().map(config::show).collect::<Vec<_>>().join(", ");
    for (name, text) in [
        ("node IPs", ranges(&config.node_ranges)),
        ("service IPs", ranges(&config.service_ranges)),
        ("pod subnet", list(&config.pod_subnets)),
        ("service subnet", list(&config.service_subnets)),
    ] {
        if !text.is_empty() {
            line(name, text);
        }
    }
    for pool in &config.pools {
        line(&format!("pool {}", pool.name), pool.said());
    }
    for route in &config.routes {
        line("route", route.to_string());
    }
    for forward in &config.published {
        line("published", published(forward));
    }
    if let Some(pods) = &config.pod_network {
        let blocks = match config.pod_blocks() {
            [] => "those of this node's Node".into(),
            blocks => list(blocks),
        };
        let policy = if pods.policy { "on" } else { "off" };
        line("pods", format!("addresses of {blocks}, overlay {}, policy {policy}", overlay(pods.overlay)));
    }
    for node in &config.nodes {
        line(&format!("node {}", node.name), format!("{}, pods {}", list(&node.addresses), list(&node.blocks)));
    }
    if let Some(dns) = &config.dns {
        let at = list(dns.addresses.iter().chain(&dns.node_addresses));
        line("names", format!("{} at {at}", dns.domain));
    }
    if let (Some(services), Some(path)) = (services, &config.manifests) {
        let ports = if services.len() == 1 { "port" } else { "ports" };
        line("services", format!("{} {ports} in {}", services.len(), path.display()));
        for service in services {
            line("", self::service(service));
        }
    }
    if policies > 0 {
        let off = if config.judges_pods() { "" } else { ", none in force: pods.policy is off" };
        line("policies", format!("{policies}{off}"));
    }
    if let Some(access) = &config.api {
        // What can't be said has been found wrong before, or is known where the agent runs.
        let server = access.server().map_or(String::new(), |server| format!(" at {server}"));
        line("services", format!("of the Kubernetes API{server} ({access})"));
    }
    for notice in notices {
        line("notice", notice.to_string());
    }
    out
}

fn list<T: ToString>(of: impl IntoIterator<Item = T>) -> String {
    of.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

fn overlay(overlay: Overlay) -> String {
    let to = match overlay.mode {
        OverlayMode::Never => return "never".into(),
        OverlayMode::Always => "always",
        OverlayMode::CrossSubnet => "to other networks",
    };
    format!("{to}, VXLAN {} at UDP port {}", overlay.vni, overlay.port)
}

fn port(port: &Port) -> String {
    let hook = match port.hook {
        HookChoice::Auto => "auto",
        HookChoice::Xdp => "xdp",
        HookChoice::Tc => "tc",
    };
    let gateways: String = port.gateways.iter().map(|g| format!(", gateway {g}")).collect();
    let outside: String = port.nat_addresses.iter().map(|a| format!(", translates to {a}")).collect();
    let compute = if port.compute { ", compute" } else { "" };
    format!("{}{gateways}{outside}{compute}, hook {hook}", port.interface)
}

/// How each family is translated, where it is.
fn translations(nat: &Nat) -> Vec<String> {
    let nets = |name: &str, nets: &[IpNet], v4: bool| {
        let nets: Vec<_> = nets.iter().filter(|net| net.addr().is_ipv4() == v4).map(ToString::to_string).collect();
        if nets.is_empty() { String::new() } else { format!(", {name} {}", nets.join(", ")) }
    };
    let mut all = Vec::new();
    for v4 in [true, false] {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let direct = nets("but to", &nat.direct, v4);
        match nat.of(v4) {
            Translation::Off => {}
            Translation::Masquerade => {
                let filtering = format!("{:?}", nat.filtering).to_lowercase();
                let beside = nets("also of", &nat.subnets, v4);
                let quota = nat.quota;
                all.push(format!(
                    "{family} masquerade{beside}{direct}, {quota} ports a host, filtering by {filtering}"
                ));
            }
            Translation::Prefix => {
                let pairs = nat.prefixes.iter().map(|pair| format!("{} as {}", pair.inside, pair.outside));
                all.extend(pairs.map(|pair| format!("{family} prefix {pair}{direct}")));
            }
        }
    }
    all
}

/// `203.0.113.5:8443/TCP to 10.20.0.7:443`
fn published(forward: &ServicePort) -> String {
    let protocol = format!("{:?}", forward.protocol).to_uppercase();
    let to = forward.endpoints.iter().map(|e| SocketAddr::new(e.addr, e.port).to_string()).collect::<Vec<_>>();
    format!("{}:{}/{protocol} to {}", forward.name, forward.port, to.join(", "))
}

fn service(service: &ServicePort) -> String {
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
    let node_port = service.node_port.map_or(String::new(), |p| format!(", node port {p}"));
    let count = |wanted: fn(&EndpointState) -> bool| service.endpoints.iter().filter(|e| wanted(&e.state)).count();
    let ready = count(|state| *state == EndpointState::Ready);
    let others = [
        (count(|state| *state == EndpointState::Spare), "spare"),
        (count(|state| state.until().is_some()), "draining"),
    ];
    let others: String = others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!(", {n} {what}")).collect();
    let affinity = service.affinity.map_or(String::new(), |t| format!(", affinity {t} s"));
    let protocol = format!("{:?}", service.protocol).to_uppercase();
    format!(
        "{} {addresses} port {}/{protocol}{node_port}{affinity}: {ready} ready{others}",
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

    /// As `run` would say it: it takes configuration and manifests by the same means.
    #[test]
    fn a_forwarded_port_is_no_services() {
        let dir = std::env::temp_dir().join(format!("stellwerk-check-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("cluster")).unwrap();
        let file = dir.join("c.yaml");
        let config = "node: n\ninside: x\ncluster: { manifests: ./cluster }\npublish:\n- 203.0.113.5:80 -> 10.20.0.7:80\n\
                      - 203.0.113.5:8443 -> 10.20.0.7:443\n- 203.0.113.5:53 -> 10.20.0.7:53/udp\n";
        let service = "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec:\n  externalIPs: [203.0.113.5]\n  \
                       ports:\n  - { name: a, port: 53 }\n  - { name: b, port: 8443 }\n";
        std::fs::write(&file, config).unwrap();
        std::fs::write(dir.join("cluster/web.yaml"), service).unwrap();
        let said = super::check(&file).map_err(|errors| errors.to_string());
        std::fs::remove_dir_all(&dir).unwrap();
        let said = said.expect_err("two at one place").replace(&dir.display().to_string(), "DIR");
        assert_eq!(
            said,
            "DIR/cluster/web.yaml:8:5: spec.ports[1]: default/web and publish[1] (DIR/c.yaml:6) both want \
             203.0.113.5:8443/TCP; expected one of them to change"
        );
    }

    /// Though `run` takes the others.
    #[test]
    fn a_broken_manifest_is_an_error() {
        let dir = std::env::temp_dir().join(format!("stellwerk-check-broken-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("cluster")).unwrap();
        let file = dir.join("c.yaml");
        std::fs::write(&file, "node: n\ninside: x\ncluster: { manifests: ./cluster }\n").unwrap();
        let node = "apiVersion: v1\nkind: Node\nmetadata: { name: n }\n";
        std::fs::write(dir.join("cluster/node.yaml"), node).unwrap();
        std::fs::write(dir.join("cluster/pod.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: { name: '' }\n").unwrap();
        let said = super::check(&file).map_err(|errors| errors.to_string().replace(&dir.display().to_string(), "DIR"));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(said, Err("DIR/cluster/pod.yaml:3:19: metadata.name: `` is not a name".to_owned()));
    }

    #[test]
    fn pods_and_nodes() {
        let text = "node: a\nports: { P: { interface: eth0 } }\ncluster: { podSubnet: [172.27.0.0/16, fd00::/16] }\n\
                    pods: { vni: 77 }\nnodes: [{ name: a, addresses: 192.0.2.1, blocks: [172.27.1.0/26, 'fd00:1::/122'] },\n  \
                    { name: b, addresses: [192.0.2.2, 'fd00:2::1'], blocks: 172.27.2.0/26 }]\n";
        let config = super::Config::parse(&"c.yaml".into(), text).unwrap();
        let said = super::summary(&config, None, 0, &[]);
        let said: Vec<&str> = said.lines().skip(3).collect();
        assert_eq!(
            said,
            [
                "pods            addresses of 172.27.1.0/26, fd00:1::/122, overlay to other networks, VXLAN 77 at UDP port 4789, policy off",
                "node a          192.0.2.1, pods 172.27.1.0/26, fd00:1::/122",
                "node b          192.0.2.2, fd00:2::1, pods 172.27.2.0/26",
            ]
        );
    }

    const EXAMPLE: &str = "\
node            edge-1
port Port2      eth0, gateway 203.0.113.1, hook auto
port Port3      eth1, compute, hook auto
internal switch br-int, address 10.20.0.1/24
translated      IPv4 masquerade, also of 172.27.0.0/16, 8192 ports a host, filtering by address
node IPs        192.168.20.10-192.168.20.12
service IPs     192.168.20.100-192.168.20.120
pod subnet      172.27.0.0/16
service subnet  172.28.0.0/16
published       203.0.113.2:8443/TCP to 10.20.0.7:443
names           cluster.local at 172.28.0.10
services        5 ports in CLUSTER
                default/db:5432 172.28.0.20 port 5432/TCP, affinity 600 s: 1 ready
                default/recorder:554 172.28.0.40 port 554/TCP: 1 ready
                default/viewer:http 172.28.0.30 port 80/TCP: 1 ready, 1 draining
                default/viewer:rtp 172.28.0.30 port 5004/UDP: 1 ready, 1 draining
                default/web:http 172.28.0.10, 192.168.20.100 port 80/TCP: 2 ready, 1 draining
";
}
