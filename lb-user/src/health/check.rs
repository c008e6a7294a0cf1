//! How a service's endpoints are probed, as text: `http path=/healthz interval=2s`.
//!
//! Invariant: a check that is made makes sense: a probe's time ends before the next one's begins.

use std::time::Duration;

use crate::config::{integer, seconds};
use crate::intent::Protocol;

pub const RIGHT: &str = "off, tcp, http, https, grpc or udp, and such words as port=8080, path=/healthz, host=NAME, \
                         service=NAME, interval=5s, timeout=500ms, rise=2, fall=3 or allFailing=closed behind it";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub kind: Kind,
    /// None: the endpoint's own.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// So many probes in a row change an endpoint's state.
    pub rise: u32,
    pub fall: u32,
    /// Where all fail, all serve.
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Http { tls: bool, path: String, host: Option<String> },
    Grpc { service: String },
    Udp,
}

impl Check {
    /// None: off.
    pub fn parse(text: &str) -> Result<Option<Check>, String> {
        let mut words = text.split_whitespace();
        let kind = words.next().ok_or_else(String::new)?;
        let http = |tls| Kind::Http { tls, path: "/".into(), host: None };
        let kind = match kind {
            "off" => return words.next().map_or(Ok(None), |word| Err(format!("has `{word}` behind off"))),
            "tcp" => Kind::Tcp,
            "http" => http(false),
            "https" => http(true),
            "grpc" => Kind::Grpc { service: String::new() },
            "udp" => Kind::Udp,
            _ => return Err(String::new()),
        };
        let second = Duration::from_secs(1);
        let mut check = Check { kind, port: None, interval: 5 * second, timeout: second, rise: 2, fall: 3, open: true };
        let (mut seen, mut timed) = (Vec::new(), false);
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("has the word `{word}`"))?;
            if seen.contains(&key) {
                return Err(format!("has {key} twice"));
            }
            seen.push(key);
            timed |= key == "timeout";
            check.set(key, value).map_err(|why| match why.as_str() {
                "" => format!("has `{word}`"),
                why => format!("has `{word}`, which {why}"),
            })?;
        }
        if !timed {
            check.timeout = check.timeout.min(check.interval);
        }
        if check.timeout > check.interval {
            return Err("has a timeout longer than its interval".into());
        }
        Ok(Some(check))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, &mut self.kind) {
            ("path", Kind::Http { path, .. }) if value.starts_with('/') => *path = value.into(),
            ("host", Kind::Http { host, .. }) if !value.is_empty() => *host = Some(value.into()),
            ("service", Kind::Grpc { service }) => *service = value.into(),
            ("port", _) => self.port = Some(integer(value, 1, 65_535)? as u16),
            ("interval", _) => self.interval = time(value)?,
            ("timeout", _) => self.timeout = time(value)?,
            ("rise", _) => self.rise = integer(value, 1, 100)?,
            ("fall", _) => self.fall = integer(value, 1, 100)?,
            ("allFailing", _) => {
                self.open = match value {
                    "open" => true,
                    "closed" => false,
                    _ => return Err(String::new()),
                }
            }
            _ => return Err(String::new()),
        }
        Ok(())
    }

    /// Where an endpoint of a service port is probed; None: it isn't.
    pub fn port(&self, protocol: Protocol, port: u16) -> Option<u16> {
        let own = if self.kind == Kind::Udp { Protocol::Udp } else { Protocol::Tcp };
        self.port.or((protocol == own).then_some(port))
    }
}

/// As everywhere, and milliseconds.
fn time(text: &str) -> Result<Duration, String> {
    match text.strip_suffix("ms") {
        Some(number) => Ok(Duration::from_millis(integer(number, 100, 60_000)?.into())),
        None => Ok(Duration::from_secs(seconds(text)?.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_by_their_text() {
        let plain = |text| Check::parse(text).unwrap().unwrap();
        let tcp = plain("tcp");
        let second = Duration::from_secs(1);
        let want =
            Check { kind: Kind::Tcp, port: None, interval: 5 * second, timeout: second, rise: 2, fall: 3, open: true };
        assert_eq!(tcp, want);
        let http = plain(" https path=/up host=a.org port=8443 interval=500ms rise=1 fall=1 allFailing=closed");
        let kind = Kind::Http { tls: true, path: "/up".into(), host: Some("a.org".into()) };
        let half = Duration::from_millis(500);
        let want = Check { kind, port: Some(8443), interval: half, timeout: half, rise: 1, fall: 1, open: false };
        assert_eq!(http, want);
        assert_eq!(plain("grpc service=a.B").kind, Kind::Grpc { service: "a.B".into() });
        assert_eq!(Check::parse("off"), Ok(None));
        for (protocol, want) in
            [(Protocol::Tcp, [Some(80), None, Some(8443)]), (Protocol::Udp, [None, Some(80), Some(8443)])]
        {
            assert_eq!([tcp.port(protocol, 80), plain("udp").port(protocol, 80), http.port(protocol, 80)], want);
        }
        for (text, why) in [
            ("", ""),
            ("ping", ""),
            ("off now", "has `now` behind off"),
            ("tcp fast", "has the word `fast`"),
            ("tcp path=/", "has `path=/`"),
            ("http path=x", "has `path=x`"),
            ("tcp port=0", "has `port=0`, which is too small"),
            ("tcp fall=1 fall=2", "has fall twice"),
            ("tcp interval=50ms", "has `interval=50ms`, which is too small"),
            ("tcp interval=1s timeout=2s", "has a timeout longer than its interval"),
            ("udp allFailing=half", "has `allFailing=half`"),
        ] {
            assert_eq!(Check::parse(text), Err(why.to_owned()), "{text}");
        }
    }
}
