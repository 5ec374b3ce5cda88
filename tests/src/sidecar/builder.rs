use std::path::PathBuf;

use tempfile::TempDir;

use super::logs::Logs;
use super::{Ports, Setup, Sidecar, spawn};
use crate::app::grpc::GrpcApp;
use crate::app::http::HttpApp;
use crate::ports::free_port;

/// A sidecar to be started: a folder of its own, free ports, loopback only, an empty environment.
#[derive(Debug)]
#[must_use]
pub struct SidecarBuilder {
    app_id: String,
    folder: TempDir,
    documents: Vec<(String, String)>,
    configurations: Vec<String>,
    flags: Vec<(String, Option<String>)>,
    left_out: Vec<String>,
    env: Vec<(String, String)>,
    public: bool,
    sockets: bool,
}

impl SidecarBuilder {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("resources")).unwrap();
        Self {
            app_id: "app".to_owned(),
            folder,
            documents: Vec::new(),
            configurations: Vec::new(),
            flags: Vec::new(),
            left_out: Vec::new(),
            env: Vec::new(),
            public: false,
            sockets: false,
        }
    }

    /// Its app id.
    pub fn app_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.app_id);
        self
    }

    /// The app beside it, over HTTP.
    pub fn app(self, app: &HttpApp) -> Self {
        self.flag("app-port", app.port().to_string())
    }

    /// The app beside it, over gRPC.
    pub fn grpc_app(self, app: &GrpcApp) -> Self {
        self.flag("app-port", app.port().to_string()).flag("app-protocol", "grpc")
    }

    /// A document of any kind in the resources folder.
    pub fn component(mut self, text: impl AsRef<str>) -> Self {
        let name = format!("{:03}.yaml", self.documents.len());
        self.documents.push((name, text.as_ref().to_owned()));
        self
    }

    /// A document under a file name of its own.
    pub fn document(mut self, file: &str, text: &str) -> Self {
        self.documents.push((file.to_owned(), text.to_owned()));
        self
    }

    /// The `spec` of a Configuration document.
    pub fn configuration(mut self, spec: &str) -> Self {
        self.configurations.push(format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata:\n  name: config{}\nspec:\n{}",
            self.configurations.len(),
            crate::documents::indent(spec, 2)
        ));
        self
    }

    /// A flag with a value; the last one of a name counts.
    pub fn flag(mut self, name: &str, value: impl Into<String>) -> Self {
        self.flags.retain(|(known, _)| known != name);
        self.flags.push((name.to_owned(), Some(value.into())));
        self
    }

    /// A flag without a value.
    pub fn switch(mut self, name: &str) -> Self {
        self.flags.push((name.to_owned(), None));
        self
    }

    /// Leaves out a flag that the harness gives on its own.
    pub fn without(mut self, flag: &str) -> Self {
        self.left_out.push(flag.to_owned());
        self
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// With the public port.
    pub fn public(mut self) -> Self {
        self.public = true;
        self
    }

    /// On unix sockets instead of TCP.
    pub fn sockets(mut self) -> Self {
        self.sockets = true;
        self
    }

    /// The folder it will live in.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Starts it and waits until everything is ready.
    pub async fn start(self) -> Sidecar {
        let mut sidecar = self.spawn();
        sidecar.ready().await;
        sidecar
    }

    /// Starts it and waits until the app may use it.
    pub async fn start_outbound(self) -> Sidecar {
        let mut sidecar = self.spawn();
        sidecar.outbound_ready().await;
        sidecar
    }

    /// Starts it and waits for nothing.
    #[must_use]
    pub fn spawn(self) -> Sidecar {
        let setup = self.setup();
        let logs = Logs::default();
        let child = spawn(&setup, &logs);
        Sidecar { child, setup, logs, began: 0 }
    }

    fn setup(self) -> Setup {
        let folder = self.folder.path();
        let resources = folder.join("resources");
        for (file, text) in &self.documents {
            std::fs::write(resources.join(file), text).unwrap();
        }
        let ports = Ports {
            http: free_port(),
            grpc: free_port(),
            internal: free_port(),
            metrics: free_port(),
            public: self.public.then(free_port),
        };
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut flags: Vec<(String, Option<String>)> = Vec::new();
        let mut give = |name: &str, value: String| flags.push((name.to_owned(), Some(value)));
        give("app-id", self.app_id.clone());
        give("dapr-http-port", ports.http.to_string());
        give("dapr-grpc-port", ports.grpc.to_string());
        give("dapr-internal-grpc-port", ports.internal.to_string());
        give("metrics-port", ports.metrics.to_string());
        give("dapr-listen-addresses", "127.0.0.1".to_owned());
        give("dapr-internal-grpc-listen-address", "127.0.0.1".to_owned());
        give("metrics-listen-address", "127.0.0.1".to_owned());
        give("resources-path", text(resources));
        if let Some(port) = ports.public {
            give("dapr-public-port", port.to_string());
            give("dapr-public-listen-address", "127.0.0.1".to_owned());
        }
        let sockets = self.sockets.then(|| folder.join("sockets"));
        if let Some(sockets) = &sockets {
            std::fs::create_dir_all(sockets).unwrap();
            give("unix-domain-socket", text(sockets.clone()));
        }
        for (number, configuration) in self.configurations.iter().enumerate() {
            let file = folder.join(format!("config{number}.yaml"));
            std::fs::write(&file, configuration).unwrap();
            give("config", text(file));
        }
        flags.retain(|(name, _)| !self.left_out.contains(name) && !self.flags.iter().any(|(other, _)| other == name));
        flags.extend(self.flags);
        let args = flags.into_iter().flat_map(|(name, value)| [Some(format!("--{name}")), value]).flatten().collect();
        let mut env = vec![
            ("DAPR_HOST_IP".to_owned(), "127.0.0.1".to_owned()),
            ("MECHA_HOME".to_owned(), text(folder.join("home"))),
        ];
        env.retain(|(name, _)| !self.env.iter().any(|(other, _)| other == name));
        env.extend(self.env);
        Setup { app_id: self.app_id, ports, args, env, sockets, folder: self.folder }
    }
}
