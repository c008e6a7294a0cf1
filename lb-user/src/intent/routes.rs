//! The kernel's main table as a value: a million routes that are copied in no time, and whose changes against
//! another copy are found without a walk through both.
//!
//! Invariant: equal paths are kept once, however many prefixes have them, so that what follows from them
//! ([`crate::plan`]) is worked out once, too. The paths of a prefix are in the kernel's order: by metric, and of
//! one metric as the kernel looks at them; before all, those that are for some packets alone.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;

/// One way to a prefix: a route, or one of several next hops of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    pub metric: u32,
    /// Zero where it leads nowhere.
    pub link: u32,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub kind: RouteKind,
    /// Of one of several next hops: its share of the flows; 0: the only one.
    pub weight: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    #[default]
    Unicast,
    /// Swallows.
    Blackhole,
    /// The kernel refuses, with an ICMP error: unreachable, prohibit, throw.
    Refusing,
    /// By more than the destination: a type of service, a source. The kernel looks at these first.
    Narrow,
}

/// A prefix and one of its paths.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Route {
    pub prefix: IpNet,
    pub path: Path,
}

/// All paths of a prefix. Never empty.
pub type Paths = Arc<Vec<Path>>;

/// Paths by prefix.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    by_prefix: OrdMap<IpNet, Paths>,
    /// Each that some prefix has, and how many have it.
    paths: OrdMap<Paths, usize>,
    lengths: Lengths,
}

/// How many prefixes there are of each length.
#[derive(Clone, Debug)]
struct Lengths {
    v4: [usize; 33],
    v6: [usize; 129],
}

impl Default for Lengths {
    fn default() -> Self {
        Lengths { v4: [0; 33], v6: [0; 129] }
    }
}

impl Lengths {
    fn of(&mut self, prefix: &IpNet) -> &mut usize {
        let len = usize::from(prefix.prefix_len());
        if prefix.addr().is_ipv4() { &mut self.v4[len] } else { &mut self.v6[len] }
    }
}

impl RouteTable {
    pub fn len(&self) -> usize {
        self.by_prefix.len()
    }

    /// Of IPv6 alone.
    pub fn len6(&self) -> usize {
        self.lengths.v6.iter().sum()
    }

    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    pub fn get(&self, prefix: &IpNet) -> Option<&Paths> {
        self.by_prefix.get(prefix)
    }

    /// Gives a prefix these paths in place of what it has; none: it goes. They are brought into the order of their
    /// metrics, and otherwise stay in theirs.
    pub fn set(&mut self, prefix: IpNet, mut paths: Vec<Path>) {
        let prefix = prefix.trunc();
        paths.sort_by_key(|path| (path.kind != RouteKind::Narrow, path.metric));
        let (old, there) = if paths.is_empty() {
            (self.by_prefix.remove(&prefix), 0)
        } else {
            let paths = self.shared(paths);
            (self.by_prefix.insert(prefix, paths), 1)
        };
        let count = self.lengths.of(&prefix);
        *count = *count + there - usize::from(old.is_some());
        if let Some(old) = old {
            self.forget(&old);
        }
    }

    /// The one copy of these paths, which one prefix more has.
    fn shared(&mut self, paths: Vec<Path>) -> Paths {
        let known = self.paths.get_key_value(&paths).map(|(shared, _)| shared.clone());
        let shared = known.unwrap_or_else(|| Arc::new(paths));
        *self.paths.entry(shared.clone()).or_insert(0) += 1;
        shared
    }

    fn forget(&mut self, paths: &Paths) {
        match self.paths.get_mut(paths) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.paths.remove(paths)),
        }
    }

    /// Puts paths behind the prefix's others of their metrics.
    pub fn add(&mut self, prefix: IpNet, paths: &[Path]) {
        let paths = match self.get(&prefix.trunc()) {
            Some(others) => [others, paths].concat(),
            None => paths.to_vec(),
        };
        self.set(prefix, paths);
    }

    /// Each prefix and its paths, in order.
    pub fn prefixes(&self) -> impl Iterator<Item = (&IpNet, &Paths)> {
        self.by_prefix.iter()
    }

    pub fn iter(&self) -> impl Iterator<Item = Route> {
        self.prefixes().flat_map(|(prefix, paths)| paths.iter().map(|path| Route { prefix: *prefix, path: *path }))
    }

    /// What there is of paths, each once.
    pub fn paths(&self) -> impl Iterator<Item = &Paths> {
        self.paths.keys()
    }

    /// Whether the same paths lead to the prefixes of another table, however many of these there are.
    pub fn leads_as(&self, other: &RouteTable) -> bool {
        self.paths.ptr_eq(&other.paths) || self.paths.keys().eq(other.paths.keys())
    }

    /// The prefixes that an address is in, the longest first.
    pub fn covering(&self, addr: IpAddr) -> impl Iterator<Item = (IpNet, &Paths)> {
        let lengths = if addr.is_ipv4() { &self.lengths.v4[..] } else { &self.lengths.v6[..] };
        let there = lengths.iter().enumerate().rev().filter(|(_, count)| **count > 0);
        there.filter_map(move |(len, _)| {
            let prefix = IpNet::new(addr, len as u8).ok()?.trunc();
            Some((prefix, self.by_prefix.get(&prefix)?))
        })
    }

    /// Whether a route says that an address is on a link, without a gateway.
    pub fn is_on_link(&self, addr: IpAddr, link: u32) -> bool {
        let on_link = |path: &Path| path.link == link && path.gateway.is_none();
        self.covering(addr).any(|(_, paths)| paths.iter().any(on_link))
    }

    /// The prefixes whose paths another table has otherwise. Costs what differs, where one was copied from the other.
    pub fn changed(&self, other: &RouteTable) -> Vec<IpNet> {
        let prefix = |item| match item {
            DiffItem::Add(prefix, _) | DiffItem::Remove(prefix, _) => *prefix,
            DiffItem::Update { old: (prefix, _), .. } => *prefix,
        };
        self.by_prefix.diff(&other.by_prefix).map(prefix).collect()
    }

    /// Takes the paths over a link away, as the kernel does when it goes; whether any was one of several next hops.
    pub fn remove_link(&mut self, link: u32) -> bool {
        if !self.paths().any(|paths| paths.iter().any(|path| path.link == link)) {
            return false;
        }
        let over = |paths: &Paths| paths.iter().any(|path| path.link == link);
        let touched: Vec<(IpNet, Paths)> =
            self.prefixes().filter(|(_, paths)| over(paths)).map(|(prefix, paths)| (*prefix, paths.clone())).collect();
        let mut several = false;
        for (prefix, paths) in touched {
            several |= paths.iter().any(|path| path.link == link && path.weight > 0);
            self.set(prefix, paths.iter().filter(|path| path.link != link).copied().collect());
        }
        several
    }
}

impl PartialEq for RouteTable {
    fn eq(&self, other: &Self) -> bool {
        self.by_prefix.diff(&other.by_prefix).next().is_none()
    }
}

impl FromIterator<Route> for RouteTable {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let mut table = RouteTable::default();
        table.extend(routes);
        table
    }
}

impl Extend<Route> for RouteTable {
    fn extend<I: IntoIterator<Item = Route>>(&mut self, routes: I) {
        routes.into_iter().for_each(|route| self.add(route.prefix, &[route.path]));
    }
}

impl<const N: usize> From<[Route; N]> for RouteTable {
    fn from(routes: [Route; N]) -> Self {
        routes.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn path(link: u32, metric: u32) -> Path {
        Path { link, metric, ..Path::default() }
    }

    #[test]
    fn paths_are_shared_and_counted() {
        let mut table = RouteTable::default();
        for i in 0..200u8 {
            table.set(net(&format!("10.{i}.0.0/16")), vec![path(1, 5), path(2, 0)]);
        }
        table.add(net("10.0.0.0/16"), &[path(3, 0)]);
        let links = |paths: &Paths| paths.iter().map(|path| path.link).collect::<Vec<_>>();
        let all: Vec<_> = table.paths().map(links).collect();
        assert_eq!(all, [vec![2, 3, 1], vec![2, 1]], "each once, in the order of metrics");
        assert_eq!(table.len(), 200);
        assert!(!table.remove_link(1));
        assert_eq!(table.paths().map(links).collect::<Vec<_>>(), [vec![2], vec![2, 3]]);
        assert!(!table.remove_link(2));
        assert_eq!((table.len(), table.paths().count()), (1, 1));
        table.set(net("10.0.0.0/16"), vec![]);
        assert!(table.is_empty() && table.paths().next().is_none());
    }

    #[test]
    fn longest_first_and_differences() {
        let nets = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "10.1.3.0/24", "::/0", "fd00::/8"];
        let mut table: RouteTable = nets.map(|n| Route { prefix: net(n), path: path(1, 0) }).into();
        let covering = |table: &RouteTable, addr: &str| -> Vec<String> {
            table.covering(addr.parse().expect("an address")).map(|(prefix, _)| prefix.to_string()).collect()
        };
        assert_eq!(covering(&table, "10.1.2.3"), ["10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]);
        assert_eq!(covering(&table, "fd00::1"), ["fd00::/8", "::/0"]);
        let before = table.clone();
        assert!(before == table && before.changed(&table).is_empty() && before.leads_as(&table));
        table.set(net("10.1.0.0/16"), vec![path(2, 0)]);
        table.set(net("10.1.2.3/32"), vec![]);
        table.set(net("fd00:1::/32"), vec![path(1, 0)]);
        let changed = before.changed(&table);
        assert_eq!(changed, ["10.1.0.0/16", "10.1.2.3/32", "fd00:1::/32"].map(net));
        assert!(before != table && !before.leads_as(&table));
        assert_eq!(covering(&table, "10.1.2.3"), ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]);
    }
}
