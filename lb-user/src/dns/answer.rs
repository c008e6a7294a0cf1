//! What is answered out of this node's own knowledge.
//!
//! Invariant: pure. A name in a zone of ours is answered here, with a zone's own record (SOA) wherever there is
//! nothing to tell, so that nobody looks for it elsewhere; None says that others are to be asked.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};

use super::metrics::Origin;
use super::zone::{Meaning, Snapshot};
use super::{Settings, name, records};

#[derive(Clone, Debug)]
pub struct Answer {
    pub origin: Origin,
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The answers end with an alias for this name, which is to be looked up, too.
    pub next: Option<Name>,
}

impl Answer {
    fn new(origin: Origin, code: ResponseCode) -> Self {
        let (answers, authorities, additionals) = (Vec::new(), Vec::new(), Vec::new());
        Answer { origin, code, answers, authorities, additionals, next: None }
    }
}

/// A zone of ours, in which a name is.
struct Ours<'a> {
    origin: Origin,
    zone: &'a Name,
    settings: &'a Settings,
    snapshot: &'a Snapshot,
}

impl Ours<'_> {
    fn negative(&self, code: ResponseCode) -> Answer {
        let mut answer = Answer::new(self.origin, code);
        answer.authorities.extend(records::soa(self.zone, self.settings.config.ttl, self.snapshot.revision));
        answer
    }

    /// Nothing of the kind, where there are none.
    fn of(&self, answers: Vec<Record>, additionals: Vec<Record>) -> Answer {
        if answers.is_empty() {
            return self.negative(ResponseCode::NoError);
        }
        Answer { answers, additionals, ..Answer::new(self.origin, ResponseCode::NoError) }
    }

    /// The addresses of this server's own name.
    fn server(&self, kinds: &[RecordType], owner: &Name) -> Vec<Record> {
        let config = &self.settings.config;
        let kind = |addr: &IpAddr| if addr.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let all = config.addresses.iter().filter(|addr| kinds.contains(&kind(addr)));
        all.map(|addr| records::address(owner, config.ttl, *addr)).collect()
    }

    fn apex(&self, kind: RecordType) -> Answer {
        let ttl = self.settings.config.ttl;
        match kind {
            RecordType::SOA => {
                self.of(records::soa(self.zone, ttl, self.snapshot.revision).into_iter().collect(), Vec::new())
            }
            RecordType::NS => {
                let server = name::below(["ns", "dns"], self.zone);
                let glue = server.map(|server| self.server(&[RecordType::A, RecordType::AAAA], &server));
                self.of(records::ns(self.zone, ttl).into_iter().collect(), glue.unwrap_or_default())
            }
            _ => self.negative(ResponseCode::NoError),
        }
    }

    fn answer(&self, owner: &Name, kind: RecordType, meaning: Meaning) -> Answer {
        let ttl = self.settings.config.ttl;
        match meaning {
            Meaning::Unknown => Answer::new(self.origin, ResponseCode::ServFail),
            Meaning::Nothing => self.negative(ResponseCode::NXDomain),
            Meaning::Empty if owner.iter().count() == self.zone.iter().count() => self.apex(kind),
            Meaning::Empty => self.negative(ResponseCode::NoError),
            Meaning::Version if kind == RecordType::TXT => self.of(vec![records::version(owner)], Vec::new()),
            Meaning::Version => self.negative(ResponseCode::NoError),
            Meaning::NameServer => self.of(self.server(&[kind], owner), Vec::new()),
            Meaning::Alias(target) => {
                let mut target = match Name::from_ascii(&target) {
                    Ok(target) => target,
                    Err(_) => return self.negative(ResponseCode::NXDomain),
                };
                target.set_fqdn(true);
                let mut answer = self.of(vec![records::alias(owner, ttl, &target)], Vec::new());
                answer.next = Some(target).filter(|_| kind != RecordType::CNAME);
                answer
            }
            Meaning::Hosts(hosts) => match kind {
                RecordType::A | RecordType::AAAA => self.of(records::addresses(&hosts, owner, ttl, kind), Vec::new()),
                RecordType::SRV => {
                    let (answers, additionals) = records::services(&hosts, owner, self.zone, ttl);
                    self.of(answers, additionals)
                }
                _ => self.negative(ResponseCode::NoError),
            },
        }
    }
}

/// None: others are to be asked. Without a snapshot nothing is known yet of the cluster's names.
pub fn answer(settings: &Settings, snapshot: Option<&Snapshot>, owner: &Name, kind: RecordType) -> Option<Answer> {
    if let Some(answer) = host(settings, owner, kind) {
        return Some(answer);
    }
    let failed = |origin| Some(Answer::new(origin, ResponseCode::ServFail));
    if let Some(labels) = name::above(owner, &settings.domain) {
        let Some(snapshot) = snapshot else { return failed(Origin::Cluster) };
        let ours = Ours { origin: Origin::Cluster, zone: &settings.domain, settings, snapshot };
        return Some(ours.answer(owner, kind, snapshot.zone.find(&labels, settings.config.pods)));
    }
    if let Some(zone) = &settings.external
        && let Some(labels) = name::above(owner, zone)
    {
        let Some(snapshot) = snapshot else { return failed(Origin::External) };
        let ours = Ours { origin: Origin::External, zone, settings, snapshot };
        return Some(ours.answer(owner, kind, snapshot.zone.find_external(&labels)));
    }
    reverse(settings, snapshot, owner, kind)
}

/// Of the configuration's hosts.
fn host(settings: &Settings, owner: &Name, kind: RecordType) -> Option<Answer> {
    let ttl = settings.config.ttl;
    let mut answer = Answer::new(Origin::Hosts, ResponseCode::NoError);
    if let Some((_, all)) = settings.hosts.iter().find(|(name, _)| name == owner) {
        let wanted = |addr: &&IpAddr| if addr.is_ipv4() { kind == RecordType::A } else { kind == RecordType::AAAA };
        answer.answers.extend(all.iter().filter(wanted).map(|addr| records::address(owner, ttl, *addr)));
        return Some(answer);
    }
    if kind != RecordType::PTR || settings.hosts.is_empty() {
        return None;
    }
    let addr = single(owner)?;
    let names = settings.hosts.iter().filter(|(_, all)| all.contains(&addr));
    answer.answers.extend(names.map(|(name, _)| records::ptr(owner, ttl, name.clone())));
    if answer.answers.is_empty() { None } else { Some(answer) }
}

/// The one address that a name below `arpa` is about.
fn single(owner: &Name) -> Option<IpAddr> {
    let net = name::reversed(owner)?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

fn reverse(settings: &Settings, snapshot: Option<&Snapshot>, owner: &Name, kind: RecordType) -> Option<Answer> {
    let asked = name::reversed(owner)?;
    let zone = settings.reverse.iter().find(|(net, _)| net.contains(&asked));
    let Some(snapshot) = snapshot else {
        return zone.map(|_| Answer::new(Origin::Reverse, ResponseCode::ServFail));
    };
    let ttl = settings.config.ttl;
    let names = single(owner).map_or(Vec::new(), |addr| snapshot.zone.find_address(addr));
    let zone = match zone {
        Some((_, zone)) => zone,
        // An endpoint somewhere else.
        None if !names.is_empty() => owner,
        None => return None,
    };
    let ours = Ours { origin: Origin::Reverse, zone, settings, snapshot };
    if owner == zone && names.is_empty() {
        return Some(ours.apex(kind));
    }
    if names.is_empty() && !snapshot.zone.is_whole() {
        return Some(ours.answer(owner, kind, Meaning::Unknown));
    }
    if names.is_empty() {
        let code = if single(owner).is_some() { ResponseCode::NXDomain } else { ResponseCode::NoError };
        return Some(ours.negative(code));
    }
    if kind != RecordType::PTR {
        return Some(ours.negative(ResponseCode::NoError));
    }
    let target = |text: &String| name::below(text.split('.'), &settings.domain);
    let all = names.iter().filter_map(target).map(|target| records::ptr(owner, ttl, target));
    Some(ours.of(all.collect(), Vec::new()))
}
