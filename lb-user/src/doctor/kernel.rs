//! The kernel: its version, what it was built with, and what we may do in it.

use std::fs::{self, File};
use std::io::Read;

use flate2::read::GzDecoder;

use super::Finding;
use crate::config::Config;

/// What the flow table's programs need.
const OLDEST: (u32, u32) = (5, 15);
/// From here on programs of TC are replaced in one step.
const LINKS: (u32, u32) = (6, 6);
const NEEDED: [&str; 9] = [
    "BPF",
    "BPF_SYSCALL",
    "BPF_JIT",
    "CGROUP_BPF",
    "DEBUG_INFO_BTF",
    "NET_CLS_ACT",
    "NET_CLS_BPF",
    "NET_SCH_INGRESS",
    "IPV6",
];
/// Numbers of include/uapi/linux/capability.h.
const RIGHTS: [(u32, &str); 6] = [
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (21, "CAP_SYS_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];

pub fn examine(config: Option<&Config>) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let mut all = vec![rights(&read("/proc/self/status")), version(&release)];
    all.extend(options(built_with(&release).as_deref(), &wanted(config)));
    all.push(match fs::metadata("/sys/kernel/btf/vmlinux") {
        Ok(_) => Finding::ok("btf", "", "/sys/kernel/btf/vmlinux"),
        Err(_) => {
            let advice = "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, or mount /sys";
            Finding::fail("btf", "", "there is no /sys/kernel/btf/vmlinux", advice)
        }
    });
    // It is there in the first network namespace only.
    all.extend(jit(read("/proc/sys/net/core/bpf_jit_enable").trim()));
    all
}

fn wanted(config: Option<&Config>) -> Vec<&'static str> {
    let mut all = NEEDED.to_vec();
    if config.is_some_and(|config| config.internal_switch.is_some()) {
        all.push("BRIDGE");
    }
    if config.is_some_and(|config| config.pod_network.is_some()) {
        all.push("VETH");
    }
    all
}

fn rights(status: &str) -> Finding {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let have = field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<&str> = RIGHTS.iter().filter(|(bit, _)| have >> bit & 1 == 0).map(|(_, name)| *name).collect();
    match missing.is_empty() {
        true => Finding::ok("rights", "", "all that the agent needs"),
        false => {
            let found = format!("without {}", missing.join(", "));
            Finding::fail("rights", "", found, "run it as root, or give these to its unit or container")
        }
    }
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn version(release: &str) -> Finding {
    match numbers(release) {
        Some(found) if found >= LINKS => Finding::ok("kernel", release, "TC programs hang on links"),
        Some(found) if found >= OLDEST => {
            Finding::ok("kernel", release, "TC programs are filters of a clsact qdisc, as before Linux 6.6")
        }
        _ => Finding::fail("kernel", release, "too old", "boot Linux 5.15 or later"),
    }
}

fn jit(enabled: &str) -> Option<Finding> {
    match enabled {
        "" => None,
        "0" => {
            let advice = "sysctl -w net.core.bpf_jit_enable=1";
            Some(Finding::warn("jit", "", "programs are interpreted: many times slower", advice))
        }
        _ => Some(Finding::ok("jit", "", "programs are compiled")),
    }
}

/// What the kernel was built with, where it or the distribution says so.
fn built_with(release: &str) -> Option<String> {
    let mut text = String::new();
    if let Ok(packed) = File::open("/proc/config.gz") {
        return GzDecoder::new(packed).read_to_string(&mut text).ok().map(|_| text);
    }
    ["/boot/config-", "/usr/lib/modules/", "/lib/modules/"].iter().find_map(|place| {
        let file = if place.ends_with('/') { format!("{place}{release}/config") } else { format!("{place}{release}") };
        fs::read_to_string(file).ok()
    })
}

fn options(text: Option<&str>, wanted: &[&str]) -> Vec<Finding> {
    let Some(text) = text else {
        let found = "neither /proc/config.gz nor /boot/config-* says what the kernel was built with";
        return vec![Finding::warn("options", "", found, "if programs are refused, look there first")];
    };
    let on = |name: &str| {
        let mut set = text.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.strip_prefix(name));
        set.any(|rest| matches!(rest, "=y" | "=m"))
    };
    let missing: Vec<&&str> = wanted.iter().filter(|name| !on(name)).collect();
    if missing.is_empty() {
        return vec![Finding::ok("options", "", format!("all {} that are needed", wanted.len()))];
    }
    let fail = |name: &&&str| Finding::fail("options", format!("CONFIG_{name}"), "is off", "boot a kernel that has it");
    missing.iter().map(fail).collect()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn versions() {
        for (release, want) in [
            ("6.18.44-v782", State::Ok),
            ("6.6.0", State::Ok),
            ("5.15.0-91-generic", State::Ok),
            ("5.14.21", State::Fail),
            ("4.19", State::Fail),
            ("", State::Fail),
        ] {
            assert_eq!(version(release).state, want, "{release}");
        }
    }

    #[test]
    fn options_are_built_in_or_modules() {
        let text = "CONFIG_BPF=y\n# CONFIG_NET_CLS_BPF is not set\nCONFIG_BRIDGE=m\nCONFIG_BPF_JIT_ALWAYS_ON=y\n";
        let names = |wanted: &[&str]| -> Vec<_> {
            let all = options(Some(text), wanted).into_iter();
            all.map(|finding| (finding.name, finding.state)).collect()
        };
        assert_eq!(names(&["BPF", "BRIDGE"]), [(String::new(), State::Ok)]);
        let off = |name: &str| (format!("CONFIG_{name}"), State::Fail);
        assert_eq!(names(&["BPF", "NET_CLS_BPF", "BPF_JIT"]), [off("NET_CLS_BPF"), off("BPF_JIT")]);
        assert_eq!(options(None, &["BPF"])[0].state, State::Warn);
    }

    #[test]
    fn rights_are_those_in_effect() {
        assert_eq!(rights("Name:\tx\nCapEff:\t000001ffffffffff\n").state, State::Ok);
        let some = rights("CapEff:\t0000000000003400\n");
        assert_eq!((some.state, &*some.found), (State::Fail, "without CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF"));
        assert_eq!(rights("").state, State::Fail);
    }

    #[test]
    fn an_interpreter_is_told() {
        assert_eq!(jit(""), None);
        assert_eq!(jit("0").map(|finding| finding.state), Some(State::Warn));
        assert_eq!(jit("1").map(|finding| finding.state), Some(State::Ok));
    }
}
