//! Calls as a table: what is read, and in which words and codes what is wrong is refused.

use super::*;
use crate::pods::talk::Made;

const ENV: &str = "CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/a CNI_IFNAME=eth0 CNI_ARGS=";
const CONF: &str = r#"{"cniVersion":"1.1.0","name":"stellwerk","type":"stellwerk-cni"}"#;

fn read(env: &str, conf: &str) -> Result<Call, Failure> {
    // The last of a name counts.
    let find = |name: &str| {
        let pairs = env.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(n, _)| *n == name).map(|(_, value)| value.to_owned()).next_back()
    };
    call::read(&find, conf.as_bytes())
}

#[test]
fn what_is_wrong() {
    let with = |field: &str| CONF.replace("\"type\"", &format!("{field},\"type\""));
    let of = |version: &str| CONF.replace("1.1.0", version);
    let ports = |protocol: &str, ip: &str, to: u16| {
        let port = json!({ "hostPort": 8080, "containerPort": to, "protocol": protocol, "hostIP": ip });
        with(&format!("\"runtimeConfig\":{{\"portMappings\":[{port}]}}"))
    };
    for (env, conf, code, details) in [
        ("", CONF.to_owned(), 4, "CNI_COMMAND is missing; expected ADD, DEL, CHECK, STATUS, GC or VERSION"),
        ("CNI_COMMAND=add", CONF.into(), 4, "CNI_COMMAND: `add`; expected ADD, DEL, CHECK, STATUS, GC or VERSION"),
        (
            "CNI_COMMAND=ADD CNI_CONTAINERID=",
            CONF.into(),
            4,
            "CNI_CONTAINERID is missing; expected a container's id of letters, digits, `_`, `.` and `-`",
        ),
        (
            "CNI_COMMAND=DEL CNI_CONTAINERID=../c",
            CONF.into(),
            4,
            "CNI_CONTAINERID: `../c`; expected a container's id of letters, digits, `_`, `.` and `-`",
        ),
        (
            "CNI_COMMAND=ADD CNI_IFNAME=a/b",
            CONF.into(),
            4,
            "CNI_IFNAME: `a/b`; expected an interface's name of at most 15 characters",
        ),
        (
            "CNI_COMMAND=ADD CNI_NETNS=",
            CONF.into(),
            4,
            "CNI_NETNS is missing; expected the path of a network namespace",
        ),
        (
            "CNI_COMMAND=ADD CNI_ARGS=IgnoreUnknown=1;x",
            CONF.into(),
            4,
            "CNI_ARGS: `x`; expected pairs such as K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
        ),
        (
            "CNI_COMMAND=ADD CNI_ARGS=IP=172.27.1.300",
            CONF.into(),
            4,
            "CNI_ARGS: IP=`172.27.1.300`; expected an address, or one a family and a comma",
        ),
        ("CNI_COMMAND=ADD", "{".into(), 6, "EOF while parsing an object at line 1 column 1"),
        ("CNI_COMMAND=ADD", of("2.0.0"), 1, "cniVersion: `2.0.0`; expected one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (
            "CNI_COMMAND=ADD",
            r#"{"name":"a"}"#.into(),
            1,
            "cniVersion: `0.1.0`; expected one of 0.3.1, 0.4.0, 1.0.0, 1.1.0",
        ),
        ("CNI_COMMAND=CHECK", of("0.3.1"), 1, "cniVersion: `0.3.1`; expected 0.4.0 or later for this command"),
        ("CNI_COMMAND=STATUS", of("1.0.0"), 1, "cniVersion: `1.0.0`; expected 1.1.0 or later for this command"),
        ("CNI_COMMAND=GC", of("1.0.0"), 1, "cniVersion: `1.0.0`; expected 1.1.0 or later for this command"),
        (
            "CNI_COMMAND=ADD",
            CONF.replace("stellwerk\"", "\""),
            7,
            "name: ``; expected a network's name of letters, digits, `_`, `.` and `-`",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"pinPath\":3"),
            7,
            "pinPath: 3; expected the agent's --pin-path, such as \"/sys/fs/bpf/stellwerk\"",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"ipam\":{\"type\":\"host-local\"}"),
            2,
            "ipam: stellwerk's own configuration says this; expected none here",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"runtimeConfig\":{\"dns\":{\"servers\":[\"10.0.0.1\"]}}"),
            2,
            "runtimeConfig.dns: stellwerk has no such capability",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"runtimeConfig\":{\"bandwidth\":{\"ingressRate\":1000}}"),
            7,
            "runtimeConfig.bandwidth.ingressBurst is missing; expected bits beside ingressRate",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"runtimeConfig\":{\"bandwidth\":{\"egressBurst\":1000}}"),
            7,
            "runtimeConfig.bandwidth.egressRate is missing; expected bits a second beside egressBurst",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"runtimeConfig\":{\"bandwidth\":{\"egressRate\":\"10M\"}}"),
            7,
            "runtimeConfig.bandwidth.egressRate: \"10M\"; expected a number of bits",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"runtimeConfig\":{\"bandwidth\":\"10M\"}"),
            7,
            "runtimeConfig.bandwidth: \"10M\"; expected bits such as { \"ingressRate\": 10000000, \"ingressBurst\": 2000000 }",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"runtimeConfig\":{\"portMappings\":[{\"hostPort\":0,\"containerPort\":80}]}"),
            7,
            "runtimeConfig.portMappings[0].hostPort: 0; expected a number from 1 to 65535",
        ),
        (
            "CNI_COMMAND=ADD",
            ports("tcp", "10.0.0.300", 80),
            7,
            "runtimeConfig.portMappings[0].hostIP: \"10.0.0.300\"; expected an address of this node, or none",
        ),
        (
            "CNI_COMMAND=ADD",
            ports("icmp", "", 80),
            7,
            "runtimeConfig.portMappings[0].protocol: \"icmp\"; expected tcp, udp or sctp",
        ),
        (
            "CNI_COMMAND=ADD",
            ports("sctp", "", 80),
            7,
            "runtimeConfig.portMappings[0].containerPort: 80; expected that of hostPort, since SCTP's checksum covers it",
        ),
        (
            "CNI_COMMAND=ADD",
            ports("udp", "", 8080).replace("}]", "},{\"hostPort\":8080,\"containerPort\":81,\"protocol\":\"UDP\"}]"),
            7,
            "runtimeConfig.portMappings[1]: 8080/UDP leads to 8080 already; expected a host port of its own",
        ),
        (
            "CNI_COMMAND=ADD",
            with("\"prevResult\":{\"ips\":[]}"),
            7,
            "prevResult: expected stellwerk to be the first plugin of its list",
        ),
        ("CNI_COMMAND=CHECK", CONF.into(), 7, "prevResult is missing; expected what ADD gave"),
        (
            "CNI_COMMAND=CHECK",
            with("\"prevResult\":{\"ips\":[{\"address\":\"x\"}]}"),
            7,
            "prevResult.ips: expected addresses such as 172.27.1.2/32",
        ),
        (
            "CNI_COMMAND=CHECK",
            with("\"prevResult\":{\"ips\":[],\"interfaces\":[{\"name\":\"eth0\"}]}"),
            7,
            "prevResult.interfaces: there is no eth0 in a sandbox; expected the one of ADD",
        ),
        (
            "CNI_COMMAND=GC",
            CONF.into(),
            7,
            "cni.dev/valid-attachments: expected a list such as [{ \"containerID\": \"c1\", \"ifname\": \"eth0\" }]",
        ),
    ] {
        let failure = read(&format!("{ENV} {env}"), &conf).expect_err(details);
        assert_eq!((failure.code, failure.details.as_str()), (code, details), "{env} {conf}");
    }
}

#[test]
fn what_is_read() {
    let args = "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;IP=172.27.1.9,fd00::9/64";
    let call = read(&format!("{ENV} CNI_COMMAND=ADD {args}"), CONF).unwrap();
    assert_eq!((call.namespace.as_str(), call.pod.as_str()), ("default", "web-0"));
    assert_eq!(call.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.27.1.9", "fd00::9"]);
    assert_eq!(call.pins, PathBuf::from(PIN_PATH));
    let list = "[{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\",\"hostIP\":\"\"},\
                {\"hostPort\":53,\"containerPort\":53,\"protocol\":\"UDP\",\"hostIP\":\"::ffff:10.0.0.5\"},\
                {\"hostPort\":8080,\"containerPort\":80}]";
    let conf = CONF.replace("\"type\"", &format!("\"runtimeConfig\":{{\"portMappings\":{list}}},\"type\""));
    let ports = read(&format!("{ENV} CNI_COMMAND=ADD"), &conf).unwrap().ports;
    assert_eq!(ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["8080/TCP", "10.0.0.5:53/UDP"]);
    // A container that is gone has no namespace any more.
    assert_eq!(read("CNI_COMMAND=DEL CNI_CONTAINERID=c1 CNI_IFNAME=eth0", CONF).unwrap().verb, Verb::Del);
    let gc = CONF
        .replace("\"type\"", "\"cni.dev/valid-attachments\":[{\"containerID\":\"c2\",\"ifname\":\"net1\"}],\"type\"");
    let valid = read("CNI_COMMAND=GC", &gc).unwrap().valid;
    assert_eq!(valid, [Key { container: "c2".into(), interface: "net1".into() }]);
}

#[test]
fn results_of_all_versions() {
    let call = read(&format!("{ENV} CNI_COMMAND=ADD"), CONF).unwrap();
    let made = Made {
        host: "stpod0".into(),
        host_mac: "0a:00:00:00:00:01".into(),
        mac: "0a:00:00:00:00:02".into(),
        mtu: 1400,
        addresses: vec!["172.27.1.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        nameservers: vec!["172.28.0.10".parse().unwrap()],
    };
    for version in VERSIONS {
        let value = result::made(version, &call, &made);
        let (old, new) = (version.starts_with("0."), version == "1.1.0");
        let mut v4 = json!({ "address": "172.27.1.9/32", "gateway": "169.254.1.1", "interface": 1 });
        let mut v6 = json!({ "address": "fd00::9/128", "gateway": "fe80::1", "interface": 1 });
        if old {
            (v4["version"], v6["version"]) = ("4".into(), "6".into());
        }
        let mut host = json!({ "name": "stpod0", "mac": "0a:00:00:00:00:01" });
        let mut pod = json!({ "name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/a" });
        if new {
            (host["mtu"], pod["mtu"]) = (1400.into(), 1400.into());
        }
        let want = json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": [v4, v6],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }],
            "dns": { "nameservers": ["172.28.0.10"] },
        });
        assert_eq!(value, want, "{version}");
    }
    let failure = Failure::new(11, "later", "");
    assert_eq!(result::error("1.0.0", &failure), json!({ "cniVersion": "1.0.0", "code": 11, "msg": "later" }));
}
