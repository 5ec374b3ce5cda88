//! A kubelet that is just enough: what the injector makes of a pod is executed, not only read.
//!
//! Every pod of the API server is bound to one node. Volumes become folders that follow their sources:
//! ConfigMaps, Secrets and projected tokens, replaced as a whole by a link, as the real kubelet does. The
//! container `daprd` is started as the real `mechad` with the arguments, variables and mounts of the pod's
//! spec, in a mount namespace of its own, so that paths in the pod are the paths in the process. Start order,
//! probes, restarts, Jobs and the grace of a deletion are those of Kubernetes.
//!
//! What differs, because all pods share one network: each port of a pod is another one on this machine
//! ([`Kubelet::port`]), replaced in arguments and variables. For the same reason there is no cluster DNS:
//! sidecars find each other in a name registry, a file of the node that the variable `MECHA_NAME_REGISTRY`
//! names, as those of `mecha run` do. Limits, users and network policies are not enforced.

mod container;
mod node;
mod pod;
mod status;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use kube::config::{KubeConfigOptions, Kubeconfig};
use mecha_testkit::servers::Kubernetes;
use mecha_tests::Signal;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) use self::container::signal;
use self::pod::Known;

/// What runs for the image of an app's container. An image that nobody described seems to run and does
/// nothing.
#[derive(Clone, Debug)]
enum Image {
    /// The test serves the app itself, on this port.
    Served(u16),
    /// The container's own command is run on this machine.
    Executed,
}

/// What kind of node to start.
#[derive(Clone, Debug, Default)]
pub(crate) struct KubeletOptions {
    images: BTreeMap<String, Image>,
    /// In the environment of every sidecar.
    variables: Vec<(String, String)>,
}

impl KubeletOptions {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Containers of `image` are served by the test itself on `port`.
    pub(crate) fn served(mut self, image: &str, port: u16) -> Self {
        self.images.insert(image.to_owned(), Image::Served(port));
        self
    }

    /// Containers of `image` run their command on this machine.
    pub(crate) fn executed(mut self, image: &str) -> Self {
        self.images.insert(image.to_owned(), Image::Executed);
        self
    }

    /// Puts these into the environment of sidecars.
    pub(crate) fn variables(mut self, variables: Vec<(String, String)>) -> Self {
        self.variables = variables;
        self
    }

    /// Starts the node.
    pub(crate) fn start(self, server: &Kubernetes) -> Kubelet {
        let folder = TempDir::new().unwrap();
        let shared = Arc::new(Shared {
            options: self,
            folder: folder.path().to_owned(),
            mechad: mecha_tests::mechad().to_owned(),
            known: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let there = shared.clone();
        // A thread of its own: a test may block on kubectl while pods go on.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
                let client = kube::Client::try_from(config.unwrap()).unwrap();
                node::run(there, client).await;
            });
        });
        Kubelet { shared, thread: Some(thread), _folder: folder }
    }
}

/// A running node. Dropping it ends every process of its pods.
#[derive(Debug)]
pub(crate) struct Kubelet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _folder: TempDir,
}

/// What the node's tasks share with the test.
#[derive(Debug)]
struct Shared {
    options: KubeletOptions,
    folder: PathBuf,
    mechad: PathBuf,
    /// By namespace and name.
    known: Mutex<BTreeMap<(String, String), Known>>,
    stop: CancellationToken,
}

impl Kubelet {
    fn of<T>(&self, namespace: &str, pod: &str, read: impl FnOnce(&Known) -> T) -> Option<T> {
        self.shared.known.lock().get(&(namespace.to_owned(), pod.to_owned())).map(read)
    }

    /// Where port `port` of the pod is on this machine.
    ///
    /// # Panics
    /// When the pod is not on this node or has no such port.
    #[track_caller]
    pub(crate) fn port(&self, namespace: &str, pod: &str, port: u16) -> u16 {
        let found = self.of(namespace, pod, |known| known.ports.get(&port).copied()).flatten();
        found.unwrap_or_else(|| panic!("{namespace}/{pod} has no port {port} on this node"))
    }

    /// Everything that a container printed, over all its restarts.
    pub(crate) fn log(&self, namespace: &str, pod: &str, container: &str) -> String {
        let file = self.of(namespace, pod, |known| known.folder.join(format!("{container}.log")));
        file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default()
    }

    /// The folder that a volume of the pod is.
    ///
    /// # Panics
    /// When the pod is not on this node.
    #[track_caller]
    pub(crate) fn volume(&self, namespace: &str, pod: &str, volume: &str) -> PathBuf {
        let found = self.of(namespace, pod, |known| known.folder.join("volumes").join(volume));
        found.unwrap_or_else(|| panic!("{namespace}/{pod} is not on this node"))
    }

    /// The process of a container, where one runs.
    pub(crate) fn pid(&self, namespace: &str, pod: &str, container: &str) -> Option<u32> {
        self.of(namespace, pod, |known| known.pids.get(container).copied()).flatten()
    }

    /// Sends a signal to the process of a container.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub(crate) fn signal(&self, namespace: &str, pod: &str, container: &str, signal: Signal) {
        let pid = self.pid(namespace, pod, container);
        container::signal(pid.unwrap_or_else(|| panic!("{namespace}/{pod} runs no {container}")), signal);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the kubelet ended by itself");
        }
        if std::thread::panicking() {
            for ((namespace, name), known) in &*self.shared.known.lock() {
                let log = std::fs::read_to_string(known.folder.join("daprd.log")).unwrap_or_default();
                eprintln!("--- log of the sidecar of {namespace}/{name} ---\n{log}---");
            }
        }
    }
}
