//! The page: one document, in a few files that are put together here.
//!
//! Invariant: it asks nobody but this server; what runs in it is what carries the answer's own word (nonce), so that a
//! name in a table can never become a script.

use std::sync::LazyLock;

use hyper::StatusCode;
use hyper::header::HeaderValue;

use super::answer::{Answer, with_policy};

/// What is at which path, for programs.
pub const OPENAPI: &str = include_str!("../../../docs/openapi.yaml");

const NONCE: &str = "{{nonce}}";

/// The document, but for the word of its scripts and styles.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page/index.html").replace("{{style}}", include_str!("page/style.css")).replace(
        "{{script}}",
        concat!(
            include_str!("page/base.js"),
            include_str!("page/picture.js"),
            include_str!("page/tables.js"),
            include_str!("page/history.js"),
            include_str!("page/live.js"),
        ),
    )
});

pub fn answer() -> Answer {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    // Of hexadecimal digits and the text above.
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    with_policy(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace(NONCE, &nonce), policy)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn one_document_that_asks_nobody_else() {
        let [one, other] = [answer(), answer()];
        let policy = one.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert_ne!(policy, other.headers()["content-security-policy"].to_str().unwrap());
        let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
        let text = String::from_utf8(one.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "a script and a style");
        for odd in ["{{", "innerHTML", "http://", "https://", " style=", "onclick=", "src=", "eval("] {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(odd), "{odd}");
        }
        assert!(text.len() < 100_000, "{} bytes", text.len());
    }
}
