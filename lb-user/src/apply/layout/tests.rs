use super::*;

fn part(name: &str, at: usize, size: usize) -> Part {
    Part { name: name.to_owned(), at, size }
}

fn shape(key: &[Part], value: &[Part]) -> Shape {
    Shape { key: key.to_vec(), value: value.to_vec(), ..Shape::default() }
}

#[test]
fn fields_go_by_their_names() {
    let old = shape(&[part("addr", 0, 4), part("port", 4, 2)], &[part("id", 0, 4), part("gone", 4, 4)]);
    let new = shape(&[part("port", 0, 2), part("addr", 4, 4)], &[part("new", 0, 8), part("id", 8, 4)]);
    let change = old.to(&new).unwrap();
    let (mut key, mut value) = ([0; 8], [0; 12]);
    carry(&change.key, &[10, 0, 0, 1, 0, 80], &mut key);
    carry(&change.value, &[1, 2, 3, 4, 9, 9, 9, 9], &mut value);
    assert_eq!(key, [0, 80, 0, 0, 10, 0, 0, 1]);
    assert_eq!(value, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    // And back: what the other one doesn't know is zero again.
    let back = new.to(&old).unwrap();
    let mut value = [0; 8];
    carry(&back.value, &[7, 7, 7, 7, 7, 7, 7, 7, 1, 2, 3, 4], &mut value);
    assert_eq!(value, [1, 2, 3, 4, 0, 0, 0, 0]);
}

#[test]
fn what_cannot_be_told_is_refused() {
    let whole = |size| shape(&[part("", 0, 4)], &[part("", 0, size)]);
    let places = |places| Shape { places: Some(places), ..whole(8) };
    let cases = [
        (whole(8), whole(16), "its field `` has 8 bytes, and 16 in this version"),
        (places(4), places(8), "it has Some(4) places, and Some(8) in this version"),
        (
            shape(&[part("addr", 0, 4)], &[]),
            shape(&[part("addr", 0, 4), part("port", 4, 2)], &[]),
            "its keys are of other fields in this version",
        ),
    ];
    for (old, new, want) in cases {
        assert_eq!(old.to(&new).unwrap_err(), want);
    }
    let mut other = Layout::own();
    other.number += 1;
    assert!(Layout::own().change(&other, "SERVICES4").unwrap().unwrap_err().contains("number"));
    assert_eq!(Layout::own().change(&Layout::own(), "SERVICES4"), Some(Ok(None)));
    assert_eq!(Layout::own().change(&Layout::own(), "NOBODYS"), None);
}

#[test]
fn rows_go_by_their_names() {
    let rows = |names: &[&str]| Shape { rows: names.iter().map(|&name| name.into()).collect(), ..Shape::default() };
    let change = rows(&["a", "b", "c"]).to(&rows(&["a", "new", "c"])).unwrap();
    assert_eq!([0, 1, 2, 3].map(|row| change.row(row)), [Some(0), None, Some(2), None]);
    let same = rows(&["a"]).to(&rows(&["a"])).unwrap();
    assert_eq!(same.row(7), Some(7));
}

/// What stands in here is in force on nodes: another name means that their tables have to be moved.
#[test]
fn the_own_layout_is_described_whole() {
    let own = Layout::own();
    assert_eq!(own.tables.len(), SPECS.len());
    let text = serde_json::to_vec(&own).unwrap();
    assert_eq!(serde_json::from_slice::<Layout>(&text).unwrap(), own);
    assert_eq!(own.name(), own.clone().name());
    let service = &own.tables["SERVICES4"];
    assert_eq!(service.key[0], part("addr", 0, 4));
    assert_eq!(service.field("affinity"), Some(&part("affinity", 12, 4)));
    assert!(own.tables["DROPS"].rows.contains(&"no_backend".to_owned()));
}
