//! The whole zone at once: for transfers (RFC 5936) and for `stellwerk dns dump`.
//!
//! Invariant: it holds exactly the records that single queries are answered with, but pods' by their addresses
//! where every address has one.

use std::collections::BTreeSet;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, Record, RecordType};

use super::zone::{Snapshot, hostname, protocol_name};
use super::{Settings, answer, name, wire};
use crate::config::Pods;
use crate::source::manifests::names::{Named, Target};

/// Records of one message.
const EACH: usize = 100;

/// The zone's records, its SOA first and last. None: it is none of ours that is transferred.
pub fn records(settings: &Settings, snapshot: &Snapshot, zone: &Name) -> Option<Vec<Record>> {
    let names = snapshot.zone.names();
    let mut below: BTreeSet<Vec<String>> = BTreeSet::new();
    if *zone == settings.domain {
        below.insert(vec!["dns-version".into()]);
        below.insert(vec!["ns".into(), "dns".into()]);
        for (service, named) in &names.services {
            let base = [service.name.clone(), service.namespace.clone(), "svc".to_owned()];
            below.extend(of_service(named).into_iter().map(|labels| [labels, base.to_vec()].concat()));
        }
        let verified = settings.config.pods == Pods::Verified;
        for (namespace, addr) in names.pods.keys().filter(|_| verified) {
            below.insert(vec![name::dashed(*addr), namespace.clone(), "pod".into()]);
        }
    } else if Some(zone) == settings.external.as_ref() {
        below.insert(vec!["ns".into(), "dns".into()]);
        for (service, named) in names.services.iter().filter(|(_, named)| !named.external.is_empty()) {
            let base = [service.name.clone(), service.namespace.clone()];
            below.insert(base.to_vec());
            below.extend(ports(&named.ports).into_iter().map(|labels| [labels, base.to_vec()].concat()));
        }
    } else {
        return None;
    }
    let of = |owner: &Name, kind: RecordType| {
        let answer = answer::answer(settings, Some(snapshot), owner, kind);
        answer.map_or(Vec::new(), |answer| answer.answers)
    };
    let soa = of(zone, RecordType::SOA);
    let mut all = soa.clone();
    all.extend(of(zone, RecordType::NS));
    for labels in below {
        let Some(owner) = name::below(labels.iter().map(String::as_str), zone) else { continue };
        let is_port = labels.len() > 3 && labels[0].starts_with('_');
        let kinds: &[RecordType] = match is_port {
            true => &[RecordType::SRV],
            false => &[RecordType::A, RecordType::AAAA, RecordType::CNAME, RecordType::TXT],
        };
        for kind in kinds {
            all.extend(of(&owner, *kind).into_iter().filter(|record| record.record_type() == *kind));
        }
    }
    all.extend(soa);
    Some(all)
}

/// The labels of names before a service's own.
fn of_service(named: &Named) -> BTreeSet<Vec<String>> {
    let mut all = BTreeSet::from([Vec::new()]);
    for endpoint in &named.endpoints {
        all.insert(vec![hostname(endpoint)]);
        if named.target == Target::Endpoints {
            all.extend(ports(&endpoint.ports));
        }
    }
    if let Target::Addresses(_) = named.target {
        all.extend(ports(&named.ports));
    }
    all
}

fn ports(ports: &[crate::source::manifests::names::Port]) -> Vec<Vec<String>> {
    let named = ports.iter().filter(|port| !port.name.is_empty());
    named.map(|port| vec![format!("_{}", port.name), format!("_{}", protocol_name(port.protocol))]).collect()
}

/// As messages, each like the first.
pub fn messages(first: &Message, records: Vec<Record>) -> Vec<Vec<u8>> {
    let message = |records: &[Record]| {
        let mut message = first.clone();
        message.metadata.authoritative = true;
        message.answers = records.to_vec();
        wire::encode(message, wire::LONGEST).0
    };
    records.chunks(EACH).map(message).collect()
}
