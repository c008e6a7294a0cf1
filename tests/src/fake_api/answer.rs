//! A request and its answer.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};

use super::faults::Streams;
use super::store::{KINDS, Kind, Store};
use super::watching::{self, Start};
use super::{Asked, Server, apply, lock};

pub type Body = BoxBody<Bytes, std::io::Error>;

pub async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect(),
    };
    lock(&server.asked).push(asked.clone());
    let Some(target) = Target::of(&asked.path) else {
        return Ok(status(404, "NotFound", "the server could not find the requested resource"));
    };
    if let Some(refusal) = refusal(&server, &target) {
        return Ok(refusal);
    }
    let answer = match (&parts.method, target.name) {
        (&Method::GET, None) if asked.says("watch") == Some("true") => watch(&server, &target, &asked),
        (&Method::GET, None) => list(&mut lock(&server.store), &target, &asked),
        (&Method::GET, Some(name)) if !target.status => {
            match lock(&server.store).get(target.kind.plural, target.namespace.unwrap_or_default(), name) {
                Some(object) => send(200, object),
                None => not_found(&target, name),
            }
        }
        (&Method::PATCH, Some(name)) if target.status => {
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let kind = parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
            patch(&server, &target, name, kind, &asked, &body)
        }
        _ => status(405, "MethodNotAllowed", "the server does not allow this method on the requested resource"),
    };
    Ok(answer)
}

/// What is asked for.
pub struct Target<'a> {
    pub kind: &'static Kind,
    pub namespace: Option<&'a str>,
    name: Option<&'a str>,
    status: bool,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/api/").or_else(|| path.strip_prefix("/apis/"))?;
        let kind = |plural: &str| {
            let matches = |kind: &&Kind| {
                kind.plural == plural && path.strip_prefix(kind.version).is_some_and(|rest| rest.starts_with('/'))
            };
            KINDS.iter().find(matches)
        };
        let version =
            KINDS.iter().map(|kind| kind.version).find(|v| path.strip_prefix(v).is_some_and(|r| r.starts_with('/')))?;
        let words: Vec<&str> = path[version.len() + 1..].split('/').collect();
        let (namespace, words) = match words[..] {
            ["namespaces", namespace, ref rest @ ..] if !rest.is_empty() => (Some(namespace), rest.to_vec()),
            _ => (None, words),
        };
        let (plural, name, status) = match words[..] {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some(name), false),
            [plural, name, "status"] => (plural, Some(name), true),
            _ => return None,
        };
        Some(Target { kind: kind(plural)?, namespace, name, status })
    }
}

/// What a fault makes of a request.
fn refusal(server: &Server, target: &Target<'_>) -> Option<Response<Body>> {
    let mut faults = lock(&server.faults);
    if faults.forbidden.as_deref() == Some(target.kind.plural) {
        let message = format!("{} is forbidden: User \"agent\" cannot list resource", target.kind.plural);
        return Some(status(403, "Forbidden", &message));
    }
    let code = faults.statuses.pop_front()?;
    Some(match code {
        401 => status(401, "Unauthorized", "Unauthorized"),
        429 => {
            let text = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429, "reason": "TooManyRequests",
                "message": "too many requests, please try again later", "details": { "retryAfterSeconds": 1 },
            });
            send(429, &text)
        }
        410 => gone(),
        code => status(code, "InternalError", "Internal error occurred"),
    })
}

fn list(store: &mut Store, target: &Target<'_>, asked: &Asked) -> Response<Body> {
    let limit = asked.says("limit").and_then(|text| text.parse().ok()).unwrap_or(0);
    let (version, items) = match asked.says("continue") {
        None => (store.version, store.list(target.kind.plural, target.namespace)),
        Some(token) => match store.rest(token) {
            Some(rest) => rest,
            None => return gone(),
        },
    };
    let (mut items, version, token) = store.page(version, items, limit);
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        // A list's items don't say what they are.
        item.remove("kind");
        item.remove("apiVersion");
    }
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if !token.is_empty() {
        metadata["continue"] = token.into();
    }
    let kind = format!("{}List", target.kind.kind);
    send(200, &json!({ "kind": kind, "apiVersion": target.kind.version, "metadata": metadata, "items": items }))
}

fn watch(server: &Arc<Server>, target: &Target<'_>, asked: &Asked) -> Response<Body> {
    let (streams, by_status) = {
        let faults = lock(&server.faults);
        (faults.streams, faults.gone_by_status)
    };
    let invalid = |message: &str| status(422, "Invalid", message);
    let initial = asked.says("sendInitialEvents") == Some("true");
    match streams {
        Streams::Yes if initial && asked.says("resourceVersionMatch") != Some("NotOlderThan") => {
            return invalid("resourceVersionMatch: Forbidden: sendInitialEvents requires NotOlderThan");
        }
        Streams::Yes if initial && asked.says("allowWatchBookmarks") != Some("true") => {
            return invalid("allowWatchBookmarks: Forbidden: sendInitialEvents requires bookmarks");
        }
        Streams::Refused if initial => {
            return invalid("sendInitialEvents: Forbidden: unless the WatchList feature gate is enabled");
        }
        _ => {}
    }
    let version = match asked.says("resourceVersion").unwrap_or_default() {
        "" | "0" => None,
        text => match text.parse::<u64>() {
            Ok(version) => Some(version),
            Err(_) => return status(400, "BadRequest", &format!("invalid resource version {text:?}")),
        },
    };
    let start = match version {
        _ if initial && streams == Streams::Yes => Start::Streamed,
        None => Start::Any,
        Some(version) if by_status && lock(&server.store).since(target.kind.plural, version).is_none() => {
            return gone();
        }
        Some(version) => Start::At(version),
    };
    let seconds = asked.says("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(1_800);
    let bookmarks = asked.says("allowWatchBookmarks") == Some("true");
    let body = watching::open(server.clone(), target, start, bookmarks, seconds);
    Response::builder().header("content-type", "application/json").body(body).unwrap_or_default()
}

fn patch(server: &Server, target: &Target<'_>, name: &str, kind: &str, asked: &Asked, body: &[u8]) -> Response<Body> {
    if kind != "application/apply-patch+yaml" {
        return status(
            415,
            "UnsupportedMediaType",
            "the body was in an unknown format; accepted: application/apply-patch+yaml",
        );
    }
    let Some(manager) = asked.says("fieldManager").filter(|manager| !manager.is_empty()) else {
        return status(422, "Invalid", "fieldManager: Required value: is required for apply patch");
    };
    let Ok(wanted) = serde_json::from_slice(body) else {
        return status(400, "BadRequest", "error decoding the patch");
    };
    let mut store = lock(&server.store);
    let Some(object) = store.get(target.kind.plural, target.namespace.unwrap_or_default(), name).cloned() else {
        return not_found(target, name);
    };
    match apply::status(object.clone(), &wanted, manager, asked.says("force") == Some("true")) {
        Err(message) => status(409, "Conflict", &message),
        Ok(after) => {
            // What changes nothing makes no version.
            if after != object {
                store.put(after);
            }
            let now = store.get(target.kind.plural, target.namespace.unwrap_or_default(), name).cloned();
            drop(store);
            server.wake();
            send(200, &now.unwrap_or_default())
        }
    }
}

fn send(code: u16, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed();
    let answer = Response::builder().status(code).header("content-type", "application/json").body(body);
    answer.unwrap_or_default()
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    send(code, &watching::status(code, reason, message))
}

fn not_found(target: &Target<'_>, name: &str) -> Response<Body> {
    status(404, "NotFound", &format!("{} \"{name}\" not found", target.kind.plural))
}

fn gone() -> Response<Body> {
    status(410, "Expired", "too old resource version")
}
