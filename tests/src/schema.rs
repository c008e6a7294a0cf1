//! Holds answers against docs/openapi.yaml.
//!
//! Invariant: a word of a schema that isn't understood here is an error: nothing passes since it wasn't looked at.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The description.
#[derive(Debug)]
pub struct Description(Value);

impl Description {
    pub fn read() -> Result<Description> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.yaml");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Description(serde_saphyr::from_str(&text)?))
    }

    pub fn paths(&self) -> Vec<String> {
        self.0["paths"].as_object().into_iter().flat_map(|paths| paths.keys().cloned()).collect()
    }

    /// Whether a body is as described for a path and a status.
    pub fn check(&self, path: &str, status: u16, kind: &str, body: &str) -> Result<()> {
        let responses = &self.0["paths"][path]["get"]["responses"];
        let response = self.resolve(&responses[status.to_string()])?;
        ensure!(response.is_object(), "{path}: the status {status} is not described");
        let bare = kind.split(';').next().unwrap_or_default();
        let content = response["content"].get(bare);
        let content = content.with_context(|| format!("{path}: {bare} is not described for {status}"))?;
        if bare == "application/json" {
            let value: Value = serde_json::from_str(body).with_context(|| format!("{path}: {body}"))?;
            self.fits(&content["schema"], &value).with_context(|| path.to_owned())?;
        }
        Ok(())
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> Result<&'a Value> {
        let Some(to) = schema.get("$ref") else { return Ok(schema) };
        let pointer = to.as_str().and_then(|to| to.strip_prefix('#')).context("a reference to elsewhere")?;
        self.0.pointer(pointer).with_context(|| format!("{pointer} is not there"))
    }

    fn fits(&self, schema: &Value, value: &Value) -> Result<()> {
        let schema = self.resolve(schema)?;
        for (word, rule) in schema.as_object().context("a schema that is no map")? {
            match word.as_str() {
                "type" => ensure!(is_of(rule, value), "{value} is not of the type {rule}"),
                "enum" => ensure!(rule.as_array().is_some_and(|all| all.contains(value)), "{value} is none of {rule}"),
                "required" => {
                    let mut missing = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                    let missing = missing.find(|key| value.get(key).is_none());
                    ensure!(missing.is_none(), "{} is missing in {value}", missing.unwrap_or_default());
                }
                "properties" => self.properties(rule, value)?,
                "items" => {
                    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.fits(rule, item).with_context(|| format!("[{at}]"))?;
                    }
                }
                "additionalProperties" | "description" => {}
                word => bail!("the schema's `{word}` isn't understood"),
            }
        }
        Ok(())
    }

    /// All properties are described.
    fn properties(&self, rules: &Value, value: &Value) -> Result<()> {
        for (key, value) in value.as_object().into_iter().flatten() {
            let rule = rules.get(key).with_context(|| format!("{key} is not described"))?;
            self.fits(rule, value).with_context(|| key.clone())?;
        }
        Ok(())
    }
}

fn is_of(rule: &Value, value: &Value) -> bool {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    rule == kind || rule.as_array().is_some_and(|all| all.iter().any(|rule| rule == kind))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_as_described_is_told() {
        let described = Description::read().unwrap();
        let drop = json!({"kind": "drop", "reason": "a", "count": 1, "text": "b"});
        let check = |rows: Value| described.check("/api/v1/drops", 200, "application/json", &rows.to_string());
        check(json!([drop])).unwrap();
        for (key, value, why) in [
            ("kind", json!("other"), "none of"),
            ("count", json!("1"), "not of the type"),
            ("more", json!(1), "more is not described"),
        ] {
            let mut odd = drop.clone();
            odd[key] = value;
            let error = format!("{:#}", check(json!([drop, odd])).expect_err(why));
            assert!(error.contains(why) && error.contains("[1]"), "{error}");
        }
        let mut less = drop.clone();
        less.as_object_mut().unwrap().remove("text");
        assert!(format!("{:#}", check(json!([less])).unwrap_err()).contains("text is missing"));
        assert!(check(json!({})).is_err());
        assert!(described.check("/api/v1/drops", 418, "application/json", "[]").is_err());
    }
}
