//! The page in a real browser: it loads, lives, searches, says when the agent is away and comes back by itself, and does
//! not stutter with a thousand services. `BLESS=1` keeps its pictures in docs/images.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use stellwerk_tests::netns::browser::Browser;
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::scene::{PORT, Scene, Which};
use stellwerk_tests::netns::{Ns, probe};

const PAGE: &str = "http://127.0.0.1:9617/";
const MANY: usize = 1_000;
/// The longest time that the page may show nothing new. Mostly it is a few ms; the machine does much else meanwhile.
const LONGEST: f64 = 1_000.0;

fn open() -> (Scene, Browser) {
    let mut scene = Scene::without_agent("auto", "auto").unwrap();
    scene.files.write_config(&(Files::standard("auto", "auto") + "web: {}\n")).unwrap();
    scene.start_agent().unwrap();
    let browser = Browser::open(&scene.device.lab, &scene.device.dev).unwrap();
    (scene, browser)
}

/// Connections to a service until the answer is dropped.
fn traffic(ns: &Ns, which: Which) -> std::thread::JoinHandle<()> {
    let from = probe::From::ns(ns);
    std::thread::spawn(move || {
        for _ in 0..150 {
            for ip in which.external().both() {
                // The page is tested, not the way of each packet.
                _ = probe::tcp(&from, SocketAddr::new(ip, PORT), 4_000);
            }
            std::thread::sleep(Duration::from_millis(15));
        }
    })
}

/// Keeps a picture if that is wished; it has something on it in any case.
fn picture(browser: &mut Browser, name: &str) {
    let bytes = BASE64_STANDARD.decode(browser.picture().unwrap()).unwrap();
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000, "{name}: {} bytes", bytes.len());
    if std::env::var_os("BLESS").is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("page-{name}.png")), bytes).unwrap();
    }
}

/// Text on the page.
fn has(text: &str) -> String {
    format!("document.body.innerText.includes({text:?})")
}

#[test]
fn it_lives_and_comes_back() {
    let (mut scene, mut browser) = open();
    browser.look(1100, 700, false).unwrap();
    browser.go(PAGE).unwrap();
    browser.wait("document.getElementById('state').textContent === '● live'").unwrap();
    // Ports, services and backends are drawn, with what passes now.
    let drawn = |word: &str| format!("document.querySelector('#picture svg').textContent.includes({word:?})");
    for word in ["Port2", "Port3", "br-int", "default/both:tcp", "172.27.1.11:7000", "172.27.2.11:7000", "edge-1"] {
        browser.wait(&drawn(word)).unwrap();
    }
    let talk = traffic(&scene.device.client, Which::Both);
    let moving =
        "[...document.querySelectorAll('#picture svg text')].some((t) => /[1-9][\\d.]* \\/s new/.test(t.textContent))";
    browser.wait(moving).unwrap();
    // Lines grow by and by.
    std::thread::sleep(Duration::from_millis(700));
    picture(&mut browser, "light");
    browser.look(1100, 700, true).unwrap();
    picture(&mut browser, "dark");
    browser.look(390, 844, false).unwrap();
    browser.wait("document.querySelector('#picture svg').clientWidth < 400").unwrap();
    // A phone scrolls down alone.
    browser.wait("document.documentElement.scrollWidth <= innerWidth").unwrap();
    picture(&mut browser, "phone");
    talk.join().unwrap();

    // A view of each listing, with rows where there are any.
    browser.look(1280, 900, false).unwrap();
    for (tab, word) in [
        ("services", "default/sticky:udp"),
        ("backends", "172.27.2.11:7000"),
        ("ports", "uplink"),
        ("nat", "translation"),
        ("drops", "no_backend"),
        ("status", "FLOWS4"),
        ("flows", "default/both:tcp"),
        ("addresses", "default"),
    ] {
        browser.value(&format!("location.hash = {tab:?}")).unwrap();
        browser.wait(&has(word)).unwrap();
    }
    browser.value("location.hash = 'services'").unwrap();
    browser.wait("/^\\d+ of \\d+/.test(document.getElementById('count').textContent)").unwrap();
    let search =
        "const s = document.getElementById('search'); s.value = 'STICKY udp'; s.dispatchEvent(new Event('input'))";
    browser.value(search).unwrap();
    browser.wait("document.querySelectorAll('tbody tr:not(.space)').length === 1").unwrap();
    browser.value("location.hash = 'history'").unwrap();
    browser.wait("document.querySelectorAll('#charts figure').length >= 8").unwrap();

    // The agent dies, and another one comes: the page says the one and finds the other by itself.
    scene.agent.kill();
    browser.wait(&has("The agent has not answered since")).unwrap();
    assert_eq!(browser.value("document.body.classList.contains('away')").unwrap(), true);
    scene.start_agent().unwrap();
    browser.wait("document.getElementById('state').textContent === '● live'").unwrap();
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

/// Services of one endpoint each, in one file.
fn many() -> String {
    let mut text = String::new();
    for n in 0..MANY {
        let (high, low) = (100 + n / 250, 1 + n % 250);
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{n}, namespace: many }}\n\
             spec: {{ clusterIP: 172.28.{high}.{low}, ports: [{{ name: a, port: 80, targetPort: 8080 }}] }}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{ name: s{n}-a, namespace: many, labels: {{ kubernetes.io/service-name: s{n} }} }}\n\
             addressType: IPv4\nports: [{{ name: a, port: 8080 }}]\n\
             endpoints: [{{ addresses: [172.27.1.{low}], nodeName: edge-1, conditions: {{ ready: true }} }}]\n"
        )
        .unwrap();
    }
    text
}

/// Frames while somebody scrolls, sorts and searches, and answers come: the longest, in ms.
const FRAMES: &str = r#"(async () => {
  const scroller = document.getElementById("scroller");
  const search = document.getElementById("search");
  let longest = 0;
  let rows = 0;
  let last = performance.now();
  const end = last + 4000;
  for (let n = 0; performance.now() < end; n += 1) {
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    rows = Math.max(rows, document.querySelectorAll("tbody tr").length);
    scroller.scrollTop = (n * 97) % (scroller.scrollHeight || 1);
    if (n % 40 === 20) document.querySelectorAll("thead button")[(n / 20) % 4 | 0].click();
    if (n % 40 === 0) {
      search.value = n % 80 ? "many/s1" : "";
      search.dispatchEvent(new Event("input"));
    }
  }
  search.value = "";
  search.dispatchEvent(new Event("input"));
  return { longest, rows };
})()"#;

#[test]
fn a_thousand_services() {
    let (mut scene, mut browser) = open();
    scene.files.replace("cluster/many.yaml", &many()).unwrap();
    scene.agent.wait("services", |rows| rows.len() > MANY).unwrap();
    browser.look(1280, 900, false).unwrap();
    browser.go(&format!("{PAGE}#services")).unwrap();
    browser.wait("/ of 10\\d\\d/.test(document.getElementById('count').textContent)").unwrap();
    let frames = browser.value(FRAMES).unwrap();
    let (longest, rows) = (frames["longest"].as_f64().unwrap(), frames["rows"].as_u64().unwrap());
    println!("with {MANY} services the longest frame took {longest:.1} ms, of {rows} rows");
    assert!(rows > 20 && rows < 100, "{rows} rows are elements");
    assert!(longest < LONGEST, "a frame took {longest:.1} ms");
    // The picture stays one, too.
    browser.value("location.hash = 'device'").unwrap();
    let more = "/and (99\\d|10\\d\\d) services more/.test(document.getElementById('picture').textContent)";
    browser.wait(more).unwrap();
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
