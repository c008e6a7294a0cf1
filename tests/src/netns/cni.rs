//! A container runtime, as far as the CNI goes: calls the plugin by the specification, and remembers what a runtime does.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::config::Files;
use super::device::Twin;
use super::{Agent, Device, Lab, Ns, agent};

/// The runtime of one node. Calls may be made from several threads.
#[derive(Clone, Debug)]
pub struct Runtime {
    node: Ns,
    plugin: PathBuf,
    pins: PathBuf,
    /// Of a thread that is on the node.
    inside: bool,
}

/// The standard device with an agent that makes pods, and a runtime. Fields are in the order in which they end.
#[derive(Debug)]
pub struct Node {
    pub agent: Agent,
    pub runtime: Runtime,
    pub device: Device,
}

impl Node {
    /// `lines` are what the configuration says of pods.
    pub fn open(lines: &str, manifests: impl FnOnce(&Files) -> Result<()>) -> Result<Node> {
        let device = Device::new()?;
        let files = Files::new(device.lab.dir())?;
        let standard = Files::standard("auto", "xdp")
            .replace("gateway: 203.0.113.1", "gateway: [203.0.113.1, \"2001:db8:113::1\"]")
            .replace("address: 10.20.0.1/24", "address: 10.20.0.1/24, ipv6: masquerade");
        files.write_config(&format!("{standard}  dns: {{}}\n{lines}"))?;
        manifests(&files)?;
        let mut agent = Agent::new(&device.lab, &device.dev, &files.config())?;
        agent.start_ready()?;
        let runtime = Runtime::new(&device.lab, &device.dev)?;
        Ok(Node { agent, runtime, device })
    }

    pub fn pod(&self, name: &str) -> Result<Ns> {
        self.device.lab.ns(name)
    }

    pub fn leases(&self) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.agent.command(&["ipam", "show", "--json"])?)?)
    }

    pub fn containers(&self) -> Result<BTreeSet<String>> {
        Ok(self.leases()?.iter().filter_map(|row| Some(row["container"].as_str()?.to_owned())).collect())
    }

    /// Neither leases without interfaces nor the other way round.
    pub fn clean(&self) {
        let said = self.agent.command(&["ipam", "check"]).expect("nothing is wrong");
        assert_eq!(said.lines().count(), 1, "only the headline");
    }
}

/// One call; what is left out is left out of the environment.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    pub verb: &'a str,
    pub container: &'a str,
    pub netns: Option<PathBuf>,
    pub args: &'a str,
    pub version: &'a str,
    /// Further keys of the network's configuration.
    pub conf: Value,
}

/// What was printed, and whether the plugin said that it succeeded.
#[derive(Clone, Debug)]
pub struct Said {
    pub success: bool,
    pub value: Value,
}

impl Said {
    pub fn code(&self) -> Option<u64> {
        self.value["code"].as_u64()
    }
}

impl Runtime {
    pub fn new(lab: &Lab, node: &Ns) -> Result<Runtime> {
        let plugin = agent::binary()?.with_file_name("stellwerk-cni");
        ensure!(plugin.is_file(), "there is no {}: build it (cargo xtask build)", plugin.display());
        Ok(Runtime { node: node.clone(), plugin, pins: lab.pins(), inside: false })
    }

    /// Moves the calling thread onto the node, where a runtime's are, for the rest of the thread's life; for calls from it.
    pub fn enter(&self) -> Result<Runtime> {
        self.node.enter()?;
        Ok(Runtime { inside: true, ..self.clone() })
    }

    /// With a plugin of others.
    pub fn of(self, plugin: PathBuf) -> Runtime {
        Runtime { plugin, ..self }
    }

    /// One of several of a lab, beside its agent.
    pub fn beside(self, agent: &Agent) -> Runtime {
        Runtime { pins: agent.pins().to_owned(), ..self }
    }

    pub fn call(&self, call: &Call<'_>) -> Result<Said> {
        let mut conf =
            json!({ "cniVersion": call.version, "name": "test", "type": "stellwerk-cni", "pinPath": self.pins });
        for (key, value) in call.conf.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        let mut command = Command::new(&self.plugin);
        command
            .env_clear()
            .env("CNI_COMMAND", call.verb)
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/")));
        if !call.container.is_empty() {
            command.env("CNI_CONTAINERID", call.container).env("CNI_IFNAME", "eth0").env("CNI_ARGS", call.args);
        }
        if let Some(netns) = &call.netns {
            command.env("CNI_NETNS", netns);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // From a thread inside, as a runtime does: to enter between fork and exec, all of this process would be forked.
        let spawned = if self.inside { command.spawn() } else { self.node.run(|| command.spawn())? };
        let mut child = spawned.context("starting the plugin")?;
        child.stdin.take().context("the plugin's input")?.write_all(conf.to_string().as_bytes())?;
        let out = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).context(text)? };
        Ok(Said { success: out.status.success(), value })
    }

    /// ADD by the newest version: the result.
    pub fn add(&self, pod: &Ns, container: &str, args: &str) -> Result<Value> {
        let netns = Some(pod.path());
        let said = self.call(&Call { verb: "ADD", container, netns, args, version: "1.1.0", conf: Value::Null })?;
        if said.success { Ok(said.value) } else { bail!("ADD of {container}: {}", said.value) }
    }

    pub fn del(&self, pod: &Ns, container: &str) -> Result<()> {
        let netns = Some(pod.path());
        let said = self.call(&Call { verb: "DEL", container, netns, version: "1.1.0", ..Call::default() })?;
        if said.success { Ok(()) } else { bail!("DEL of {container}: {}", said.value) }
    }
}

/// The address of each family that a result has.
pub fn twin(result: &Value) -> Result<Twin> {
    let addresses = addresses(result);
    let [v4, v6] = &addresses[..] else { bail!("an address of each family, not {addresses:?}") };
    Ok(Twin { v4: v4.parse()?, v6: v6.parse()? })
}

/// The addresses of a result, without their lengths.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| Some(ip["address"].as_str()?.split('/').next()?.to_owned())).collect()
}
