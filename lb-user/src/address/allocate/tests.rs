//! Who gets which address: tables, and properties of any edits.

use std::net::Ipv4Addr;

use super::*;
use crate::address::store::{self, Stored};
use crate::intent::ServiceRange;
use crate::source::endpoints::Labels;
use crate::source::endpoints::Selector;

mod edits;

/// A service as a table has it: `NAME WORD…`, where words are addresses, `v4`, `v6`, `pool=`, `key=`, `local=`,
/// `label=` and ports.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: ServiceName,
    these: Vec<IpAddr>,
    families: Vec<bool>,
    pool: Option<String>,
    terms: Terms,
    labels: Labels,
    namespace: Labels,
}

fn row(text: &str) -> Row {
    let (name, words) = text.split_once(' ').unwrap_or((text, ""));
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let label = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    let mut row = Row {
        name: ServiceName { namespace: namespace.into(), name: name.into() },
        these: Vec::new(),
        families: Vec::new(),
        pool: None,
        terms: Terms::default(),
        labels: Labels::new(),
        namespace: label("name", namespace),
    };
    for word in words.split_whitespace() {
        match word.split_once('=') {
            Some(("pool", pool)) => row.pool = Some(pool.into()),
            Some(("key", key)) => row.terms.key = Some(key.into()),
            Some(("local", app)) => row.terms.pods = Some(label("app", app)),
            Some(("app", app)) => row.labels = label("app", app),
            _ if matches!(word, "v4" | "v6") => row.families.push(word == "v4"),
            _ if word.contains('/') => _ = row.terms.ports.insert(word.into()),
            _ => row.these.push(word.parse().unwrap()),
        }
    }
    row
}

impl Row {
    fn ask(&self) -> Ask<'_> {
        let wish = if self.these.is_empty() { Wish::Any(&self.families) } else { Wish::These(&self.these) };
        Ask {
            service: &self.name,
            wish,
            pool: self.pool.as_deref(),
            terms: &self.terms,
            labels: &self.labels,
            namespace: &self.namespace,
        }
    }
}

fn pool(name: &str, ranges: &[(&str, &str)]) -> Pool {
    let range = |(a, b): &(&str, &str)| ServiceRange { first: a.parse().unwrap(), last: b.parse().unwrap() };
    Pool::plain(name, ranges.iter().map(range).collect())
}

/// `default` has two addresses of each family; `film` is for namespaces of that name, `web` for services so
/// labelled, `last` by request alone.
fn pools() -> Vec<Pool> {
    let mut film = pool("film", &[("10.1.0.1", "10.1.0.2")]);
    film.namespaces = vec!["film".into()];
    let mut web = pool("web", &[("10.2.0.254", "10.2.1.1")]);
    web.service_selectors =
        vec![Selector { labels: Labels::from([("app".into(), "web".into())]), expressions: Vec::new() }];
    web.priority = 7;
    let mut last = pool("last", &[("10.3.0.0", "10.3.0.1"), ("fd03::", "fd03::1")]);
    (last.auto_assign, last.avoid_buggy) = (false, false);
    vec![pool("default", &[("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]), film, web, last]
}

fn run(rows: &[Row], pools: &[Pool], had: &Leases) -> Outcome {
    let asks: Vec<Ask<'_>> = rows.iter().map(Row::ask).collect();
    let blocked = BTreeMap::from([(IpAddr::from([10, 0, 9, 9]), "publish[0] (c.yaml:3)".to_owned())]);
    let (named, absent) = (HashSet::new(), BTreeSet::new());
    allocate(&asks, &Scene { pools, blocked: &blocked, named, had, absent, frozen: None })
}

/// `NAME ADDRESS…`, then what services wait for or lost.
fn shown(outcome: &Outcome) -> Vec<String> {
    let name = |name: &ServiceName| name.to_string().replace("default/", "");
    let addresses = |lease: &Lease| lease.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let leases = outcome.leases.iter().map(|(n, lease)| format!("{} {}", name(n), addresses(lease)));
    let waiting = outcome.waiting.iter().flat_map(|(n, all)| all.iter().map(move |why| (n, why)));
    let lost = outcome.lost.iter().map(|(n, why)| (n, why));
    leases.chain(waiting.chain(lost).map(|(n, why)| format!("{} {why}", name(n)))).collect()
}

/// Rounds of services, and what each is given.
type Rounds<'t> = &'t [(&'t [&'t str], &'t [&'t str])];

#[test]
fn who_gets_which() {
    for rounds in TABLE {
        let mut had = Leases::new();
        for (rows, want) in *rounds {
            let rows: Vec<Row> = rows.iter().map(|text| row(text)).collect();
            let outcome = run(&rows, &pools(), &had);
            assert_eq!(shown(&outcome), *want, "{rounds:#?}");
            had = outcome.leases;
        }
    }
}

const TABLE: &[Rounds<'_>] = &[
    // The order of names; families; what is left.
    &[
        (&["b", "a v6 v4"], &["a fd00::1 10.0.0.1", "b 10.0.0.2"]),
        (
            &["b", "a v6 v4", "0 v4 v6"],
            &[
                "0 fd00::2",
                "a fd00::1 10.0.0.1",
                "b 10.0.0.2",
                "0 gets no IPv4 address: all of 10.0.0.1-10.0.0.2 are taken",
            ],
        ),
        (&["a v6 v4", "0 v4 v6"], &["0 fd00::2 10.0.0.2", "a fd00::1 10.0.0.1"]),
        // One who needs a family no longer gives it back.
        (&["a v4", "0 v4 v6", "1 v6"], &["0 fd00::2 10.0.0.2", "1 fd00::1", "a 10.0.0.1"]),
    ],
    // Named ones come first, but not before what is had; outside of pools there are more.
    &[
        (&["a", "b 10.0.0.1"], &["a 10.0.0.2", "b 10.0.0.1"]),
        (
            &["a", "b 10.0.0.1", "0 10.0.0.2", "1 192.0.2.1 fd99::1"],
            &[
                "1 192.0.2.1 fd99::1",
                "a 10.0.0.2",
                "b 10.0.0.1",
                "0 gets no address 10.0.0.2: default/a has it, and they have no sharing key in common",
            ],
        ),
        // It names another one; it names none any more, and keeps that.
        (&["b 10.0.0.2"], &["b 10.0.0.2"]),
        (&["b"], &["b 10.0.0.2"]),
        (&["b 10.0.9.9"], &["b gets no address 10.0.9.9: publish[0] (c.yaml:3) has it"]),
    ],
    // Pools by namespace, by label and by request.
    &[(
        &["film/a", "film/b", "film/c", "w app=web", "x app=web", "y app=web"],
        &["w 10.2.0.254", "x 10.2.1.1", "y 10.0.0.1", "film/a 10.1.0.1", "film/b 10.1.0.2", "film/c 10.0.0.2"],
    )],
    &[
        (
            &[
                "a pool=last v4 v6",
                "b pool=last",
                "c pool=film",
                "d pool=nix",
                "film/e pool=film v6",
                "f pool=default v4",
            ],
            &[
                "a 10.3.0.0 fd03::",
                "b 10.3.0.1",
                "f 10.0.0.1",
                "c gets no IPv4 address: the pool `film` is for others",
                "d gets no IPv4 address: there is no pool `nix`; expected one of `default`, `film`, `web`, `last`",
                "film/e gets no IPv6 address: the pool `film` has none",
            ],
        ),
        (
            &["a 10.2.0.255", "b 10.2.0.255 app=web", "c 10.3.0.0 pool=default", "d 192.0.2.1 pool=default"],
            &[
                "b 10.2.0.255",
                "a gets no address 10.2.0.255: its pool `web` is for others",
                "c gets no address 10.3.0.0: it is of the pool `last`, and the service asks for `default`",
                "d gets no address 192.0.2.1: it is not of the pool `default`",
            ],
        ),
    ],
    // Sharing: by key, other ports, the same pods.
    &[
        (
            &["a key=k 80/TCP", "b key=k 81/TCP 80/UDP", "c key=k 80/TCP", "d 82/TCP"],
            &["a 10.0.0.1", "b 10.0.0.1", "c 10.0.0.2", "d gets no IPv4 address: all of 10.0.0.1-10.0.0.2 are taken"],
        ),
        // Who edits his key, ports or pods goes; the others stay.
        (
            &["a key=l 80/TCP", "b key=k 81/TCP 80/UDP", "c key=k 80/TCP"],
            &[
                "b 10.0.0.1",
                "c 10.0.0.2",
                "a gets no IPv4 address: all of 10.0.0.1-10.0.0.2 are taken",
                "a loses 10.0.0.1: default/b has it, and they have no sharing key in common",
            ],
        ),
    ],
    &[(
        &[
            "a 10.0.0.1 key=k local=x 80/TCP",
            "b 10.0.0.1 key=k local=x 81/TCP",
            "c 10.0.0.1 key=k 82/TCP",
            "d 10.0.0.1 key=k local=x 81/TCP",
        ],
        &[
            "a 10.0.0.1",
            "b 10.0.0.1",
            "c gets no address 10.0.0.1: default/a has it, and they lead to other pods; sharing needs both \
                 externalTrafficPolicy Cluster, or Local and the same selector",
            "d gets no address 10.0.0.1: default/b has it, and both want 81/TCP",
        ],
    )],
];

/// What fits stays where pools are edited, and the rest is told.
#[test]
fn pools_that_change() {
    let rows: Vec<Row> = ["a", "b", "film/c", "film/d", "e pool=last"].map(row).into();
    let before = run(&rows, &pools(), &Leases::new());
    assert_eq!(shown(&before), ["a 10.0.0.1", "b 10.0.0.2", "e 10.3.0.0", "film/c 10.1.0.1", "film/d 10.1.0.2"]);
    let mut other = pools();
    other[0] = pool("default", &[("10.0.0.2", "10.0.0.4")]);
    other[1].namespaces = vec!["other".into()];
    other[3].name = "first".into();
    let after = run(&rows, &other, &before.leases);
    assert_eq!(
        shown(&after),
        [
            "a 10.0.0.3",
            "b 10.0.0.2",
            "film/c 10.0.0.4",
            "e gets no IPv4 address: there is no pool `last`; expected one of `default`, `film`, `web`, `first`",
            "film/d gets no IPv4 address: all of 10.0.0.2-10.0.0.4 are taken",
            "a loses 10.0.0.1: no pool has it any more",
            "e loses 10.3.0.0: it is of the pool `first`, and the service asks for `last`",
            "film/c loses 10.1.0.1: its pool `film` is for others",
            "film/d loses 10.1.0.2: its pool `film` is for others",
        ]
    );
    // By request alone: who has one keeps it.
    other[0].auto_assign = false;
    assert_eq!(run(&rows, &other, &after.leases).leases, after.leases);
    let none = run(&[row("a"), row("b v6")], &[], &Leases::new());
    let why = |family| format!("gets no {family} address: cluster.serviceIPs has none");
    assert_eq!(shown(&none), [format!("a {}", why("IPv4")), format!("b {}", why("IPv6"))]);
}

/// Who isn't known keeps what he had; while the store can't be read nobody gets another address.
#[test]
fn absent_and_frozen() {
    let lease = |addr: &str| Lease { addresses: vec![addr.parse().unwrap()], ..Lease::default() };
    let name = |text| row(text).name;
    let had = Leases::from([(name("a"), lease("10.0.0.1")), (name("b"), lease("10.0.0.2"))]);
    let (pools, blocked, absent) = (pools(), BTreeMap::new(), name("a"));
    let rows = ["b", "c", "d 192.0.2.1"].map(row);
    let asks: Vec<Ask<'_>> = rows.iter().map(Row::ask).collect();
    let mut scene = Scene {
        pools: &pools,
        blocked: &blocked,
        named: HashSet::new(),
        had: &had,
        absent: BTreeSet::from([&absent]),
        frozen: None,
    };
    let none = "c gets no IPv4 address: all of 10.0.0.1-10.0.0.2 are taken";
    assert_eq!(shown(&allocate(&asks, &scene)), ["a 10.0.0.1", "b 10.0.0.2", "d 192.0.2.1", none]);
    scene.absent = BTreeSet::new();
    assert_eq!(shown(&allocate(&asks, &scene)), ["b 10.0.0.2", "c 10.0.0.1", "d 192.0.2.1"]);
    scene.named = HashSet::from([IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))]);
    assert_eq!(shown(&allocate(&asks, &scene))[2], none);
    (scene.named, scene.frozen) = (HashSet::new(), Some("no store"));
    let none = "c gets no IPv4 address: no store";
    assert_eq!(shown(&allocate(&asks, &scene)), ["b 10.0.0.2", "d 192.0.2.1", none]);
}
