//! `cluster.kubeconfig` and what goes with it: a live Kubernetes API as the source of services.
//!
//! Invariant: services come from one place, files or an API. Not here: talking to it ([`crate::source::live`]).

use std::path::{Path, PathBuf};

use super::at::{At, Log};
use super::{Config, cannot_read};
use crate::source::live::Access;

pub(super) fn read(config: &mut Config, cluster: &At<'_>, log: &mut Log) {
    let right = "the path of a kubeconfig, or in-cluster";
    let kubeconfig = cluster.get("kubeconfig");
    let context = cluster.get("context");
    let endpoints = cluster.get("endpoints");
    for at in [&context, &endpoints].into_iter().flatten().filter(|_| kubeconfig.is_none()) {
        log.error(at, "says how a Kubernetes API is read, but there is none; expected cluster.kubeconfig, too");
    }
    let name = context.as_ref().and_then(|at| at.string(log, "the name of a context of the kubeconfig"));
    let pods = endpoints.as_ref().and_then(|at| at.value(log, "slices or pods", pods));
    let Some(at) = kubeconfig else { return };
    config.places.note(&at);
    if cluster.get("manifests").is_some() {
        log.error(&at, "is given beside cluster.manifests; expected one source of services");
    }
    let Some(text) = at.string(log, right) else { return };
    let kubeconfig = (text != "in-cluster").then(|| PathBuf::from(text));
    if let Some(context) = context.as_ref().filter(|_| kubeconfig.is_none()) {
        log.error(context, "names a context, but in-cluster has none; expected cluster.kubeconfig to be a path");
    }
    config.api = Some(Access { kubeconfig, context: name, pods: pods.unwrap_or(false), policies: false });
}

fn pods(text: &str) -> Result<bool, String> {
    match text {
        "slices" => Ok(false),
        "pods" => Ok(true),
        _ => Err(String::new()),
    }
}

/// What is wrong with the kubeconfig, where there is one.
pub(super) fn wrong(access: &Access) -> Option<String> {
    let path: &Path = access.kubeconfig.as_deref()?;
    let open = std::fs::File::open(path).and_then(|file| file.metadata());
    let error = match open {
        Err(error) => cannot_read(&error),
        Ok(meta) if meta.is_dir() => "is a folder; expected a file".to_owned(),
        Ok(_) => access.server().err()?,
    };
    Some(format!("{}: {error}", path.display()))
}
