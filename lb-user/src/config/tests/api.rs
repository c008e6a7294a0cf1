//! A live API as the source: what is read of it, and what is wrong with a kubeconfig.

use super::*;
use crate::check::check;

const CONFIG: &str = "node: n\ninside: x\ncluster: { kubeconfig: k.yaml, context: edge }\n";

const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{ name: c, cluster: { server: 'https://192.0.2.1:6443' } }, { name: d, cluster: {} }]
users: [{ name: u, user: { token: t } }]
contexts:
- { name: edge, context: { cluster: c, user: u } }
- { name: none, context: { cluster: d, user: u } }
- { name: lost, context: { cluster: e, user: u } }
";

#[test]
fn keys() {
    let api = |text: &str| parse(&format!("node: n\ninside: x\ncluster: {{ {text} }}")).unwrap().api;
    assert_eq!(api("podSubnet: 10.0.0.0/8"), None);
    let access = Access { kubeconfig: None, context: None, pods: false, policies: false };
    assert_eq!(api("kubeconfig: in-cluster"), Some(access.clone()));
    assert_eq!(api("kubeconfig: in-cluster, endpoints: pods"), Some(Access { pods: true, ..access.clone() }));
    let named =
        Access { kubeconfig: Some("./in-cluster".into()), context: Some("edge".into()), pods: false, policies: false };
    assert_eq!(api("kubeconfig: ./in-cluster, context: edge, endpoints: slices"), Some(named));
}

#[test]
fn kubeconfigs() {
    let folder = std::env::temp_dir().join(format!("stellwerk-kubeconfig-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (config, kubeconfig) = (folder.join("c.yaml"), folder.join("k.yaml"));
    let path = format!("{}/", folder.display());
    let checked = |context: &str| {
        std::fs::write(&config, CONFIG.replace("edge", context)).unwrap();
        match check(&config) {
            Ok(text) => text.lines().last().unwrap_or_default().replace(&path, ""),
            Err(errors) => errors.to_string().replace(&path, ""),
        }
    };
    let at = "c.yaml:3:24: cluster.kubeconfig: k.yaml: ";
    assert_eq!(checked("edge"), format!("{at}there is no such file"));
    std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
    assert_eq!(checked("edge"), "services        of the Kubernetes API at https://192.0.2.1:6443 (k.yaml (edge))");
    assert_eq!(checked("far"), format!("{at}has no context `far`; expected one of edge, none, lost"));
    let none =
        |cluster: &str, name: &str| format!("{at}names no server for the cluster `{cluster}` of the context `{name}`");
    assert_eq!(checked("none"), none("d", "none"));
    assert_eq!(checked("lost"), none("e", "lost"));
    assert_eq!(checked("''"), "c.yaml:3:41: cluster.context: `` is not the name of a context of the kubeconfig");
    std::fs::write(&config, CONFIG.replace(", context: edge", "")).unwrap();
    let unnamed = check(&config).unwrap_err().to_string().replace(&path, "");
    assert_eq!(unnamed, format!("{at}names no current-context"));
    std::fs::write(&kubeconfig, "clusters: [").unwrap();
    assert!(checked("edge").starts_with(&format!("{at}failed to parse kubeconfig YAML: ")), "{}", checked("edge"));
    std::fs::remove_file(&kubeconfig).unwrap();
    std::fs::create_dir(&kubeconfig).unwrap();
    assert_eq!(checked("edge"), format!("{at}is a folder; expected a file"));
    std::fs::remove_dir_all(&folder).unwrap();
}
