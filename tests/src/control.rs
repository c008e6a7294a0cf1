//! Any bytes as a call of the CNI plugin, as a request at the agent's socket, and as what nodes tell each other: for
//! the fuzzer.

use std::collections::BTreeMap;

use lb_user::announce::peers::Word;
use lb_user::cni::call::{self, Verb};
use lb_user::cni::request;
use lb_user::pods::talk::Request;

pub const CALL: u8 = 0;
pub const REQUEST: u8 = 1;
pub const WORD: u8 = 2;

/// The fuzzer's language: a byte that says as what, then the bytes. A call is lines of `NAME=VALUE`, an empty line, and
/// what comes on standard input.
pub fn fuzz(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 3 {
        CALL => called(bytes),
        REQUEST => requested(bytes),
        _ => told(bytes),
    }
}

fn called(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (head, conf) = text.split_once("\n\n").unwrap_or((&text, ""));
    let env: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once('=')).collect();
    let env = |name: &str| env.get(name).map(|value| (*value).to_owned());
    match call::read(&env, conf.as_bytes()) {
        Ok(call) => {
            let names = matches!(call.verb, Verb::Add | Verb::Del | Verb::Check);
            assert_eq!(names, !call.key.container.is_empty(), "whose interface is asked for: {call:?}");
            if call.verb != Verb::Version {
                whole(&request(&call));
            }
        }
        Err(failure) => assert!(failure.code != 0 && !failure.msg.is_empty(), "{failure:?}"),
    }
}

fn requested(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        whole(&request);
    }
}

/// What is asked arrives as it was meant.
fn whole(request: &Request) {
    let text = serde_json::to_vec(request).unwrap();
    assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), *request);
}

fn told(bytes: &[u8]) {
    if let Some((node, word)) = Word::parse(bytes) {
        assert_eq!(word.text(node).as_bytes(), bytes);
    }
}
