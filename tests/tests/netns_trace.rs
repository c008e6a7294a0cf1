//! `stellwerk trace` on a device that runs: what it says is what then happens, and asking leaves nothing behind.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};

/// The only answer to a question in words.
fn ask(scene: &Scene, words: &[&str]) -> Value {
    let all: Value =
        serde_json::from_str(&scene.agent.command(&[&["trace", "--json"], words].concat()).unwrap()).unwrap();
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
    all[0].clone()
}

/// What it says of a stage.
fn stage(answer: &Value, stage: &str) -> Option<String> {
    let steps = answer["steps"].as_array().unwrap();
    Some(steps.iter().find(|step| step["stage"] == stage)?["text"].as_str().unwrap().to_owned())
}

/// Nothing that was asked is in any table or counter.
fn untouched(scene: &Scene) -> (Vec<Value>, String) {
    (scene.agent.rows("flows").unwrap(), scene.agent.command(&["drops", "--json"]).unwrap())
}

/// A connection from this very port, as long as it is kept.
fn connect(scene: &Scene, from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = || -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        Ok(socket.into())
    };
    scene.device.client.run(socket).unwrap().unwrap()
}

#[test]
fn what_is_said_happens() {
    let scene = Scene::open("auto", "xdp").unwrap();
    let before = untouched(&scene);
    let mut expected = Vec::new();
    for like in device::lan(50).both() {
        let vip = SocketAddr::new(Which::Both.external().like(like), PORT);
        let pods =
            [device::pod(1, 11), device::pod(1, 12)].map(|pod| SocketAddr::new(pod.like(like), ECHO).to_string());
        for port in 40_000..40_006 {
            let client = SocketAddr::new(like, port);
            let (from, to) = (client.to_string(), vip.to_string());
            let words = ["tcp", &from, &to, "--in", "Port3"];
            let said = ask(&scene, &words);
            assert_eq!(stage(&said, "connection").as_deref(), Some("not known"), "{said}");
            let service = stage(&said, "service").unwrap();
            assert!(service.starts_with(&format!("default/both:tcp at {vip}/TCP")), "{service}");
            let becomes = said["becomes"].as_str().unwrap();
            let chosen = usize::from(becomes.contains(&format!("> {} ", pods[1])));
            assert!(becomes.contains(&format!("{client} > {} SYN", pods[chosen])), "{becomes}");
            assert!(stage(&said, "backend").unwrap().starts_with(&pods[chosen]), "{said}");
            let not = |wanted: &str| {
                let said = ask(&scene, &[&words[..], &["--why-not", wanted]].concat());
                said["why_not"].as_str().unwrap().to_owned()
            };
            assert_eq!(not(&pods[chosen]), format!("{} it is", pods[chosen]));
            let other = not(&pods[1 - chosen]);
            assert!(other.starts_with("the connection's hash leads to slot "), "{other}");
            let stranger = not("192.0.2.9");
            assert!(stranger.starts_with("192.0.2.9 is no backend of default/both:tcp"), "{stranger}");
            expected.push((client, vip, pods[chosen].clone()));
        }
    }
    assert_eq!(untouched(&scene), before, "asking changes nothing");
    assert!(
        ["11:", "12:"].iter().all(|pod| expected.iter().any(|(.., backend)| backend.contains(pod))),
        "{expected:?}"
    );

    let open: Vec<TcpStream> = expected.iter().map(|(client, vip, _)| connect(&scene, *client, *vip)).collect();
    let rows = scene.agent.rows("flows").unwrap();
    for (client, vip, backend) in &expected {
        let row = rows.iter().find(|row| row["client"] == client.to_string().as_str()).unwrap();
        assert_eq!(row["backend"], backend.as_str(), "{row}");
        let said = ask(&scene, &["tcp", &client.to_string(), &vip.to_string(), "--flags", "ack", "--in", "eth1"]);
        let known = stage(&said, "connection").unwrap();
        assert!(
            known.starts_with("known, of default/both:tcp, ") && known.ends_with(&format!("> {backend}")),
            "{known}"
        );
    }
    drop(open);
}

#[test]
fn questions_that_have_no_answer() {
    let scene = Scene::open("auto", "xdp").unwrap();
    let said = |words: &[&str]| format!("{:#}", scene.agent.command(&[&["trace"], words].concat()).unwrap_err());
    let tcp = ["tcp", "192.168.20.50:1", "192.168.20.103:80"];
    for (words, want) in [
        (&["--in", "Port9"][..], "`Port9` has no program for what comes in by it; expected one of "),
        (&["--out", "veth9"], "`veth9` has no program for what leaves by it; expected one of "),
        (&["--in", "Port3", "--flags", "syn,urg"], "`urg`; expected flags of syn, ack, fin, rst and psh"),
    ] {
        let said = said(&[&tcp[..], words].concat());
        assert!(said.contains(want), "{said}");
    }
    let file = scene.device.lab.dir().join("none.pcap");
    std::fs::write(&file, "no capture").unwrap();
    let said = said(&["--pcap", &file.display().to_string(), "--in", "Port3"]);
    assert!(said.contains("none.pcap: expected a file as `tcpdump -w` writes it (pcap)"), "{said}");
}
