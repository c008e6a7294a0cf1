//! Keys of the translation between inside and outside: what they give, and what is refused in which words.

use super::*;
use crate::intent::{Filtering, InternalSwitch, Nat, Protocol, Translation};

/// Behind a port with gateways of both families.
fn config(text: &str) -> Result<Config, String> {
    parse(&format!("node: n\nports: {{ A: {{ interface: eth0, gateway: [10.0.0.1, 'fd00::1'] }} }}\n{text}"))
}

fn errors(text: &str) -> String {
    config(text).err().unwrap_or_else(|| "no error".into())
}

#[test]
fn a_switch_and_how_it_is_translated() {
    let text = "internalSwitch:
  interface: br-int
  address: [10.20.0.1/24, fd00:20::1/64]
  natSubnets: [172.27.0.0/16, 192.168.20.0/24, 10.20.0.0/16]
  nonMasquerade: [10.0.0.0/8, fd00::/8]
  ipv6: prefix
  prefixes: [{ inside: fd00:20::/64, outside: '2001:db8:7::/64' }]
  quota: 100
  filtering: port
  log: ./nat.log
";
    let config = config(text).unwrap();
    let switch = InternalSwitch {
        interface: "br-int".into(),
        addresses: vec!["10.20.0.1/24".parse().unwrap(), "fd00:20::1/64".parse().unwrap()],
    };
    let intent = config.intent(1, vec![]);
    assert_eq!(intent.internal_switch, Some(switch));
    let Nat { ipv4, ipv6, pods, subnets, direct, prefixes, quota, filtering, log } = intent.nat;
    assert_eq!((ipv4, ipv6, pods), (Translation::Masquerade, Translation::Prefix, None));
    let text = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(text(subnets), "172.27.0.0/16 192.168.20.0/24 10.20.0.0/16");
    assert_eq!(text(direct), "10.0.0.0/8 fd00::/8");
    let pairs: Vec<_> = prefixes.iter().map(|pair| format!("{} {}", pair.inside, pair.outside)).collect();
    assert_eq!(pairs, ["fd00:20::/64 2001:db8:7::/64"]);
    assert_eq!((quota, filtering, log), (100, Filtering::Port, Some("./nat.log".into())));
    assert_eq!(config.notices, []);
}

#[test]
fn defaults() {
    let config = config("internalSwitch: { interface: br0, address: 10.20.0.1/24 }").unwrap();
    assert_eq!(config.nat, Nat::default());
    assert_eq!((config.nat.ipv4, config.nat.ipv6), (Translation::Masquerade, Translation::Off));
    assert_eq!((config.nat.quota, config.nat.filtering, config.nat.log), (8_192, Filtering::Address, None));
    assert_eq!(config.tuning.capacity.nat_addresses, 2);
}

#[test]
fn several_ports_lead_out() {
    let text = "node: n
ports:
  A: { interface: a, gateway: [203.0.113.1, 'fe80::1'], natAddresses: [203.0.113.2, '2001:db8::2', 203.0.113.3] }
  B: { interface: b, gateway: 198.51.100.1 }
internalSwitch: { interface: br0, address: 10.20.0.1/24 }
capacity: { natAddresses: 3 }
";
    let config = parse(text).unwrap();
    let leads: Vec<_> = config.ports.iter().map(|p| (p.leads_out(true), p.leads_out(false))).collect();
    assert_eq!(leads, [(true, true), (true, false)]);
    let addresses: Vec<_> = config.ports[0].nat_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.2", "2001:db8::2", "203.0.113.3"]);
    assert_eq!(config.tuning.capacity.nat_addresses, 3);
}

#[test]
fn port_forwards() {
    let text = "publish:
  - 203.0.113.5:8443 -> 10.20.0.7:443
  - 203.0.113.5:53→10.20.0.8:5353/udp
  - { at: '[2001:db8::5]:8443', to: '[fd00:20::7]:443' }
  - { at: 203.0.113.5:7, to: 10.20.0.9:7, protocol: SCTP }
cluster: { serviceIPs: 203.0.113.5-203.0.113.9 }
";
    let config = config(text).unwrap();
    let mut other = config.published[0].clone();
    (other.namespace, other.name) = ("default".into(), "web".into());
    let later = ServicePort { namespace: "zoo".into(), ..other.clone() };
    let services = config.intent(1, vec![other, later]).services;
    let shown: Vec<_> = services
        .iter()
        .map(|s| {
            let (at, to) = (s.addresses[0], &s.endpoints[0]);
            format!("{} {:?} {at} {} -> {} {}", s.full_name(), s.protocol, s.port, to.addr, to.port)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "default/web:8443 Tcp 203.0.113.5 8443 -> 10.20.0.7 443",
            "publish/203.0.113.5:8443 Tcp 203.0.113.5 8443 -> 10.20.0.7 443",
            "publish/203.0.113.5:53 Udp 203.0.113.5 53 -> 10.20.0.8 5353",
            "publish/203.0.113.5:7 Sctp 203.0.113.5 7 -> 10.20.0.9 7",
            "publish/[2001:db8::5]:8443 Tcp 2001:db8::5 8443 -> fd00:20::7 443",
            "zoo/web:8443 Tcp 203.0.113.5 8443 -> 10.20.0.7 443",
        ]
    );
    let published = config.rules().published;
    let said = published.iter().map(|((addr, port, _), said)| format!("{addr} {port} {said}")).collect::<Vec<_>>();
    assert_eq!(
        said,
        [
            "203.0.113.5 7 publish[3] (c.yaml:7)",
            "203.0.113.5 53 publish[1] (c.yaml:5)",
            "203.0.113.5 8443 publish[0] (c.yaml:4)",
            "2001:db8::5 8443 publish[2] (c.yaml:6)",
        ]
    );
    let one = super::parse("node: n\ninside: x\npublish: { at: 10.0.0.1:80, to: 10.0.0.2:80, protocol: udp }").unwrap();
    assert_eq!(one.published[0].protocol, Protocol::Udp);
}

#[test]
fn what_has_no_effect_is_told() {
    let text = "internalSwitch: { interface: br0, address: 10.20.0.1/24, natSubnets: ['fd00:27::/64', 10.9.0.1/24] }";
    let notices =
        |text: &str| config(text).unwrap().notices.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(
        notices(
            "internalSwitch: { interface: b, ipv4: off, quota: 7, log: x, nonMasquerade: [10.0.0.0/8, 'fd00::/8'] }"
        ),
        "c.yaml:3:78: internalSwitch.nonMasquerade[0]: `10.0.0.0/8` has no effect, since internalSwitch.ipv4 is off\n\
         c.yaml:3:90: internalSwitch.nonMasquerade[1]: `fd00::/8` has no effect, since internalSwitch.ipv6 is off\n\
         c.yaml:3:51: internalSwitch.quota: has no effect, since neither internalSwitch.ipv4 nor internalSwitch.ipv6 is masquerade\n\
         c.yaml:3:59: internalSwitch.log: has no effect, since neither internalSwitch.ipv4 nor internalSwitch.ipv6 is masquerade"
    );
    assert_eq!(
        notices(text),
        [
            "c.yaml:3:71: internalSwitch.natSubnets[0]: `fd00:27::/64` is not translated, since internalSwitch.ipv6 is not masquerade",
            "c.yaml:3:87: internalSwitch.natSubnets[1]: `10.9.0.1/24` has bits behind its prefix; taken as 10.9.0.0/24",
        ]
        .join("\n")
    );
}

#[test]
fn a_log_is_no_folder() {
    let dir = std::env::temp_dir().join(format!("stellwerk-log-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("logs")).unwrap();
    let file = dir.join("c.yaml");
    std::fs::write(&file, "node: n\ninternalSwitch: { interface: b, log: ./logs }\n").unwrap();
    let said = Config::load(&file).map_err(|errors| errors.to_string().replace(&dir.display().to_string(), "DIR"));
    std::fs::remove_dir_all(&dir).unwrap();
    let want = "DIR/c.yaml:2:38: internalSwitch.log: `DIR/logs` is a folder; expected a file to write to";
    assert_eq!(said.unwrap_err(), want);
}

#[test]
fn wrong_values() {
    for (text, want) in CASES {
        assert_eq!(errors(text), want.join("\n"), "for\n{text}");
    }
}

const CASES: &[(&str, &[&str])] = &[
    (
        "internalSwitch: { interface: b, ipv4: prefix, ipv6: on, quota: 0, filtering: endpoint, log: '', natsubnets: 1 }",
        &[
            "c.yaml:3:39: internalSwitch.ipv4: `prefix` is not masquerade or off",
            "c.yaml:3:53: internalSwitch.ipv6: `on` is not off, masquerade or prefix",
            "c.yaml:3:64: internalSwitch.quota: `0` is too small; expected a number of ports from 1 to 196605",
            "c.yaml:3:78: internalSwitch.filtering: `endpoint` is not address, port or none",
            "c.yaml:3:93: internalSwitch.log: `` is not a file to write to",
            "c.yaml:3:97: internalSwitch.natsubnets: unknown key; expected `natSubnets`",
        ],
    ),
    (
        "internalSwitch: { interface: b, natSubnets: [10.0.0.0/7, 'fd00::/47', 10.0.0.0], nonMasquerade: 224.0.0.0/4 }",
        &[
            "c.yaml:3:46: internalSwitch.natSubnets[0]: `10.0.0.0/7` is too large; expected a subnet such as 172.27.0.0/16 or fd00::/64, of /8 (IPv4) or /48 (IPv6) at the most",
            "c.yaml:3:58: internalSwitch.natSubnets[1]: `fd00::/47` is too large; expected a subnet such as 172.27.0.0/16 or fd00::/64, of /8 (IPv4) or /48 (IPv6) at the most",
            "c.yaml:3:71: internalSwitch.natSubnets[2]: `10.0.0.0` has no prefix length; expected a subnet such as 172.27.0.0/16 or fd00::/64, of /8 (IPv4) or /48 (IPv6) at the most",
            "c.yaml:3:97: internalSwitch.nonMasquerade: `224.0.0.0/4` is of addresses that no host has; expected a subnet such as 172.27.0.0/16 or fd00::/64",
        ],
    ),
    (
        "internalSwitch: { interface: b, quota: 196606, address: 'fd00:2000::1/40', ipv6: masquerade }",
        &[
            "c.yaml:3:40: internalSwitch.quota: `196606` is too large; expected a number of ports from 1 to 196605",
            "c.yaml:3:57: internalSwitch.address: `fd00:2000::1/40` is too large to be translated; expected a subnet such as 172.27.0.0/16 or fd00::/64, of /8 (IPv4) or /48 (IPv6) at the most",
        ],
    ),
    (
        "internalSwitch: { interface: b, ipv6: prefix }",
        &[
            "c.yaml:3:39: internalSwitch.ipv6: `prefix` says nothing without internalSwitch.prefixes; expected these beside it",
        ],
    ),
    (
        "internalSwitch: { interface: b, prefixes: { inside: 'fd00:20::/64', outside: '2001:db8::/64' } }",
        &[
            "c.yaml:3:43: internalSwitch.prefixes: has no effect without internalSwitch.ipv6: prefix; expected that beside it",
        ],
    ),
    (
        "internalSwitch:\n  interface: b\n  ipv6: prefix\n  prefixes:\n  - { inside: 'fd00:20::/64', outside: '2001:db8::/60' }\n  - { inside: 10.0.0.0/24, outside: 'fe80::/64' }\n  - { inside: 'fd00:2::/47', outside: '2001:db8::/65' }\n  - { inside: 'fd00:21::/64' }\n  - x",
        &[
            "c.yaml:7:5: internalSwitch.prefixes[0]: `fd00:20::/64` and `2001:db8::/60` are of two lengths; expected one",
            "c.yaml:8:15: internalSwitch.prefixes[1].inside: `10.0.0.0/24` is IPv4; expected an IPv6 prefix such as fd00:20::/64, from /48 to /64",
            "c.yaml:8:37: internalSwitch.prefixes[1].outside: `fe80::/64` is link-local; expected an IPv6 prefix such as fd00:20::/64, from /48 to /64",
            "c.yaml:9:15: internalSwitch.prefixes[2].inside: `fd00:2::/47` is too large; expected an IPv6 prefix such as fd00:20::/64, from /48 to /64",
            "c.yaml:9:39: internalSwitch.prefixes[2].outside: `2001:db8::/65` is too small; expected an IPv6 prefix such as fd00:20::/64, from /48 to /64",
            "c.yaml:10:5: internalSwitch.prefixes[3].outside: is missing; expected an IPv6 prefix such as fd00:20::/64, from /48 to /64",
            "c.yaml:11:5: internalSwitch.prefixes[4]: `x` is not a map with the keys inside, outside",
        ],
    ),
    (
        "internalSwitch:\n  interface: b\n  ipv6: prefix\n  prefixes:\n  - { inside: 'fd00:20::/64', outside: '2001:db8::/64' }\n  - { inside: 'fd00:21::/64', outside: '2001:db8::/64' }\n  - { inside: 'fd00:20::/60', outside: '2001:db8:1::/60' }",
        &[
            "c.yaml:8:40: internalSwitch.prefixes[1].outside: 2001:db8::-2001:db8::ffff:ffff:ffff:ffff overlaps internalSwitch.prefixes[0].outside (2001:db8::-2001:db8::ffff:ffff:ffff:ffff); expected addresses of its own",
            "c.yaml:9:15: internalSwitch.prefixes[2].inside: fd00:20::-fd00:20:0:f:ffff:ffff:ffff:ffff overlaps internalSwitch.prefixes[0].inside (fd00:20::-fd00:20::ffff:ffff:ffff:ffff); expected addresses of its own",
        ],
    ),
    (
        "internalSwitch: { interface: b, ipv6: prefix, prefixes: [] }",
        &["c.yaml:3:57: internalSwitch.prefixes: has 0 members; expected 1 to 16"],
    ),
    (
        "internalSwitch: { interface: b, natSubnets: 10.9.0.0/16 }\ncluster: { serviceSubnet: 10.9.8.0/24 }",
        &[
            "c.yaml:4:27: cluster.serviceSubnet: 10.9.8.0-10.9.8.255 overlaps internalSwitch.natSubnets (10.9.0.0-10.9.255.255); expected addresses of its own",
        ],
    ),
    (
        "publish:\n- 203.0.113.5 -> 10.20.0.7:443\n- 203.0.113.5:80 10.20.0.7:443\n- 203.0.113.5:80 -> 10.20.0.7:0\n- 203.0.113.5:80 -> 127.0.0.1:1\n- 203.0.113.5:80 -> 10.20.0.7:80/dccp\n- 203.0.113.5:80 -> '[fd00::7]:80'\n- [a]",
        &[
            "c.yaml:4:3: publish[0]: `203.0.113.5 -> 10.20.0.7:443` is wrong: `203.0.113.5` has no port; expected a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
            "c.yaml:5:3: publish[1]: `203.0.113.5:80 10.20.0.7:443` is not a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
            "c.yaml:6:3: publish[2]: `203.0.113.5:80 -> 10.20.0.7:0` is wrong: `10.20.0.7:0` has port 0; expected a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
            "c.yaml:7:3: publish[3]: `203.0.113.5:80 -> 127.0.0.1:1` is wrong: `127.0.0.1:1` is a loopback address; expected a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
            "c.yaml:8:3: publish[4]: `203.0.113.5:80 -> 10.20.0.7:80/dccp` has not TCP, UDP or SCTP behind its `/`; expected a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
            "c.yaml:9:3: publish[5]: `203.0.113.5:80 -> \\'[fd00::7]:80\\'` is wrong: `\\'[fd00::7]:80\\'` is not an address and a port such as 203.0.113.5:8443 or [2001:db8::5]:8443; expected a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
            "c.yaml:10:3: publish[6]: a list is not a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
        ],
    ),
    (
        "publish:\n- 203.0.113.5:80 -> 10.20.0.7:80\n- { at: 203.0.113.5:80, to: 10.20.0.8:80 }\n- 203.0.113.5:80 -> 10.20.0.8:80/udp\n- 203.0.113.5:7 -> 10.20.0.8:8/sctp\n- '203.0.113.5:81 -> [fd00::7]:81'\n- { at: x, proto: TCP }\n- { at: 1.2.3.4:5, to: 1.2.3.5:6, protocol: IP }",
        &[
            "c.yaml:5:3: publish[1]: `203.0.113.5:80` is already publish[0]; expected an address and port of its own",
            "c.yaml:7:3: publish[3]: `203.0.113.5:7 -> 10.20.0.8:8` changes the port; expected the same one, since SCTP's checksum covers it",
            "c.yaml:8:3: publish[4]: `203.0.113.5:81 -> [fd00::7]:81` mixes IPv4 and IPv6; expected addresses of one family",
            "c.yaml:9:3: publish[5].to: is missing; expected an address and a port such as 203.0.113.5:8443 or [2001:db8::5]:8443",
            "c.yaml:9:9: publish[5].at: `x` is not an address and a port such as 203.0.113.5:8443 or [2001:db8::5]:8443",
            "c.yaml:9:12: publish[5].proto: unknown key; expected one of at, to, protocol",
            "c.yaml:10:45: publish[6].protocol: `IP` is not TCP, UDP or SCTP",
        ],
    ),
    (
        "publish: [10.9.8.1:80 -> 10.20.0.7:80, 203.0.113.5:80 -> 10.9.8.1:80, 203.0.113.5:81 -> 10.8.0.2:80]\ncluster: { serviceSubnet: 10.9.8.0/24, serviceIPs: 10.8.0.1-10.8.0.9 }",
        &[
            "c.yaml:3:11: publish[0]: `10.9.8.1` is inside cluster.serviceSubnet (10.9.8.0-10.9.8.255); expected another one",
            "c.yaml:3:40: publish[1]: `10.9.8.1` is inside cluster.serviceSubnet (10.9.8.0-10.9.8.255); expected a host's address",
            "c.yaml:3:71: publish[2]: `10.8.0.2` is inside cluster.serviceIPs (10.8.0.1-10.8.0.9); expected a host's address",
        ],
    ),
    (
        "capacity: { natAddresses: 65 }",
        &["c.yaml:3:27: capacity.natAddresses: `65` is too large; expected a number of addresses from 1 to 64"],
    ),
    (
        "internalSwitch: { interface: b, address: 10.20.0.1/24 }\ncapacity: { natAddresses: 0 }",
        &["c.yaml:4:27: capacity.natAddresses: `0` is too small; expected a number of addresses from 1 to 64"],
    ),
    (
        "internalSwitch: { interface: b, address: 10.20.0.1/24 }\ncapacity: { natAddresses: 2 }\npublish: 1",
        &[
            "c.yaml:5:10: publish: `1` is not a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)",
        ],
    ),
];

#[test]
fn wrong_ports() {
    let port = |text: &str| {
        let text = format!("node: n\nports:\n{text}\ninternalSwitch: {{ interface: b, address: 10.20.0.1/24 }}");
        parse(&text).err().unwrap_or_else(|| "no error".into())
    };
    for (text, want) in [
        (
            "  A: { interface: a, gateway: 10.0.0.1, natAddresses: [10.0.0.2, 10.0.0.2, 'fd00::2', 0.0.0.0] }",
            &[
                "c.yaml:3:66: ports.A.natAddresses[1]: `10.0.0.2` stands there twice; expected each address once",
                "c.yaml:3:76: ports.A.natAddresses[2]: `fd00::2` is IPv6, but the port has no gateway of that family; expected one beside it",
                "c.yaml:3:87: ports.A.natAddresses[3]: `0.0.0.0` is the unspecified address; expected an address such as 192.168.1.1 or fd00::1",
            ][..],
        ),
        (
            "  A: { interface: a, gateway: 10.0.0.1, natAddresses: [10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6] }",
            &[
                "c.yaml:3:3: ports: the ports with a gateway have 5 IPv4 addresses for translated packets, but capacity.natAddresses is 2; expected 5 there",
                "c.yaml:3:96: ports.A.natAddresses[4]: `10.0.0.6` is one too many; expected at most 4 addresses of IPv4",
            ],
        ),
        (
            "  A: { interface: a, gateway: 10.0.0.1, natAddresses: [10.0.0.2, 10.0.0.3] }\n  B: { interface: c, gateway: 10.1.0.1 }",
            &[
                "c.yaml:3:3: ports: the ports with a gateway have 3 IPv4 addresses for translated packets, but capacity.natAddresses is 2; expected 3 there",
            ],
        ),
        (
            "  A: { interface: a, gateway: 10.0.0.1 }\n  B: { interface: c, gateway: 10.1.0.1 }\ncapacity: { natAddresses: 1 }",
            &[
                "c.yaml:5:27: capacity.natAddresses: the ports with a gateway have 2 IPv4 addresses for translated packets, but capacity.natAddresses is 1; expected 2 there",
            ],
        ),
    ] {
        assert_eq!(port(text), want.join("\n"), "for\n{text}");
    }
}
