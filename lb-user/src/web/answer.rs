//! From a request to its answer: who may ask, and what is at which path.
//!
//! Invariant: only GET and HEAD are answered, and nothing is changed by them; without the token, where there is one,
//! nothing is told but the page without its data and whether the agent is well. On a loopback without a token a request
//! has to name it, so that no web page elsewhere reads through a name of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde::Serialize;
use serde_json::json;

use super::listings::{BASE, Kind};
use super::{Settings, Watched, metrics, page};
use crate::agent::running;

/// Connections that are told of at the most, and where nothing is said.
const MOST: usize = 10_000;
const FLOWS: usize = 1_000;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Of everything but the page: it is no document.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub type Answer = Response<Full<Bytes>>;

/// By what a listener answers.
#[derive(Clone)]
pub struct Asked {
    pub watched: Arc<Watched>,
    pub settings: Settings,
    pub token: Option<Arc<str>>,
}

pub async fn answer<B>(asked: &Asked, request: &Request<B>) -> Answer {
    let mut answer = match refusal(asked, request) {
        Some(refusal) => refusal,
        None => told(asked, request.uri(), request.headers()).await,
    };
    asked.watched.requests.count(answer.status());
    if request.method() == Method::HEAD {
        *answer.body_mut() = Full::default();
    }
    answer
}

fn refusal<B>(asked: &Asked, request: &Request<B>) -> Option<Answer> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here: expected GET or HEAD");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(answer);
    }
    let Some(token) = &asked.token else {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let ours = host.or(request.uri().authority().map(|a| a.as_str())).is_some_and(is_loopback);
        let message = "expected a host that is a loopback, such as 127.0.0.1 or localhost; others need a token";
        return (!ours).then(|| error(StatusCode::MISDIRECTED_REQUEST, message));
    };
    if matches!(request.uri().path(), "/" | "/healthz" | "/readyz") || knows(token, request.headers()) {
        return None;
    }
    let mut answer = error(StatusCode::UNAUTHORIZED, "expected `Authorization: Bearer` and the token of web.tokenFile");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"stellwerk\""));
    Some(answer)
}

fn is_loopback(host: &str) -> bool {
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(n, _)| n);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|addr| addr.is_loopback())
}

/// Takes as long for a wrong token as for the right one.
fn knows(token: &str, headers: &HeaderMap) -> bool {
    let said = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let Some((scheme, said)) = said.split_at_checked(7) else { return false };
    let differ = token.bytes().zip(said).fold(0, |differ, (a, b)| differ | (a ^ b));
    scheme.eq_ignore_ascii_case(b"Bearer ") && said.len() == token.len() && std::hint::black_box(differ) == 0
}

async fn told(asked: &Asked, uri: &Uri, headers: &HeaderMap) -> Answer {
    let watched = &asked.watched;
    match uri.path() {
        "/" => page::answer(),
        "/healthz" => state(watched.vitals.hangs()),
        "/readyz" => state(watched.vitals.hangs().or_else(|| watched.vitals.unready())),
        "/metrics" => {
            let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let open = accepted.into_iter().any(|value| value.contains("application/openmetrics-text"));
            match metrics::scrape(watched, asked.settings.names, open).await {
                Ok(text) => response(StatusCode::OK, if open { OPEN_METRICS } else { PROMETHEUS }, text),
                Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written"),
            }
        }
        "/api/v1/about" => json(StatusCode::OK, &about(asked)),
        "/api/v1/history" => json(StatusCode::OK, &watched.history.told()),
        "/api/v1/openapi.yaml" => response(StatusCode::OK, "application/yaml", page::OPENAPI),
        path => match path.strip_prefix(BASE).and_then(Kind::find) {
            Some(Kind::Dns) if !asked.settings.names => json(StatusCode::OK, &json!([])),
            Some(kind) => listing(watched, kind, uri.query().unwrap_or_default()).await,
            None => error(StatusCode::NOT_FOUND, "there is nothing; /api/v1/openapi.yaml says what there is"),
        },
    }
}

async fn listing(watched: &Watched, kind: Kind, query: &str) -> Answer {
    let limit = match limit(query) {
        Ok(limit) => limit.unwrap_or(if kind == Kind::Flows { FLOWS } else { usize::MAX }),
        Err(why) => return error(StatusCode::BAD_REQUEST, &why),
    };
    match watched.cache.get(kind).await.map(|table| table.compact(limit)) {
        Ok(Ok(body)) => response(StatusCode::OK, JSON, body),
        Ok(Err(why)) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// `limit=N`, the only parameter.
fn limit(query: &str) -> Result<Option<usize>, String> {
    let right = || format!("`{query}` is not limit=N with a number from 1 to {MOST}");
    if query.is_empty() {
        return Ok(None);
    }
    let number = query.strip_prefix("limit=").and_then(|number| number.parse().ok());
    number.filter(|number| (1..=MOST).contains(number)).map(Some).ok_or_else(right)
}

fn about(asked: &Asked) -> serde_json::Value {
    let (about, _) = running(&asked.watched.paths);
    let vitals = &asked.watched.vitals;
    let revisions = vitals.revisions();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let (applied, mean) = vitals.changes();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": about.node,
        "pid": about.pid,
        "started": seconds(vitals.started),
        "now": seconds(SystemTime::now()),
        "revision": revisions.in_force,
        "revision_wished": revisions.wished,
        "lag_s": revisions.since.map_or(0.0, |since| since.elapsed().as_secs_f64()),
        "ready": vitals.unready().is_none(),
        "why": vitals.hangs().or_else(|| vitals.unready()),
        "applied": applied,
        "applied_mean_s": mean.as_secs_f64(),
    })
}

fn state(wrong: Option<String>) -> Answer {
    match wrong {
        None => response(StatusCode::OK, TEXT, "ok\n"),
        Some(why) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n")),
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(body) => response(status, JSON, body),
        Err(why) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, why.to_string()),
    }
}

fn error(status: StatusCode, message: &str) -> Answer {
    json(status, &json!({ "error": message }))
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    with_policy(status, kind, body, HeaderValue::from_static(NOTHING))
}

pub fn with_policy(status: StatusCode, kind: &'static str, body: impl Into<Bytes>, policy: HeaderValue) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let fixed: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let headers = response.headers_mut();
    headers.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}
