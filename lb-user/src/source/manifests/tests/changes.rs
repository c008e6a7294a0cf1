//! Folders that change: what follows, what stays, what is taken back.

use super::*;
use crate::address::Lease;

fn files(paths: &[&PathBuf]) -> Scope {
    Scope::Files(paths.iter().map(|p| (*p).clone()).collect::<BTreeSet<_>>())
}

const ENDPOINT: &str = "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.1] }]";
const LEAVING: &str = "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.1], conditions: { ready: false, terminating: true } }]";

#[test]
fn changes() {
    let folder = Folder::new("changes");
    let a = folder.write("a.yaml", &service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }"));
    folder.write(
        "b.yaml",
        &(service("b", "{ type: LoadBalancer, ports: [{ port: 80 }] }") + &slice("b", "b-1", ENDPOINT)),
    );
    folder.write(".c.yaml", "not: [read");
    folder.write("readme.txt", "not: [read");
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let mut list = Vec::new();
    // The services that changed, and what is wrong.
    let mut step = |manifests: &mut Manifests, scope: &Scope, second: u64| -> Vec<String> {
        let path = format!("{}/", folder.0.display());
        let update = manifests.load(scope, at(second)).unwrap();
        let names = update.changed.keys().map(ToString::to_string);
        let names = names.chain(manifests.refused().iter().map(|e| e.to_string().replace(&path, ""))).collect();
        update.apply_to(&mut list);
        assert_eq!(list, manifests.services());
        names
    };
    assert_eq!(step(&mut manifests, &Scope::All, 0), ["default/a", "default/b"]);
    assert_eq!(step(&mut manifests, &Scope::All, 0), [""; 0]);

    // A slice in a file of its own; then it leaves, and its deadline stays.
    let slices = folder.write("a-slice.yaml", &slice("a", "a-1", ENDPOINT));
    assert_eq!(step(&mut manifests, &files(&[&slices]), 1), ["default/a"]);
    folder.write("a-slice.yaml", &slice("a", "a-1", LEAVING));
    assert_eq!(step(&mut manifests, &files(&[&slices]), 5), ["default/a"]);
    assert_eq!(step(&mut manifests, &files(&[&slices]), 9), [""; 0]);
    assert_eq!(show(&manifests.services())[0], "default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80!35");

    // Back, and leaving anew: a new deadline.
    folder.write("a-slice.yaml", &slice("a", "a-1", ENDPOINT));
    step(&mut manifests, &Scope::All, 10);
    folder.write("a-slice.yaml", &slice("a", "a-1", LEAVING));
    step(&mut manifests, &files(&[&slices]), 20);
    assert_eq!(show(&manifests.services())[0], "default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80!50");

    // A bad file stays as it was, also later, until it is mended; the others go on.
    folder.write("a.yaml", "a: [");
    std::fs::remove_file(&slices).unwrap();
    let broken = "a.yaml:1:4: not YAML: unclosed bracket '['";
    assert_eq!(step(&mut manifests, &files(&[&a, &slices]), 21), ["default/a", broken]);
    assert_eq!(show(&manifests.services())[0], "default/a:80 80/TCP [10.1.0.1] -> ");
    let other = folder.write("d.yaml", &service("d", "{ clusterIP: 10.1.0.4, ports: [{ port: 80 }] }"));
    assert_eq!(step(&mut manifests, &files(&[&other]), 22), ["default/d", broken]);
    folder.write("a.yaml", &service("a", "{ clusterIP: 10.1.0.4, ports: [{ port: 80 }] }"));
    let clash = "a.yaml:5:38: spec.ports[0]: default/a and default/d (d.yaml:2) both want 10.1.0.4:80/TCP; expected one of them to change";
    assert_eq!(step(&mut manifests, &files(&[&a]), 23), [clash]);
    assert_eq!(step(&mut manifests, &Scope::All, 23), [clash]);
    std::fs::remove_file(&other).unwrap();
    assert_eq!(step(&mut manifests, &files(&[&other]), 24), ["default/a", "default/d"]);
    assert_eq!(
        show(&manifests.services()),
        ["default/a:80 80/TCP [10.1.0.4] -> ", "default/b:80 80/TCP [10.9.0.1] -> 10.2.0.1:80"]
    );

    // Two services change places in one load.
    folder.write("a.yaml", &service("a", "{ clusterIP: 10.1.0.5, ports: [{ port: 80 }] }"));
    let e = folder.write("e.yaml", &service("e", "{ clusterIP: 10.1.0.4, ports: [{ port: 80 }] }"));
    assert_eq!(step(&mut manifests, &files(&[&a, &e]), 25), ["default/a", "default/e"]);
}

#[test]
fn many_change_at_once() {
    let folder = Folder::new("many");
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let mut list = Vec::new();
    let mut changed = || {
        let update = manifests.load(&Scope::All, at(0)).unwrap();
        let count = update.changed.len();
        update.apply_to(&mut list);
        assert_eq!(list, manifests.services());
        count
    };
    for i in 0..200 {
        let spec = format!("{{ clusterIP: 10.7.0.{i}, ports: [{{ port: 80 }}] }}");
        folder.write(&format!("m{i}.yaml"), &service(&format!("m{i}"), &spec));
    }
    assert_eq!(changed(), 200);
    for i in 0..200 {
        std::fs::remove_file(folder.0.join(format!("m{i}.yaml"))).unwrap();
    }
    assert_eq!(changed(), 200);
}

/// Whichever of two files is to blame, no third one waits for it.
#[test]
fn who_is_refused() {
    let sctp =
        |port: u16| service("s", &format!("{{ clusterIP: 10.1.0.1, ports: [{{ port: {port}, protocol: SCTP }}] }}"));
    let target = slice(
        "s",
        "s-1",
        "addressType: IPv4\nports: [{ port: 80, protocol: SCTP }]\nendpoints: [{ addresses: [10.2.0.1] }]",
    );
    let plain = |name: &str, addr: &str| service(name, &format!("{{ clusterIP: {addr}, ports: [{{ port: 80 }}] }}"));
    // Files before, files that change, and those of the latter that are refused.
    type Texts<'t> = &'t [(&'t str, String)];
    let cases: [(Texts<'_>, Texts<'_>, &[&str]); 6] = [
        (&[], &[("a", "a: [".into()), ("b", plain("b", "10.1.0.2"))], &["a"]),
        // At once: the later one.
        (&[], &[("a", plain("a", "10.1.0.2")), ("b", plain("b", "10.1.0.2"))], &["b"]),
        (&[], &[("a", plain("a", "10.1.0.2")), ("b", plain("a", "10.1.0.3"))], &["b"]),
        // The one that changed, though the fault shows in the other.
        (&[("s", sctp(80)), ("t", target.clone())], &[("s", sctp(81)), ("x", plain("x", "10.1.0.9"))], &["s"]),
        (
            &[("b", plain("b", "10.1.0.2")), ("b-1", slice("b", "b-1", ENDPOINT))],
            &[("a", plain("a", "10.1.0.2")), ("b-1", slice("b", "b-1", LEAVING))],
            &["a"],
        ),
        // A service moves to another file.
        (&[("a", plain("a", "10.1.0.2"))], &[("a", String::new()), ("b", plain("a", "10.1.0.2"))], &[]),
    ];
    for (i, (before, after, refused)) in cases.into_iter().enumerate() {
        let folder = Folder::new(&format!("blame{i}"));
        let mut manifests = Manifests::new(folder.0.clone(), rules());
        for texts in [before, after] {
            for (name, text) in texts {
                folder.write(&format!("{name}.yaml"), text);
            }
            let ready = manifests.load(&Scope::All, at(0));
            assert!(texts == after || ready.is_ok_and(|u| u.notices.is_empty()), "case {i}");
        }
        let mut named: Vec<_> = manifests.refused().iter().map(|e| e.file.to_string()).collect();
        named.dedup();
        let paths: Vec<_> =
            manifests.files.refused().map(|p| p.file_stem().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(paths, refused, "case {i}: {named:?}");
    }
}

#[test]
fn addresses_stay() {
    let folder = Folder::new("stay");
    let wish = "{ type: LoadBalancer, ports: [{ port: 80 }] }";
    folder.write("m.yaml", &service("m", wish));
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    manifests.load(&Scope::All, at(0)).unwrap();
    // Earlier in the alphabet, later in the world.
    folder.write("a.yaml", &service("a", wish));
    manifests.load(&Scope::All, at(1)).unwrap();
    assert_eq!(
        show(&manifests.services()),
        ["default/a:80 80/TCP [10.9.0.2] -> ", "default/m:80 80/TCP [10.9.0.1] -> "]
    );
    // Somebody names m's address: m keeps it.
    folder.write("x.yaml", &service("x", "{ type: LoadBalancer, loadBalancerIP: 10.9.0.1, ports: [{ port: 80 }] }"));
    let update = manifests.load(&Scope::All, at(2)).unwrap();
    assert_eq!(update.changed.keys().map(ToString::to_string).collect::<Vec<_>>(), ["default/x"]);
    let x = folder.0.join("x.yaml");
    let want = format!(
        "{}:2:1: LoadBalancer default/x gets no address 10.9.0.1: default/m has it, and they have no sharing key in common",
        x.display()
    );
    assert_eq!(update.notices.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
    folder.write("x.yaml", &service("x", "{ type: LoadBalancer, loadBalancerIP: 10.9.0.3, ports: [{ port: 80 }] }"));
    manifests.load(&Scope::All, at(2)).unwrap();
    assert_eq!(
        show(&manifests.services()),
        [
            "default/a:80 80/TCP [10.9.0.2] -> ",
            "default/m:80 80/TCP [10.9.0.1] -> ",
            "default/x:80 80/TCP [10.9.0.3] -> "
        ]
    );
    // No more: a service without an address, and a notice.
    folder.write("y.yaml", &service("y", wish));
    let update = manifests.load(&Scope::All, at(3)).unwrap();
    let y = folder.0.join("y.yaml");
    let want =
        format!("{}:2:1: LoadBalancer default/y gets no IPv4 address: all of 10.9.0.1-10.9.0.3 are taken", y.display());
    assert_eq!(update.notices.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
    // One goes, the waiting one gets its address.
    std::fs::remove_file(folder.0.join("a.yaml")).unwrap();
    manifests.load(&Scope::All, at(4)).unwrap();
    assert_eq!(show(&manifests.services())[2], "default/y:80 80/TCP [10.9.0.2] -> ");
    // A new life that is told of the former one.
    let mut again = Manifests::new(folder.0.clone(), rules());
    again.remember(manifests.leases().clone());
    again.load(&Scope::All, at(5)).unwrap();
    assert_eq!(again.services(), manifests.services());
    // Other ranges: all move.
    let range = ServiceRange { first: "10.8.0.0".parse().unwrap(), last: "10.8.0.9".parse().unwrap() };
    again.set_rules(Rules { service_ranges: vec![range], ..rules() });
    assert_eq!(again.load(&Scope::Files(BTreeSet::new()), at(6)).unwrap().changed.len(), 2);
    assert_eq!(show(&again.services())[0], "default/m:80 80/TCP [10.8.0.1] -> ");
    // One that is published is nobody else's any more.
    let published = ["10.8.0.1", "10.8.0.3"]
        .map(|addr| ((addr.parse().unwrap(), 7, Protocol::Tcp), "publish (c.yaml:7)".into()))
        .into();
    again.set_rules(Rules { service_ranges: vec![range], published, ..rules() });
    again.load(&Scope::Files(BTreeSet::new()), at(7)).unwrap();
    let given: Vec<_> = again.services().iter().map(|s| format!("{} {}", s.name, s.addresses[0])).collect();
    assert_eq!(given, ["m 10.8.0.4", "x 10.9.0.3", "y 10.8.0.2"]);
}

#[test]
fn an_address_waits_for_a_broken_file() {
    let folder = Folder::new("waits");
    let balancer = |name: &str| service(name, "{ type: LoadBalancer, ports: [{ port: 80 }] }");
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    // In a former life.
    let lease = Lease { addresses: vec!["10.9.0.1".parse().unwrap()], ..Lease::default() };
    manifests.remember([(ServiceName { namespace: "default".into(), name: "y".into() }, lease)].into());
    folder.write("x.yaml", &balancer("x"));
    folder.write("y.yaml", "broken: [");
    let update = manifests.load(&Scope::All, at(0)).unwrap();
    assert_eq!(show(&manifests.services()), ["default/x:80 80/TCP [10.9.0.2] -> "]);
    let folder_says = format!("{}: ", folder.0.display());
    let notices: Vec<_> = update.notices.iter().map(|n| n.to_string().replace(&folder_says, "")).collect();
    assert_eq!(notices[0], "1 file is refused, and what it said before stays");
    assert!(notices[1].ends_with("y.yaml:1:9: not YAML: unclosed bracket '['"), "{notices:?}");
    folder.write("y.yaml", &balancer("y"));
    manifests.load(&Scope::All, at(1)).unwrap();
    assert_eq!(show(&manifests.services())[1], "default/y:80 80/TCP [10.9.0.1] -> ");
}

/// Of a thousand services' files the one that is closed after writing is in force at once. The agent's own part, the
/// kernel's tables, `cargo xtask bench update` measures.
#[tokio::test]
async fn an_edit_is_taken_within_100_ms() {
    let folder = Folder::new("edit");
    let text = |i: usize, addr: &str| {
        service(
            &format!("s{i}"),
            &format!(
                "{{ clusterIP: 10.7.{}.{}, selector: {{ app: s{i} }}, ports: [{{ port: 80 }}] }}",
                i / 250,
                i % 250
            ),
        ) + &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: p{i}, labels: {{ app: s{i} }} }}\nstatus: {{ podIP: {addr}, conditions: [{{ type: Ready, status: 'True' }}] }}\n"
        )
    };
    let config = folder.write("config", "x");
    let cluster = folder.0.join("cluster");
    std::fs::create_dir(&cluster).unwrap();
    for i in 0..1_000 {
        folder.write(&format!("cluster/{i}.yaml"), &text(i, "10.2.0.1"));
    }
    let mut manifests = Manifests::new(cluster.clone(), rules());
    manifests.load(&Scope::All, at(0)).unwrap();
    let mut watch = crate::source::watch::Watch::new(&config, Some(&cluster)).unwrap();
    let mut taken = Vec::new();
    for round in 2..7 {
        let new = folder.write("cluster/new", &text(500, &format!("10.2.0.{round}")));
        std::fs::rename(new, cluster.join("500.yaml")).unwrap();
        let start = std::time::Instant::now();
        // Another test's SIGHUP may ask for a look in between.
        let update = loop {
            let changed = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap();
            let update = manifests.load(&changed.manifests.unwrap(), at(0)).unwrap();
            if !update.changed.is_empty() {
                break update;
            }
        };
        taken.push(start.elapsed());
        let ports: Vec<_> = update.changed.values().flatten().cloned().collect();
        assert_eq!(show(&ports), [format!("default/s500:80 80/TCP [10.7.2.0] -> 10.2.0.{round}:80")]);
    }
    // The best of several: others may have the machine meanwhile.
    assert!(taken.iter().min().unwrap() < &Duration::from_millis(100), "{taken:?}");
}
