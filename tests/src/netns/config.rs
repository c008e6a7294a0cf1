//! What the agent is given: a configuration file and a folder of Kubernetes manifests, as an
//! operator would write them.
//!
//! Files are replaced as a whole (written beside, then renamed): the agent never reads half a file.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::device::Twin;

/// A service with its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub ports: Vec<ServicePort>,
    pub cluster: Vec<IpAddr>,
    pub external: Vec<IpAddr>,
    /// ClientIP affinity, in seconds.
    pub affinity: Option<u32>,
    /// externalTrafficPolicy Local
    pub external_local: bool,
    pub endpoints: Vec<Endpoint>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug)]
pub struct ServicePort {
    pub protocol: &'static str,
    pub port: u16,
    pub target: u16,
    pub node_port: Option<u16>,
}

/// An endpoint, in both families or in one.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub addrs: Vec<IpAddr>,
    pub node: String,
    pub terminating: bool,
}

impl Endpoint {
    pub fn new(at: Twin, node: &str) -> Endpoint {
        Endpoint { addrs: at.both().to_vec(), node: node.to_owned(), terminating: false }
    }
}

impl Service {
    /// A service of TCP on both families, without endpoints.
    pub fn tcp(name: &str, port: u16, target: u16, cluster: Twin) -> Service {
        let ports = vec![ServicePort { protocol: "TCP", port, target, node_port: None }];
        let cluster = cluster.both().to_vec();
        let (external, endpoints) = (Vec::new(), Vec::new());
        Service { name: name.into(), ports, cluster, external, affinity: None, external_local: false, endpoints }
    }

    /// The same on UDP, too.
    pub fn and_udp(mut self) -> Service {
        let udp = self.ports.iter().map(|p| ServicePort { protocol: "UDP", ..*p }).collect::<Vec<_>>();
        self.ports.extend(udp);
        self
    }

    pub fn external(mut self, at: Twin) -> Service {
        self.external = at.both().to_vec();
        self
    }

    pub fn endpoint(mut self, at: Twin, node: &str) -> Service {
        self.endpoints.push(Endpoint::new(at, node));
        self
    }

    fn service_yaml(&self) -> String {
        let kind = if self.external.is_empty() { "ClusterIP" } else { "LoadBalancer" };
        let kind = if self.ports.iter().any(|p| p.node_port.is_some()) && self.external.is_empty() {
            "NodePort"
        } else {
            kind
        };
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: default }}\nspec:\n  type: {kind}\n  \
             ipFamilyPolicy: PreferDualStack\n  clusterIP: \"{first}\"\n  clusterIPs: [{all}]\n",
            name = self.name,
            first = self.cluster[0],
            all = list(&self.cluster),
        );
        if let Some(seconds) = self.affinity {
            let _ = write!(
                text,
                "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {{ clientIP: {{ timeoutSeconds: {seconds} }} }}\n"
            );
        }
        if self.external_local {
            text.push_str("  externalTrafficPolicy: Local\n");
        }
        text.push_str("  ports:\n");
        for ServicePort { protocol, port, target, node_port } in &self.ports {
            let name = protocol.to_lowercase();
            let node = node_port.map(|p| format!(", nodePort: {p}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "    - {{ name: {name}, protocol: {protocol}, port: {port}, targetPort: {target}{node} }}"
            );
        }
        if !self.external.is_empty() {
            text.push_str("status:\n  loadBalancer:\n    ingress:\n");
            for addr in &self.external {
                let _ = writeln!(text, "      - ip: \"{addr}\"");
            }
        }
        text
    }

    fn slice_yaml(&self, v4: bool) -> String {
        let (family, suffix) = if v4 { ("IPv4", "v4") } else { ("IPv6", "v6") };
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  namespace: default\n  \
             labels: {{ kubernetes.io/service-name: {name} }}\naddressType: {family}\nports:\n",
            name = self.name
        );
        for ServicePort { protocol, target, .. } in &self.ports {
            let _ = writeln!(text, "  - {{ name: {}, protocol: {protocol}, port: {target} }}", protocol.to_lowercase());
        }
        let mut lines = String::new();
        for endpoint in &self.endpoints {
            for addr in endpoint.addrs.iter().filter(|a| a.is_ipv4() == v4) {
                let ready = !endpoint.terminating;
                let _ = writeln!(
                    lines,
                    "  - addresses: [\"{addr}\"]\n    nodeName: {}\n    conditions: {{ ready: {ready}, serving: true, terminating: {} }}",
                    endpoint.node, endpoint.terminating
                );
            }
        }
        text + &if lines.is_empty() { "endpoints: []\n".to_owned() } else { format!("endpoints:\n{lines}") }
    }
}

fn list(addrs: &[IpAddr]) -> String {
    addrs.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ")
}

/// The configuration file of the standard lab, and its folder of manifests.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Makes the folder. `inside` are patterns of further inside interfaces.
    pub fn new(dir: &Path) -> Result<Files> {
        std::fs::create_dir_all(dir.join("cluster")).context("the folder of manifests")?;
        Ok(Files { dir: dir.to_owned() })
    }

    /// `stellwerk.yaml`
    pub fn config(&self) -> PathBuf {
        self.dir.join("stellwerk.yaml")
    }

    /// The standard lab's configuration, with a hook for each port.
    pub fn standard(port2: &str, port3: &str) -> String {
        format!(
            "node: edge-1\n\
             ports:\n  \
               Port2: {{ interface: eth0, gateway: 203.0.113.1, hook: {port2} }}\n  \
               Port3: {{ interface: eth1, compute: true, hook: {port3} }}\n\
             internalSwitch: {{ interface: br-int, address: 10.20.0.1/24 }}\n\
             inside: [\"veth*\"]\n\
             cluster:\n  \
               nodeIPs: [192.168.20.10-192.168.20.12, \"fd00:20::a-fd00:20::c\"]\n  \
               serviceIPs: [192.168.20.100-192.168.20.120, \"fd00:20::1:64-fd00:20::1:78\"]\n  \
               podSubnet: [172.27.0.0/16, \"fd00:27::/32\"]\n  \
               serviceSubnet: [172.28.0.0/16, \"fd00:28::/112\"]\n  \
               manifests: ./cluster\n"
        )
    }

    pub fn write_config(&self, text: &str) -> Result<()> {
        self.replace("stellwerk.yaml", text)
    }

    /// Writes a service and its endpoint slices.
    pub fn write(&self, service: &Service) -> Result<()> {
        self.write_endpoints(service)?;
        self.replace(&format!("cluster/{}.yaml", service.name), &service.service_yaml())
    }

    /// Writes a service's endpoint slices alone, as an endpoint controller would.
    pub fn write_endpoints(&self, service: &Service) -> Result<()> {
        self.replace(&format!("cluster/{}-v4.yaml", service.name), &service.slice_yaml(true))?;
        self.replace(&format!("cluster/{}-v6.yaml", service.name), &service.slice_yaml(false))
    }

    /// Writes a file whole.
    pub fn replace(&self, name: &str, text: &str) -> Result<()> {
        let new = self.dir.join("next");
        std::fs::write(&new, text).context("writing a configuration file")?;
        std::fs::rename(&new, self.dir.join(name)).with_context(|| format!("replacing {name}"))
    }
}
