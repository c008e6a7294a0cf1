//! Questions to the agent's own socket, for the command line.
//!
//! Invariant: what is shown is what a client in the cluster is told, since it is the same code that answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::agent;
use crate::apply::Paths;
use crate::config::Config;
use crate::show::{Cell, Table};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a name stands for: its records, and what there is to say beside them.
pub fn query(paths: &Paths, name: &str, kind: &str) -> Result<(Table, Option<String>)> {
    let mut owner = Name::from_ascii(name).with_context(|| format!("`{name}` is no name"))?;
    owner.set_fqdn(true);
    let right = "expected a type of records, such as A, AAAA, SRV or PTR";
    let Ok(kind) = kind.to_ascii_uppercase().parse::<RecordType>() else { bail!("`{kind}` is none; {right}") };
    let answers = ask(paths, &owner, kind, DNSClass::IN)?;
    let code = answers.first().map_or(ResponseCode::ServFail, |m| m.response_code);
    let records: Vec<Record> = answers.into_iter().flat_map(|m| m.answers).collect();
    let said = match code {
        ResponseCode::NoError if records.is_empty() => Some(format!("{owner} has no records of the type {kind}")),
        ResponseCode::NoError => None,
        ResponseCode::NXDomain => bail!("{owner}: there is no such name (NXDOMAIN)"),
        ResponseCode::ServFail => bail!("{owner}: nobody who knows answers (SERVFAIL)"),
        code => bail!("{owner}: {code}"),
    };
    Ok((table(&records), said))
}

/// All records of the cluster's zone.
pub fn dump(paths: &Paths) -> Result<Table> {
    let (about, _) = agent::running(paths);
    let config = Config::load(&about.config)?;
    let dns = config.dns.with_context(|| format!("{} has no cluster.dns", about.config.display()))?;
    let mut zones = vec![dns.domain];
    zones.extend(dns.external_zone);
    let mut all = Vec::new();
    for zone in zones {
        let mut owner = Name::from_ascii(&zone)?;
        owner.set_fqdn(true);
        let mut records: Vec<Record> =
            ask(paths, &owner, RecordType::AXFR, DNSClass::IN)?.into_iter().flat_map(|m| m.answers).collect();
        // It is told twice, to say where the end is.
        records.pop();
        all.extend(records);
    }
    Ok(table(&all))
}

/// What was counted since the agent began.
pub fn counts(paths: &Paths) -> Result<Table> {
    let owner = Name::from_ascii("counts.stellwerk.")?;
    let mut table = Table::new(&["kind", "name", "count", "text"]);
    for record in ask(paths, &owner, RecordType::TXT, DNSClass::CH)?.into_iter().flat_map(|m| m.answers) {
        let RData::TXT(txt) = record.data else { continue };
        let words: Vec<String> = txt.txt_data.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        if let Ok([kind, name, count, text]) = <[String; 4]>::try_from(words) {
            let count: u64 = count.parse().context("a count")?;
            table.push([kind.into(), name.into(), count.into(), text.into()]);
        }
    }
    Ok(table)
}

/// Asks; a transfer is answered by several messages.
fn ask(paths: &Paths, owner: &Name, kind: RecordType, class: DNSClass) -> Result<Vec<Message>> {
    let socket = paths.dns();
    let mut stream = connect(&socket)?;
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut query = Query::query(owner.clone(), kind);
    query.set_query_class(class);
    message.add_query(query);
    let bytes = message.to_vec()?;
    stream.write_all(&(bytes.len() as u16).to_be_bytes())?;
    stream.write_all(&bytes)?;
    let mut all = Vec::new();
    loop {
        let mut len = [0; 2];
        stream.read_exact(&mut len).context("the agent closed the connection")?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut bytes)?;
        all.push(Message::from_vec(&bytes).context("the agent's answer")?);
        let soas = || all.iter().flat_map(|m| &m.answers).filter(|r| r.record_type() == RecordType::SOA);
        if kind != RecordType::AXFR || all[0].response_code != ResponseCode::NoError || soas().count() > 1 {
            return Ok(all);
        }
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "{}: no agent answers for names; `stellwerk run` does, where its configuration has cluster.dns",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Texts as they stand in a zone's file.
fn data(data: &RData) -> String {
    match data {
        RData::TXT(txt) => {
            let words = txt.txt_data.iter().map(|w| format!("{:?}", String::from_utf8_lossy(w)));
            words.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string().trim_end().to_owned(),
    }
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new(&["name", "ttl", "type", "data"]);
    for record in records {
        let data: Cell = data(&record.data).into();
        table.push([record.name.to_ascii().into(), record.ttl.into(), record.record_type().to_string().into(), data]);
    }
    table
}
