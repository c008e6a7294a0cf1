//! Commands of other edge devices' runbooks: `Add-HcsNetRoute`, `Get-HcsNetRoute`, `Remove-HcsNetRoute`.
//!
//! Invariant: each becomes the words of `stellwerk route …`, and nothing else is changed. Names of
//! commands and parameters are in any case, and a value may be joined by a colon, as in PowerShell.

use std::ffi::OsString;

const COMMANDS: [(&str, &str); 3] =
    [("Add-HcsNetRoute", "add"), ("Get-HcsNetRoute", "get"), ("Remove-HcsNetRoute", "remove")];
const PARAMETERS: [(&str, &str); 4] = [
    ("-InterfaceAlias", "--interface"),
    ("-DestinationPrefix", "--destination"),
    ("-NextHop", "--next-hop"),
    ("-RouteMetric", "--metric"),
];

/// The words of a command line, in our own terms.
pub fn translate(words: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let words: Vec<OsString> = words.into_iter().collect();
    let named = |word: &OsString| {
        let found = COMMANDS.iter().find(|(name, _)| word.to_str().is_some_and(|word| word.eq_ignore_ascii_case(name)));
        found.copied()
    };
    let Some((at, (name, command))) = words.iter().enumerate().find_map(|(at, word)| Some((at, named(word)?))) else {
        return Ok(words);
    };
    // What stands before the command are options of ours; anything else means that it is a value.
    let before_is_ours = words[1..at].iter().all(|word| word.to_str().is_some_and(|w| !w.starts_with("route")));
    if !before_is_ours {
        return Ok(words);
    }
    let mut all = words[..at].to_vec();
    all.extend(["route".into(), command.into()]);
    for word in &words[at + 1..] {
        all.extend(parameter(name, word)?);
    }
    Ok(all)
}

fn parameter(command: &str, word: &OsString) -> Result<Vec<OsString>, String> {
    let text = word.to_str().unwrap_or_default();
    let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
    // Short forms (`-i`), long ones (`--json`), values and negative numbers stay.
    let is_parameter = text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()));
    if !is_parameter || name.len() <= 2 {
        return Ok(vec![word.clone()]);
    }
    let Some((_, ours)) = PARAMETERS.iter().find(|(theirs, _)| name.eq_ignore_ascii_case(theirs)) else {
        let names: Vec<_> = PARAMETERS.iter().map(|(theirs, _)| *theirs).collect();
        return Err(format!("{command} {name}: unknown parameter; expected one of {}", names.join(", ")));
    };
    let value = value.filter(|value| !value.is_empty());
    Ok([Some(OsString::from(ours)), value.map(OsString::from)].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> String {
        match translate(line.split(' ').map(OsString::from)) {
            Ok(words) => words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
            Err(why) => why,
        }
    }

    #[test]
    fn runbooks_go_on() {
        for (line, want) in [
            (
                "stellwerk Add-HcsNetRoute -InterfaceAlias Port3 -DestinationPrefix 192.168.21.0/24 -NextHop 192.168.20.1 -RouteMetric 100",
                "stellwerk route add --interface Port3 --destination 192.168.21.0/24 --next-hop 192.168.20.1 --metric 100",
            ),
            ("stellwerk Get-HcsNetRoute", "stellwerk route get"),
            (
                "stellwerk --pin-path x get-hcsnetroute -interfacealias Port3 --json",
                "stellwerk --pin-path x route get --interface Port3 --json",
            ),
            (
                "stellwerk Remove-HcsNetRoute -InterfaceAlias:Port3 -DestinationPrefix fd00:21::/64",
                "stellwerk route remove --interface Port3 --destination fd00:21::/64",
            ),
            (
                "stellwerk Add-HcsNetRoute -i Port3 -d 10.0.0.0/8 -RouteMetric -5",
                "stellwerk route add -i Port3 -d 10.0.0.0/8 --metric -5",
            ),
            (
                "stellwerk Get-HcsNetRoute -PolicyStore x",
                "Get-HcsNetRoute -PolicyStore: unknown parameter; expected one of -InterfaceAlias, -DestinationPrefix, -NextHop, -RouteMetric",
            ),
            ("stellwerk route get -i Add-HcsNetRoute", "stellwerk route get -i Add-HcsNetRoute"),
            ("stellwerk status", "stellwerk status"),
        ] {
            assert_eq!(words(line), want);
        }
    }
}
