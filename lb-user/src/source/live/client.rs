//! How to reach an API, and a client for it.
//!
//! Invariant: an [`Access`] is what the configuration says; what it leads to is read anew with each client, so that
//! other credentials hold from the next connection on.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Error};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the API is, and what of it is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// None: as pods of the cluster reach it.
    pub kubeconfig: Option<PathBuf>,
    /// Of the kubeconfig; None: its current one.
    pub context: Option<String>,
    /// Endpoints are computed from pods where a service has no slices.
    pub pods: bool,
    /// What pods may do is as NetworkPolicies say.
    pub policies: bool,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kubeconfig {
            None => f.write_str("in-cluster")?,
            Some(path) => write!(f, "{}", path.display())?,
        }
        match &self.context {
            None => Ok(()),
            Some(context) => write!(f, " ({context})"),
        }
    }
}

impl Access {
    /// Whose server it is, or what is wrong with what says so.
    pub fn server(&self) -> Result<String, String> {
        let Some(path) = &self.kubeconfig else {
            return Config::incluster().map(|config| config.cluster_url.to_string()).map_err(|error| deepest(&error));
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| deepest(&error))?;
        let named = self.context.as_ref().or(kubeconfig.current_context.as_ref()).filter(|name| !name.is_empty());
        let Some(name) = named else { return Err("names no current-context".to_owned()) };
        let context = kubeconfig.contexts.iter().find(|context| context.name == *name);
        let Some(context) = context.and_then(|context| context.context.as_ref()) else {
            let all: Vec<&str> = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
            return Err(format!("has no context `{name}`; expected one of {}", all.join(", ")));
        };
        let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster);
        let server = cluster.and_then(|cluster| cluster.cluster.as_ref()?.server.clone());
        server.ok_or_else(|| format!("names no server for the cluster `{}` of the context `{name}`", context.cluster))
    }

    pub(super) async fn client(&self) -> Result<Client, String> {
        let mut config = match &self.kubeconfig {
            None => Config::incluster().map_err(|error| deepest(&error))?,
            Some(path) => {
                let said = |error: String| format!("{}: {error}", path.display());
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| said(deepest(&error)))?;
                let options = KubeConfigOptions { context: self.context.clone(), cluster: None, user: None };
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                config.map_err(|error| said(deepest(&error)))?
            }
        };
        config.connect_timeout = Some(CONNECT);
        // When to ask again is ours to say, and to tell.
        config.default_retry = false;
        Client::try_from(config).map_err(|error| words(&error))
    }
}

/// An error of the API's or on the way to it, for people.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::Api(status) if status.reason.is_empty() => format!("{}: {}", status.code, status.message),
        Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        error => deepest(error),
    }
}

/// What lies at an error's ground: the layers above say only where it passed.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
