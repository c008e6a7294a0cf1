//! Where the agent can be watched: what is read, and what is refused in which words.

use super::*;
use crate::web::tests::pem;

fn with(web: &str) -> Result<Config, String> {
    parse(&format!("node: n\ninside: x\nweb: {web}\n"))
}

#[test]
fn nobody_watches_unless_it_is_said() {
    assert_eq!(parse("node: n\ninside: x\n").unwrap().web, None);
    let web = with("{}").unwrap().web.unwrap();
    assert_eq!((web.listen.to_string().as_str(), web.token, web.tls), ("127.0.0.1:9617", None, None));
}

#[test]
fn watching_from_elsewhere() {
    let web = "{ listen: '[::]:443', tokenFile: token, tls: { certificate: a.pem, key: b.pem } }";
    let web = with(web).unwrap().web.unwrap();
    assert_eq!((web.listen.to_string().as_str(), web.token), ("[::]:443", Some("token".into())));
    let tls = web.tls.unwrap();
    assert_eq!((tls.certificate, tls.key), ("a.pem".into(), "b.pem".into()));
    let loopback = with("{ listen: '[::1]:80' }").unwrap().web.unwrap();
    assert_eq!((loopback.listen.port(), loopback.token), (80, None));
}

#[test]
fn wrong_ways_to_watch() {
    for (web, want) in [
        ("on", "c.yaml:3:6: web: `on` is not a map with the keys listen, tokenFile, tls"),
        (
            "{ listen: 127.0.0.1 }",
            "c.yaml:3:16: web.listen: `127.0.0.1` has no port; expected an address of this node and a port such as 127.0.0.1:9617 or [::]:9617",
        ),
        (
            "{ listen: localhost:80 }",
            "c.yaml:3:16: web.listen: `localhost:80` is not an address of this node and a port such as 127.0.0.1:9617 or [::]:9617",
        ),
        (
            "{ listen: '127.0.0.1:0' }",
            "c.yaml:3:16: web.listen: `127.0.0.1:0` has port 0; expected an address of this node and a port such as 127.0.0.1:9617 or [::]:9617",
        ),
        (
            "{ listen: '0.0.0.0:9617' }",
            "c.yaml:3:16: web.listen: `0.0.0.0:9617` can be asked from elsewhere; expected web.tokenFile, too, or a loopback such as 127.0.0.1:9617",
        ),
        (
            "{ tls: { certificate: a.pem } }",
            "c.yaml:3:13: web.tls.key: is missing; expected a file with the certificate's private key in PEM",
        ),
        ("{ token: abc }", "c.yaml:3:8: web.token: unknown key; expected one of listen, tokenFile, tls"),
        ("{ tokenFile: '' }", "c.yaml:3:19: web.tokenFile: `` is not a file whose one line is a token"),
    ] {
        assert_eq!(with(web).err().as_deref(), Some(want), "for {web}");
    }
}

/// What is in the files is looked at, too, before anything is changed.
#[test]
fn wrong_files() {
    let dir = std::env::temp_dir().join(format!("stellwerk-web-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let (der, key) = (include_bytes!("../../health/run/cert.der"), include_bytes!("../../health/run/key.der"));
    file("short", "secret\n");
    file("spaced", "a token of several words\n");
    file("token", "0123456789abcdef\n");
    file("cert.pem", &pem("CERTIFICATE", der));
    file("key.pem", &pem("PRIVATE KEY", key));
    file("none.pem", "nothing\n");
    let load = |web: &str| {
        file("c.yaml", &format!("node: n\ninside: x\nweb: {web}\n"));
        let path = |text: String| text.replace(&format!("{}/", dir.display()), "");
        Config::load(&dir.join("c.yaml")).map(|config| config.web).map_err(|error| path(error.to_string()))
    };
    let right = "expected one line of at least 16 letters, digits or signs";
    let tls = |certificate: &str, key: &str| format!("{{ tls: {{ certificate: {certificate}, key: {key} }} }}");
    for (web, want) in [
        ("{ tokenFile: gone }".to_owned(), "c.yaml:3:19: web.tokenFile: gone: there is no such file".to_owned()),
        ("{ tokenFile: short }".into(), format!("c.yaml:3:19: web.tokenFile: short: holds 6 characters; {right}")),
        ("{ tokenFile: spaced }".into(), format!("c.yaml:3:19: web.tokenFile: spaced: holds ' '; {right}")),
        (
            tls("none.pem", "key.pem"),
            "c.yaml:3:28: web.tls.certificate: none.pem: holds no certificate (there is no CERTIFICATE section); expected PEM".into(),
        ),
    ] {
        assert_eq!(load(&web).err(), Some(want), "for {web}");
    }
    let said = load(&tls("cert.pem", "none.pem")).unwrap_err();
    assert!(said.contains("web.tls.key: none.pem: holds no private key"), "{said}");
    let web = load(&tls("cert.pem", "key.pem")).unwrap().unwrap();
    assert_eq!(web.tls.unwrap().key, dir.join("key.pem"), "beside the configuration");
    assert_eq!(load("{ listen: '0.0.0.0:9617', tokenFile: token }").unwrap().unwrap().token, Some(dir.join("token")));
    std::fs::remove_dir_all(&dir).unwrap();
}
