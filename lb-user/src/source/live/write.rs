//! What a live cluster is told: the addresses that load balancers have, in their status, by server-side apply.
//!
//! Invariant: only what the cluster doesn't say already is written, and it is written again until it does. Not here:
//! who writes; of several nodes one does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use kube::Client;
use kube::api::{Patch, PatchParams};
use kube::core::Request;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::backoff::Backoff;
use super::client::{Access, words};
use crate::source::manifests::ServiceName;

/// By which the API knows whose a field is.
const MANAGER: &str = "stellwerk";
const ANSWER: Duration = Duration::from_secs(10);
/// What was written is seen by a watch sooner than that; else it is written again.
const SEEN: Duration = Duration::from_secs(5);

/// Services, and what their status shall say.
pub type Statuses = BTreeMap<ServiceName, Vec<IpAddr>>;

/// Writes for as long as the sender is there.
pub(super) async fn run(access: Access, mut wanted: watch::Receiver<Statuses>) {
    let mut backoff = Backoff::default();
    let mut written: BTreeMap<ServiceName, (Vec<IpAddr>, Instant)> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        written.retain(|name, (addresses, at)| now.get(name) == Some(addresses) && at.elapsed() < SEEN);
        let due: Vec<_> = now.iter().filter(|(name, _)| !written.contains_key(*name)).collect();
        match write_all(&access, &due).await {
            Ok(()) => {
                written.extend(due.into_iter().map(|(name, all)| (name.clone(), (all.clone(), Instant::now()))));
                backoff = Backoff::default();
                let pause = if now.is_empty() { Duration::MAX } else { SEEN };
                tokio::select! {
                    changed = wanted.changed() => if changed.is_err() {
                        return;
                    },
                    () = sleep(pause) => {}
                }
            }
            Err(error) => {
                let wait = backoff.next();
                warn!("writing services' addresses to the Kubernetes API: {error}; again in {} ms", wait.as_millis());
                sleep(wait).await;
                if wanted.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

async fn write_all(access: &Access, due: &[(&ServiceName, &Vec<IpAddr>)]) -> Result<(), String> {
    if due.is_empty() {
        return Ok(());
    }
    let client = access.client().await?;
    let mut failed = None;
    for (name, addresses) in due {
        if let Err(error) = write(&client, name, addresses).await {
            // One that is refused keeps no other from being written.
            failed = Some(format!("{name}: {error}"));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn write(client: &Client, name: &ServiceName, addresses: &[IpAddr]) -> Result<(), String> {
    let ingress: Vec<Value> = addresses.iter().map(|addr| json!({ "ip": addr, "ipMode": "VIP" })).collect();
    let wish = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "namespace": name.namespace, "name": name.name },
        "status": { "loadBalancer": { "ingress": ingress } },
    });
    let services = Request::new(format!("/api/v1/namespaces/{}/services", name.namespace));
    let params = PatchParams::apply(MANAGER).force();
    let request = services.patch_subresource("status", &name.name, &params, &Patch::Apply(wish));
    let request = request.map_err(|error| error.to_string())?;
    match timeout(ANSWER, client.request::<Value>(request)).await {
        Ok(Ok(_)) => {
            let all = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            info!("the status of {name} says: {all}");
            Ok(())
        }
        // It is gone, and the watch will say so.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}
