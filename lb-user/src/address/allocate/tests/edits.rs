//! Any edits in any order, with restarts between them.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Edit {
    Put(Box<Row>),
    Remove(usize),
    /// The default pool's last addresses.
    Pool(u8),
    Restart,
}

fn rows() -> impl Strategy<Value = Row> {
    let wish = prop::sample::select(&["", "v4", "v6", "v4 v6", "10.0.0.1", "10.0.0.2 fd00::1", "10.1.0.1"][..]);
    let pool = prop::sample::select(&["", "", "pool=last", "pool=film"][..]);
    let key = prop::sample::select(&["", "", "key=k", "key=l", "key=k local=x"][..]);
    let ports = prop::sample::select(&["80/TCP", "81/TCP", "80/UDP", "80/TCP 81/TCP"][..]);
    let namespace = prop::sample::select(&["default", "film"][..]);
    (0..8u8, namespace, wish, pool, key, ports).prop_map(|(i, namespace, wish, pool, key, ports)| {
        row(&format!("{namespace}/s{i} {wish} {pool} {key} {ports}"))
    })
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        6 => rows().prop_map(|row| Edit::Put(Box::new(row))),
        2 => (0..8usize).prop_map(Edit::Remove),
        1 => (1..5u8).prop_map(Edit::Pool),
        1 => Just(Edit::Restart),
    ];
    prop::collection::vec(edit, 1..40)
}

/// Every address, port and protocol is one service's, and every address that several have they may share.
fn nobody_clashes(rows: &BTreeMap<ServiceName, Row>, outcome: &Outcome) -> Result<(), TestCaseError> {
    let mut taken: HashMap<(IpAddr, &str), &ServiceName> = HashMap::new();
    let mut holders: HashMap<IpAddr, Vec<&Terms>> = HashMap::new();
    for (name, lease) in &outcome.leases {
        let terms = &rows[name].terms;
        prop_assert_eq!(terms, &lease.terms);
        for addr in &lease.addresses {
            for port in &terms.ports {
                prop_assert_eq!(taken.insert((*addr, port), name), None, "{} {}", addr, port);
            }
            for other in holders.entry(*addr).or_default() {
                prop_assert_eq!(other.against(terms), None);
            }
            holders.entry(*addr).or_default().push(terms);
        }
    }
    Ok(())
}

fn addresses(leases: &Leases, name: &ServiceName) -> BTreeSet<IpAddr> {
    leases.get(name).map(|lease| lease.addresses.iter().copied().collect()).unwrap_or_default()
}

/// A service has one address of each family that it asks for, or waits.
fn nobody_is_forgotten(rows: &BTreeMap<ServiceName, Row>, outcome: &Outcome) -> Result<(), TestCaseError> {
    for (name, row) in rows {
        let asked = row.these.len().max(row.families.len()).max(1);
        let waiting = outcome.waiting.get(name).map_or(0, Vec::len);
        prop_assert_eq!(addresses(&outcome.leases, name).len() + waiting, asked, "{}", name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_ones_own_and_stay(edits in edits()) {
        let file = std::env::temp_dir().join(format!("stellwerk-edits-{}.json", std::process::id()));
        let (mut rows, mut pools) = (BTreeMap::<ServiceName, Row>::new(), pools());
        let mut before = Outcome::default();
        for edit in edits {
            let mut edited = None;
            let mut pools_edited = false;
            match edit {
                Edit::Put(row) => {
                    edited = Some(row.name.clone());
                    rows.insert(row.name.clone(), *row);
                }
                Edit::Remove(i) => {
                    edited = rows.keys().nth(i).cloned();
                    edited.iter().for_each(|name| _ = rows.remove(name));
                }
                Edit::Pool(last) => {
                    pools[0].ranges[0].last = IpAddr::from([10, 0, 0, last]);
                    pools_edited = true;
                }
                Edit::Restart => {
                    let stored = Stored { leases: before.leases.clone(), waiting: before.waiting.clone() };
                    store::write(&file, &stored).unwrap();
                    let read = store::read(&file).unwrap().unwrap();
                    prop_assert_eq!(&read, &stored);
                    before.leases = read.leases;
                }
            }
            // In any order.
            let list: Vec<Row> = rows.values().rev().cloned().collect();
            let after = run(&list, &pools, &before.leases);
            nobody_clashes(&rows, &after)?;
            nobody_is_forgotten(&rows, &after)?;
            for name in rows.keys().filter(|name| Some(*name) != edited.as_ref() && !pools_edited) {
                let (had, has) = (addresses(&before.leases, name), addresses(&after.leases, name));
                prop_assert!(has.is_superset(&had), "{} had {:?} and has {:?}", name, had, has);
            }
            for (name, lease) in before.leases.iter().filter(|(name, _)| pools_edited && rows.contains_key(*name)) {
                let fits = |addr: &&IpAddr| pools.iter().any(|pool| pool.contains(**addr));
                let had: BTreeSet<IpAddr> = lease.addresses.iter().filter(fits).copied().collect();
                prop_assert!(addresses(&after.leases, name).is_superset(&had));
            }
            let again = run(&list, &pools, &after.leases);
            prop_assert_eq!(&again.leases, &after.leases);
            before = after;
        }
        _ = std::fs::remove_file(file);
    }
}
