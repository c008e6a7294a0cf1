//! Which endpoints a node is meant to use, by their hints (KEP-2433, KEP-3015).
//!
//! Invariant: as kube-proxy has it: hints count only where every ready endpoint has one of the kind and at
//! least one is for this node, or its zone; else all are used alike. Not here: who gives hints.

use super::Endpoint;

/// Says of a family's ready endpoints which of them this node prefers; all, where hints don't apply.
pub fn preferred(ready: &[&Endpoint], node: &str, zone: Option<&str>) -> Vec<bool> {
    let is_for = |hints: &[String], here: &str| hints.iter().any(|hint| hint == here);
    if ready.iter().all(|e| !e.hints.nodes.is_empty()) {
        let near: Vec<bool> = ready.iter().map(|e| is_for(&e.hints.nodes, node)).collect();
        if near.contains(&true) {
            return near;
        }
    }
    if let Some(zone) = zone
        && ready.iter().all(|e| !e.hints.zones.is_empty())
    {
        let near: Vec<bool> = ready.iter().map(|e| is_for(&e.hints.zones, zone)).collect();
        if near.contains(&true) {
            return near;
        }
    }
    vec![true; ready.len()]
}
