//! `examples/kubernetes`: what is applied there fits together, and is what the agent asks for elsewhere. That the role
//! is what is used, `live_source.rs` knows.

use std::collections::{BTreeMap, BTreeSet};

use lb_user::cli::{Cli, Command};
use serde_json::Value;
use stellwerk_tests::netns::unit;

const FILES: [(&str, &str); 3] = [
    ("rbac.yaml", include_str!("../../examples/kubernetes/rbac.yaml")),
    ("configmap.yaml", include_str!("../../examples/kubernetes/configmap.yaml")),
    ("daemonset.yaml", include_str!("../../examples/kubernetes/daemonset.yaml")),
];
const KUSTOMIZATION: &str = include_str!("../../examples/kubernetes/kustomization.yaml");
const CONTAINERFILE: &str = include_str!("../../examples/kubernetes/Containerfile");

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn of(kind: &str) -> Value {
    let mut all: Vec<Value> = FILES.iter().flat_map(|(_, text)| documents(text)).collect();
    all.retain(|document| document["kind"] == kind);
    assert_eq!(all.len(), 1, "one {kind}");
    all.remove(0)
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn words(value: &Value) -> BTreeSet<String> {
    list(value).iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn everything_is_applied_once() {
    let said = words(&documents(KUSTOMIZATION)[0]["resources"]);
    assert_eq!(said, FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn the_configuration_is_accepted() {
    let map = of("ConfigMap");
    let dir = std::env::temp_dir().join(format!("stellwerk-configmap-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let mut files = BTreeMap::new();
    for (name, text) in map["data"].as_object().unwrap() {
        std::fs::write(dir.join(name), text.as_str().unwrap()).unwrap();
        files.insert(name.clone(), lb_user::check::check(&dir.join(name)).map_err(|errors| errors.to_string()));
    }
    std::fs::remove_dir_all(&dir).unwrap();
    let said = files["stellwerk.yaml"].as_ref().unwrap();
    assert!(said.contains("of the Kubernetes API") && !said.contains("notice"), "{said}");
    assert_eq!(files.len(), 1);
}

#[test]
fn the_agent_has_the_units_rights_and_no_others() {
    let pod = &of("DaemonSet")["spec"]["template"]["spec"];
    let agent = &list(&pod["containers"])[0];
    let rights = &agent["securityContext"];
    let unit: BTreeSet<String> = unit::capabilities().unwrap().iter().map(|name| name.replace("CAP_", "")).collect();
    assert_eq!(words(&rights["capabilities"]["add"]), unit);
    assert!(rights["privileged"].is_null() && rights["readOnlyRootFilesystem"] == true);
    for container in list(&pod["initContainers"]).iter().chain(list(&pod["containers"])) {
        assert_eq!(words(&container["securityContext"]["capabilities"]["drop"]), ["ALL".to_owned()].into());
        assert_eq!(container["image"], format!("stellwerk:{}", env!("CARGO_PKG_VERSION")));
    }
    assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&true.into(), &"Default".into()));
}

/// Volumes are there and used, names lead to what they name, and the words are those of the command line.
#[test]
fn names_lead_somewhere() {
    let (set, map) = (of("DaemonSet"), of("ConfigMap"));
    let pod = &set["spec"]["template"]["spec"];
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let volumes: BTreeSet<String> = list(&pod["volumes"]).iter().map(name).collect();
    let containers = list(&pod["initContainers"]).iter().chain(list(&pod["containers"]));
    let mounts: Vec<&Value> = containers.flat_map(|container| list(&container["volumeMounts"])).collect();
    assert_eq!(volumes, mounts.iter().map(|mount| name(mount)).collect());
    let config = list(&pod["volumes"]).iter().find(|volume| volume["name"] == "config").unwrap();
    assert_eq!(config["configMap"]["name"], map["metadata"]["name"]);
    assert_eq!(pod["serviceAccountName"], of("ServiceAccount")["metadata"]["name"]);
    for document in [&set, &map, &of("ServiceAccount")] {
        assert_eq!(document["metadata"]["namespace"], "kube-system");
    }
    let read = |words: Vec<&str>| Cli::read(words.into_iter().map(Into::into)).unwrap();
    let args: Vec<String> =
        list(&list(&pod["containers"])[0]["args"]).iter().map(|w| w.as_str().unwrap().into()).collect();
    let line: Vec<&str> = std::iter::once("stellwerk").chain(args.iter().map(String::as_str)).collect();
    let Command::Run(run) = read(line.clone()).command else { panic!("{line:?}") };
    let place = mounts.iter().find(|mount| mount["name"] == "config").unwrap()["mountPath"].as_str().unwrap();
    assert!(
        run.config.starts_with(place) && map["data"][run.config.file_name().unwrap().to_str().unwrap()].is_string()
    );
    let init: Vec<&str> =
        list(&list(&pod["initContainers"])[0]["command"]).iter().map(|w| w.as_str().unwrap()).collect();
    assert!(matches!(read(init.clone()).command, Command::Cni(_)), "{init:?}");
    // The image's own words are the same, where nothing else is said.
    let quoted: Vec<String> = args.iter().map(|word| format!("{word:?}")).collect();
    assert!(CONTAINERFILE.contains(&format!("CMD [{}]", quoted.join(", "))), "{quoted:?}");
    assert!(CONTAINERFILE.lines().any(|line| line == "FROM scratch") && init[0] == "/usr/bin/stellwerk");
}
