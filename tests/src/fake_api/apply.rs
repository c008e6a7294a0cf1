//! Server-side apply, of a service's status: its addresses are one list, and whoever applied it has it.

use serde_json::{Value, json};

const PATH: &str = "/status/loadBalancer/ingress";

/// The object after `manager` has applied `wanted`, or who has what it wants.
pub fn status(mut object: Value, wanted: &Value, manager: &str, force: bool) -> Result<Value, String> {
    let wish = wanted.pointer(PATH);
    let owners = owners(&object);
    let theirs: Vec<&String> = owners.iter().filter(|owner| *owner != manager).collect();
    let same = wish == object.pointer(PATH);
    if let (Some(_), Some(other), false, false) = (wish, theirs.first(), force, same) {
        return Err(format!("Apply failed with 1 conflict: conflict with \"{other}\": .status.loadBalancer.ingress"));
    }
    let mine = owners.iter().any(|owner| owner == manager);
    let after: Vec<&str> = match wish {
        // Who agrees with the others has it together with them.
        Some(_) if same => theirs.iter().map(|owner| owner.as_str()).chain([manager]).collect(),
        Some(_) => vec![manager],
        None => theirs.iter().map(|owner| owner.as_str()).collect(),
    };
    match wish {
        Some(ingress) => object["status"]["loadBalancer"]["ingress"] = ingress.clone(),
        // What nobody has any more goes.
        None if mine && theirs.is_empty() => {
            if let Some(balancer) = object.pointer_mut("/status/loadBalancer").and_then(Value::as_object_mut) {
                balancer.remove("ingress");
            }
        }
        None => {}
    }
    let entry = |manager: &&str| {
        let fields = json!({ "f:status": { "f:loadBalancer": { "f:ingress": {} } } });
        json!({ "manager": manager, "operation": "Apply", "subresource": "status", "fieldsV1": fields })
    };
    object["metadata"]["managedFields"] = after.iter().map(entry).collect();
    Ok(object)
}

/// Who has the list.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().filter_map(|entry| entry["manager"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_addresses() {
        let wish = |addrs: &[&str]| {
            let ingress: Vec<Value> = addrs.iter().map(|addr| json!({ "ip": addr })).collect();
            json!({ "status": { "loadBalancer": { "ingress": ingress } } })
        };
        let shown = |object: &Value| {
            let addrs: Vec<String> = object
                .pointer(PATH)
                .and_then(Value::as_array)
                .map_or(Vec::new(), |all| all.iter().map(|a| a["ip"].as_str().unwrap().to_owned()).collect());
            format!("{} by {}", addrs.join(" "), owners(object).join(" "))
        };
        let empty = json!({ "metadata": { "name": "a" } });
        let one = status(empty, &wish(&["10.0.0.1"]), "a", false).unwrap();
        assert_eq!(shown(&one), "10.0.0.1 by a");
        // The same again is the same, and another's other wish is a conflict.
        assert_eq!(status(one.clone(), &wish(&["10.0.0.1"]), "a", false).unwrap(), one);
        let conflict = status(one.clone(), &wish(&["10.0.0.2"]), "b", false).unwrap_err();
        assert_eq!(conflict, "Apply failed with 1 conflict: conflict with \"a\": .status.loadBalancer.ingress");
        let shared = status(one.clone(), &wish(&["10.0.0.1"]), "b", false).unwrap();
        assert_eq!(shown(&shared), "10.0.0.1 by a b");
        let taken = status(one.clone(), &wish(&["10.0.0.2"]), "b", true).unwrap();
        assert_eq!(shown(&taken), "10.0.0.2 by b");
        // Who no longer wishes gives up what is its own.
        let given_up = status(shared, &json!({}), "a", false).unwrap();
        assert_eq!(shown(&given_up), "10.0.0.1 by b");
        assert_eq!(shown(&status(given_up, &json!({}), "b", false).unwrap()), " by ");
        assert_eq!(shown(&status(one, &json!({}), "b", false).unwrap()), "10.0.0.1 by a");
    }
}
