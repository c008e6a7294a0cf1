//! The kernel's main table, followed change by change, beside what a whole read gives.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use lb_user::source::netlink::{Asked, Mirror, Wanted, spawn};
use stellwerk_tests::netns::{Lab, Ns};
use stellwerk_tests::routes::Random;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

const ROUNDS: usize = 250;
const PREFIXES4: [&str; 5] = ["0.0.0.0/0", "10.8.0.0/16", "10.8.1.0/24", "198.51.100.0/24", "10.1.0.0/24"];
const PREFIXES6: [&str; 5] = ["::/0", "fd08::/48", "fd08:1::/64", "2001:db8::/32", "fd01::/64"];
const ACTIONS: [&str; 8] = ["add", "replace", "append", "prepend", "change", "del", "del", "replace"];

fn one<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    of[random.below(of.len() as u64) as usize]
}

/// Where a route leads: by a gateway, on a link, by several, nowhere, by a next hop of its own.
fn way(random: &mut Random, v4: bool) -> String {
    let link = 1 + random.below(3);
    let gateway = |link: u64, last: u64| if v4 { format!("10.{link}.0.{last}") } else { format!("fd0{link}::{last}") };
    let last = 2 + random.below(3);
    match random.below(9) {
        0..=2 => format!("via {} dev eth{link}", gateway(link, last)),
        3 => format!("dev eth{link}"),
        4 if v4 => format!("via {} dev eth{link} src 10.{link}.0.1", gateway(link, last)),
        4 | 5 => {
            let other = 1 + link % 3;
            format!(
                "nexthop via {} dev eth{link} weight {} nexthop via {} dev eth{other}",
                gateway(link, last),
                1 + random.below(3),
                gateway(other, last)
            )
        }
        6 => "nhid 7".into(),
        7 => format!("via fe80::{last} dev eth{link}")
            .replace("via fe80", if v4 { "via inet6 fe80" } else { "via fe80" }),
        _ => "nowhere".into(),
    }
}

/// A line for `ip`; many are refused.
fn line(random: &mut Random) -> String {
    let link = 1 + random.below(3);
    match random.below(20) {
        0 => format!("link set eth{link} {}", one(random, &["down", "up", "up"])),
        1 => format!("addr {} 10.{link}.0.{}/24 dev eth{link}", one(random, &["add", "del"]), one(random, &["1", "9"])),
        2 => format!("addr {} fd0{link}::1/64 dev eth{link}", one(random, &["replace", "del"])),
        3 => format!("nexthop {} id 7 via 10.{link}.0.4 dev eth{link}", one(random, &["add", "replace"])),
        4 => "nexthop del id 7".into(),
        5 => one(random, &["link add pod0 type veth peer name pod1", "link set pod0 up", "link del pod0"]).into(),
        6 => format!("route replace 10.99.0.0/16 dev pod0 metric {}", random.below(2)),
        7 => format!("route {} 10.8.0.0/16 tos 0x10 dev eth{link}", one(random, &["add", "del"])),
        roll => {
            let v4 = roll % 2 == 0;
            let prefix = one(random, if v4 { &PREFIXES4 } else { &PREFIXES6 });
            let (action, metric) = (one(random, &ACTIONS), one(random, &["", "metric 5", "metric 9"]));
            let proto = one(random, &["", "", "proto 83"]);
            let way = way(random, v4);
            // Where IPv6 routes of one metric lead by gateways and on a link, the kernel's own list leaves some out; and
            // whose one is that ours and others' share is seen at the next settling alone.
            let metric = match (v4, way.starts_with("dev"), proto) {
                (true, ..) | (_, false, "") => metric,
                (_, false, _) => "metric 11",
                (_, true, "") => "metric 7",
                (_, true, _) => "metric 12",
            };
            match way.as_str() {
                "nowhere" => format!("route {action} {} {prefix} {metric}", one(random, &["blackhole", "unreachable"])),
                way => format!("route {action} {prefix} {way} {metric} {proto}"),
            }
        }
    }
}

fn set_up(lab: &Lab) -> Ns {
    let (device, far) = (lab.ns("device").unwrap(), lab.ns("far").unwrap());
    for link in 1..=3 {
        let name = format!("eth{link}");
        lab.wire((&device, &name), (&far, &name)).unwrap();
        device.ip(&format!("addr add 10.{link}.0.1/24 dev {name}\naddr add fd0{link}::1/64 dev {name}")).unwrap();
    }
    device
}

/// Both tables, as lines.
fn shown(mirror: &lb_user::intent::Network) -> BTreeSet<String> {
    let routes = mirror.routes.prefixes().map(|(prefix, paths)| format!("{prefix}: {paths:?}"));
    routes.chain(mirror.own.routes.iter().map(|own| format!("{own:?}"))).collect()
}

#[test]
fn what_is_followed_is_what_a_whole_read_gives() {
    let lab = Lab::new().unwrap();
    let device = set_up(&lab);
    let work = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (_wanted, wanted) = watch::channel(Wanted::new());
            let (_probed, probed) = watch::channel(Wanted::new());
            let followed = spawn(Asked { wanted, probed, overruns: Default::default() }).unwrap();
            let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4);
            let mut random = Random(seed);
            let mut said = Vec::new();
            for _ in 0..ROUNDS {
                for _ in 0..=random.below(4) {
                    let line = line(&mut random);
                    let done = Command::new("ip").args(line.split_whitespace()).output().unwrap().status.success();
                    said.push(format!("{} {line}", if done { "+" } else { " " }));
                }
                let end = Instant::now() + Duration::from_secs(5);
                loop {
                    let (now, whole) = (shown(&followed.borrow()), shown(Mirror::open().unwrap().network()));
                    if now == whole {
                        break;
                    }
                    assert!(
                        Instant::now() < end,
                        "SEED={seed}: followed alone: {:#?}\nread alone: {:#?}\nafter\n{}",
                        now.difference(&whole).collect::<Vec<_>>(),
                        whole.difference(&now).collect::<Vec<_>>(),
                        said[said.len().saturating_sub(12)..].join("\n")
                    );
                    sleep(Duration::from_millis(5)).await;
                }
            }
            // Enough of it was something that the kernel took.
            let done = said.iter().filter(|line| line.starts_with('+')).count();
            assert!(done > ROUNDS / 2, "{done}:\n{}", said.join("\n"));
        });
    };
    device.run(work).unwrap();
}
