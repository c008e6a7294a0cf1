//! What policies allow the pods of a case, and the tables that this means.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::{Peer, Pod};
use lb_common::wire::{Ip4, Ip6};
use lb_user::plan::{Contents, allow, rules};
use lb_user::policy::{Allowed, Entry, Ports};

use super::world::{Built, Place, World};

/// A pod at a link where policies are judged, and what is allowed to it and from it.
#[derive(Clone, Debug)]
pub struct Judged {
    pub link: u32,
    pub host: String,
    pub policies: [u32; 2],
}

/// Whom a policy allows what.
#[derive(Clone, Debug)]
pub struct AllowedLine {
    pub policy: u32,
    pub net: IpNet,
    pub except: Vec<IpNet>,
    pub ports: Ports,
}

impl World {
    /// Pods that are judged, what they are allowed, and this node's own addresses.
    pub(super) fn policies(&self, contents: &mut Contents) -> Built<()> {
        for pod in &self.judged {
            let mut addrs = [Ip6::default(); 2];
            addrs[usize::from(self.v6)] = match self.names().resolve(&pod.host)? {
                IpAddr::V4(addr) => Ip6::mapped(addr.into()),
                IpAddr::V6(addr) => addr.into(),
            };
            let [ingress, egress] = pod.policies;
            contents.pods.insert(pod.link, Pod { ingress, egress, addrs });
        }
        for host in self.hosts.iter().filter(|host| host.at == Place::Local && !self.judged.is_empty()) {
            allow(contents, Peer::<Ip4>::NODE, host.addr.into(), 1);
        }
        let policies: BTreeSet<u32> = self.allowed.iter().map(|line| line.policy).collect();
        for policy in policies {
            let lines = self.allowed.iter().filter(|line| line.policy == policy);
            let entry = |line: &'_ AllowedLine| (line.net, line.except.clone(), line.ports.clone());
            let parts: Vec<_> = lines.map(entry).collect();
            let entries = parts.iter().map(|(net, except, ports)| Entry { net: *net, except, ports: ports.clone() });
            let allowed = Allowed::new(&entries.collect::<Vec<_>>()).ok_or("more sets of ports than bits")?;
            rules(contents, policy, &allowed);
        }
        Ok(())
    }
}
