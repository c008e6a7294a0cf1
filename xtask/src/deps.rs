//! The rung `deps`: where dependencies come from, under which licences, and what is known against them.
//!
//! Licences and origins stand in cargo's own metadata. Advisories need a database that is fetched: they are asked for
//! where `cargo audit` is installed and finds it.

use anyhow::{Context, Result, bail, ensure};
use spdx::{Expression, ParseMode};

use crate::cmd;

/// What our own licences (Apache-2.0 OR MIT) can be given away with.
const LICENCES: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "NCSA",
    "Unicode-3.0",
    "Zlib",
];

const WORKSPACES: [&str; 3] = ["Cargo.toml", "lb-ebpf/Cargo.toml", "tests/fuzz/Cargo.toml"];

/// Checks all of them; what was left out, if anything was.
pub fn check() -> Result<Option<String>> {
    let mut wrong = Vec::new();
    for workspace in WORKSPACES {
        let mut cargo = cmd::cargo();
        cargo.args(["metadata", "--format-version", "1", "--locked", "--manifest-path", workspace]);
        let text = cmd::output(cargo)?;
        let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo printed broken JSON")?;
        let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
        let said = |package: &serde_json::Value| {
            let field = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
            let error = judge(&field("source"), &field("license")).err()?;
            Some(format!("{} {} ({workspace}): {error:#}", field("name"), field("version")))
        };
        wrong.extend(packages.iter().filter_map(said));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    advisories()
}

/// A package without a source is our own.
fn judge(source: &str, license: &str) -> Result<()> {
    if source.is_empty() {
        return Ok(());
    }
    ensure!(source.starts_with("registry+"), "it comes from {source}; expected the registry");
    let expression =
        Expression::parse_mode(license, ParseMode::LAX).with_context(|| format!("its licence `{license}`"))?;
    let allowed = |name: &str| LICENCES.contains(&name);
    if !expression.evaluate(|requirement| requirement.license.id().is_some_and(|id| allowed(id.name))) {
        bail!("its licence is `{license}`; expected one of {}", LICENCES.join(", "));
    }
    Ok(())
}

fn advisories() -> Result<Option<String>> {
    let audit = |args: &[&str]| {
        let mut cargo = cmd::cargo();
        cargo.arg("audit").args(args);
        cargo
    };
    if cmd::output(audit(&["--version"])).is_err() {
        return Ok(Some("advisories weren't asked for: cargo-audit isn't installed".into()));
    }
    cmd::run(audit(&["--deny", "warnings"])).map(|()| None)
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn licences_and_origins() {
        let registry = "registry+https://example.org/index";
        for license in ["MIT", "MIT/Apache-2.0", "Unlicense OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0", "MPL-2.0+"]
        {
            judge(registry, license).unwrap();
        }
        for (source, license, want) in [
            (registry, "GPL-3.0-only", "its licence is `GPL-3.0-only`"),
            (registry, "MIT AND GPL-2.0", "its licence is `MIT AND GPL-2.0`"),
            (registry, "", "its licence ``"),
            ("git+https://example.org/x", "MIT", "it comes from git+"),
        ] {
            let error = format!("{:#}", judge(source, license).unwrap_err());
            assert!(error.starts_with(want), "{error}");
        }
        judge("", "").unwrap();
    }
}
