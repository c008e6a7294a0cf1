//! From a line to a [`Spec`].

use std::str::FromStr;

use super::{End, Spec};

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let spaced = text.replace('{', " { ").replace('}', " } ");
        let tokens: Vec<&str> = spaced.split_whitespace().collect();
        let (spec, rest) = spec(&tokens)?;
        match rest {
            [] => Ok(spec),
            [more, ..] => Err(format!("{more}: not expected here")),
        }
    }
}

fn spec<'a, 'b>(tokens: &'a [&'b str]) -> Result<(Spec, &'a [&'b str]), String> {
    let (kind, mut rest) = tokens.split_first().ok_or("a packet is expected")?;
    let mut spec = Spec { kind: (*kind).into(), ..Spec::default() };
    if let [src, ">", dst, more @ ..] = rest {
        spec.src = Some(src.parse()?);
        spec.dst = Some(dst.parse()?);
        rest = more;
    }
    while let Some((token, more)) = rest.split_first() {
        match *token {
            "{" => {
                let (inner, more) = self::spec(more)?;
                spec.inner = Some(Box::new(inner));
                let ["}", more @ ..] = more else {
                    return Err("a closing brace is expected".into());
                };
                rest = more;
                continue;
            }
            "}" => break,
            _ => {}
        }
        let (key, value) = token.split_once('=').unwrap_or((token, ""));
        if spec.attrs.insert(key.into(), value.into()).is_some() {
            return Err(format!("{key} is said twice"));
        }
        rest = more;
    }
    Ok((spec, rest))
}

impl FromStr for End {
    type Err = String;

    /// `name`, `name:80`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = |p: &str| p.parse().map(Some).map_err(|_| format!("{text}: {p} is no port"));
        if let Some((host, p)) = text.strip_prefix('[').and_then(|t| t.split_once("]:")) {
            return Ok(End { host: host.into(), port: port(p)? });
        }
        match text.split_once(':') {
            Some((host, p)) if !p.contains(':') => Ok(End { host: host.into(), port: port(p)? }),
            _ => Ok(End { host: text.into(), port: None }),
        }
    }
}

impl Spec {
    /// The line again.
    pub fn text(&self) -> String {
        let mut out = self.kind.clone();
        if let (Some(src), Some(dst)) = (&self.src, &self.dst) {
            out += &format!(" {} > {}", src.text(), dst.text());
        }
        // Flags first, as a reader looks for them there.
        for (key, _) in self.attrs.iter().filter(|(_, v)| v.is_empty()) {
            out += &format!(" {key}");
        }
        for (key, value) in self.attrs.iter().filter(|(_, v)| !v.is_empty()) {
            out += &format!(" {key}={value}");
        }
        if let Some(inner) = &self.inner {
            out += &format!(" {{ {} }}", inner.text());
        }
        out
    }

    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.attrs.insert(key.into(), value.to_string());
    }

    pub fn has(&self, key: &str) -> bool {
        self.attrs.contains_key(key)
    }

    /// The number that `key=` gives, decimal or `0x`.
    pub fn number(&self, key: &str, default: u64) -> Result<u64, String> {
        let Some(value) = self.attrs.get(key) else {
            return Ok(default);
        };
        let parsed = match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => value.parse(),
        };
        parsed.map_err(|_| format!("{key}={value}: not a number"))
    }
}

impl End {
    pub fn text(&self) -> String {
        match self.port {
            Some(port) if self.host.contains(':') => format!("[{}]:{port}", self.host),
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}
