//! A headless Chromium inside a namespace, told what to do by the DevTools protocol over two pipes.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use super::clean::Proc;
use super::{Lab, Ns};

/// Longer than any answer takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
];

/// The program and one page; killed when dropped.
pub struct Browser {
    _process: Proc,
    to: File,
    from: Receiver<Value>,
    last: u64,
    session: String,
    /// What the page complained of.
    pub complaints: Vec<String>,
}

impl Browser {
    /// Starts it with an empty page.
    pub fn open(lab: &Lab, ns: &Ns) -> Result<Browser> {
        let dir = lab.dir().join("browser");
        std::fs::create_dir_all(&dir).context("the browser's folder")?;
        let [to, from] = ["to", "from"].map(|name| pipe(&dir, name));
        let (to, from) = (to?, from?);
        // The program reads from 3 and writes to 4.
        let mut command = ns.command("sh");
        command.arg("-c").arg(r#"exec chromium "$@" 3<>"$TO" 4<>"$FROM""#).arg("sh").args(FLAGS);
        let profile: OsString = [OsString::from("--user-data-dir="), dir.join("profile").into()].into_iter().collect();
        command.arg(profile).arg("about:blank").env("TO", &to).env("FROM", &from);
        command.env("HOME", &dir).env("XDG_RUNTIME_DIR", &dir).env_remove("DISPLAY");
        command.stdout(Stdio::null()).stderr(File::create(dir.join("log"))?);
        let process = Proc::start(&mut command).context("starting Chromium (package chromium)")?;
        // Both ends at once: neither waits for the other.
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let (to, from) = (open(&to)?, messages(open(&from)?));
        let mut browser =
            Browser { _process: process, to, from, last: 0, session: String::new(), complaints: Vec::new() };
        let made = browser.ask("Target.createTarget", json!({"url": "about:blank"}))?;
        let attached = browser.ask("Target.attachToTarget", json!({"targetId": made["targetId"], "flatten": true}))?;
        browser.session = attached["sessionId"].as_str().context("no session")?.to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Has something done, and waits for the answer.
    pub fn ask(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).context("the browser has gone")?;
        let end = Instant::now() + PATIENCE;
        loop {
            super::clean::check()?;
            let mut told = match self.from.recv_timeout(Duration::from_millis(200)) {
                Ok(told) => told,
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => continue,
                Err(why) => bail!("{method}: no answer ({why})"),
            };
            if told["id"] == self.last {
                return match told.get("error") {
                    Some(error) => bail!("{method}: {error}"),
                    None => Ok(told["result"].take()),
                };
            }
            self.note(&told);
        }
    }

    fn note(&mut self, told: &Value) {
        let params = &told["params"];
        match told["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            // That a server is away is what some tests are about.
            Some("Log.entryAdded") if params["entry"]["source"] != "network" => {
                self.complaints.push(params["entry"]["text"].to_string());
            }
            _ => {}
        }
    }

    /// The value of an expression; a promise's once it is there.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut told = self.ask("Runtime.evaluate", params)?;
        if let Some(thrown) = told.get("exceptionDetails") {
            bail!("{expression}: {thrown}");
        }
        Ok(told["result"]["value"].take())
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, expression: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.value(expression)? == true {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let text = self.value("document.body ? document.body.innerText.slice(0, 2000) : ''")?;
        bail!("not true after {PATIENCE:?}: {expression}\nthe page says: {text}\ncomplaints: {:?}", self.complaints)
    }

    pub fn go(&mut self, url: &str) -> Result<()> {
        let told = self.ask("Page.navigate", json!({"url": url}))?;
        match told.get("errorText") {
            Some(error) => bail!("{url}: {error}"),
            None => self.wait("document.readyState === 'complete'"),
        }
    }

    /// The window's size, and whether it is dark.
    pub fn look(&mut self, width: u32, height: u32, dark: bool) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", size)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.ask("Emulation.setEmulatedMedia", features)?;
        Ok(())
    }

    /// What is in the window, as PNG in base64.
    pub fn picture(&mut self) -> Result<String> {
        let told = self.ask("Page.captureScreenshot", json!({"format": "png", "optimizeForSpeed": false}))?;
        Ok(told["data"].as_str().context("no picture")?.to_owned())
    }
}

fn pipe(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Messages end with a zero.
fn messages(from: File) -> Receiver<Value> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.read_until(0, &mut bytes).is_ok_and(|n| n > 0) {
            bytes.pop();
            let Ok(message) = serde_json::from_slice(&bytes) else { return };
            if tell.send(message).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    told
}
