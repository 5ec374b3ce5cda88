use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use serde::Deserialize;

/// Packages and who depends on whom, from `cargo metadata`.
#[derive(Debug)]
pub(super) struct Graph {
    packages: BTreeMap<String, Package>,
    members: BTreeSet<String>,
    /// Edges of the resolved graph by package id: normal and build dependencies, not those of tests.
    edges: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug)]
pub(super) struct Package {
    id: String,
    pub(super) name: String,
    pub(super) version: String,
    /// Path of the manifest relative to the root of the workspace.
    pub(super) manifest: String,
    pub(super) dependencies: Vec<Dependency>,
}

/// A dependency as the manifest declares it.
#[derive(Debug, Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    pub(super) features: Vec<String>,
}

impl Dependency {
    pub(super) fn is_local(&self) -> bool {
        self.path.is_some()
    }

    /// Only tests, benches and examples see it.
    pub(super) fn is_dev(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    workspace_members: BTreeSet<String>,
    workspace_root: String,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct MetadataPackage {
    id: String,
    name: String,
    version: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDep>,
}

#[derive(Deserialize)]
struct NodeDep {
    pkg: String,
    dep_kinds: Vec<DepKind>,
}

#[derive(Deserialize)]
struct DepKind {
    kind: Option<String>,
}

impl Graph {
    /// From the JSON that `cargo metadata --format-version=1` prints.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let metadata: Metadata = serde_json::from_slice(json)
            .map_err(|e| format!("cannot read what `cargo metadata` printed: {e}\n  next: update xtask's graph.rs"))?;
        let root = Path::new(&metadata.workspace_root);
        let packages = metadata.packages.into_iter().map(|p| {
            let manifest = Path::new(&p.manifest_path);
            let manifest = manifest.strip_prefix(root).unwrap_or(manifest).to_string_lossy().into_owned();
            let package =
                Package { id: p.id.clone(), name: p.name, version: p.version, manifest, dependencies: p.dependencies };
            (p.id, package)
        });
        let edges = metadata.resolve.nodes.into_iter().map(|node| {
            let used = |dep: &NodeDep| dep.dep_kinds.iter().any(|k| k.kind.as_deref() != Some("dev"));
            (node.id, node.deps.into_iter().filter(used).map(|dep| dep.pkg).collect())
        });
        Ok(Self { packages: packages.collect(), members: metadata.workspace_members, edges: edges.collect() })
    }

    /// The crates of this repository.
    pub(super) fn members(&self) -> impl Iterator<Item = &Package> {
        self.members.iter().filter_map(|id| self.packages.get(id))
    }

    /// All versions of the package called `name`.
    pub(super) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Package> {
        self.packages.values().filter(move |package| package.name == name)
    }

    /// Packages that depend on `package` directly.
    pub(super) fn dependents<'a>(&'a self, package: &'a Package) -> impl Iterator<Item = &'a Package> {
        self.edges
            .iter()
            .filter(|(_, targets)| targets.contains(&package.id))
            .filter_map(|(id, _)| self.packages.get(id))
    }

    /// Names on a shortest way from `from` to a package that `wanted` accepts, both ends included.
    pub(super) fn way(&self, from: &Package, wanted: impl Fn(&Package) -> bool) -> Option<Vec<&str>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([from.id.as_str()]);
        while let Some(id) = queue.pop_front() {
            if id != from.id && self.packages.get(id).is_some_and(&wanted) {
                let mut way = vec![id];
                while let Some(previous) = way.last().and_then(|last| came_from.get(last)) {
                    way.push(previous);
                }
                return Some(way.iter().rev().filter_map(|id| Some(self.packages.get(*id)?.name.as_str())).collect());
            }
            for target in self.edges.get(id).into_iter().flatten() {
                if target != &from.id && !came_from.contains_key(target.as_str()) {
                    came_from.insert(target, id);
                    queue.push_back(target);
                }
            }
        }
        None
    }
}

/// A small synthetic workspace for the tests of the rules.
#[cfg(test)]
pub(super) mod sample {
    use serde_json::{Value, json};

    use super::Graph;

    pub(in crate::tidy) struct Sample {
        packages: Vec<Value>,
        nodes: Vec<Value>,
        members: Vec<String>,
    }

    impl Sample {
        pub(in crate::tidy) fn new() -> Self {
            Self { packages: Vec::new(), nodes: Vec::new(), members: Vec::new() }
        }

        /// A crate of the repository in `folder`; a dependency written `dev:name` is one of its tests.
        pub(in crate::tidy) fn member(mut self, folder: &str, name: &str, dependencies: &[&str]) -> Self {
            self.add(name, name, "0.1.0", &format!("/repo/{folder}/Cargo.toml"), dependencies);
            self.members.push(name.to_owned());
            self
        }

        /// A crate of the registry.
        pub(in crate::tidy) fn registry(self, name: &str, dependencies: &[&str]) -> Self {
            self.version(name, "1.0.0", dependencies)
        }

        /// A crate of the registry in a version other than 1.0.0; its id is `name@version`.
        pub(in crate::tidy) fn version(mut self, name: &str, version: &str, dependencies: &[&str]) -> Self {
            let id = if version == "1.0.0" { name.to_owned() } else { format!("{name}@{version}") };
            self.add(&id, name, version, &format!("/registry/{name}/Cargo.toml"), dependencies);
            self
        }

        fn add(&mut self, id: &str, name: &str, version: &str, manifest: &str, dependencies: &[&str]) {
            let parts = |text: &str| match text.strip_prefix("dev:") {
                Some(name) => (name.to_owned(), Some("dev")),
                None => (text.to_owned(), None),
            };
            let declared = dependencies.iter().map(|d| {
                let (name, kind) = parts(d);
                let local = name.starts_with("mecha");
                json!({"name": name, "kind": kind, "path": local.then_some("/repo"), "features": ["sync"]})
            });
            self.packages.push(json!({
                "id": id, "name": name, "version": version, "manifest_path": manifest,
                "dependencies": declared.collect::<Vec<_>>(),
            }));
            let resolved = dependencies.iter().map(|d| {
                let (name, kind) = parts(d);
                json!({"pkg": name, "dep_kinds": [{"kind": kind}]})
            });
            self.nodes.push(json!({"id": id, "deps": resolved.collect::<Vec<_>>()}));
        }

        pub(in crate::tidy) fn graph(self) -> Graph {
            let json = json!({
                "packages": self.packages, "workspace_members": self.members, "workspace_root": "/repo",
                "resolve": {"nodes": self.nodes},
            });
            Graph::parse(json.to_string().as_bytes()).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sample::Sample;

    #[test]
    fn a_way_is_the_shortest_and_leaves_tests_out() {
        let graph = Sample::new()
            .member("a", "mecha-a", &["b", "c", "dev:e"])
            .registry("b", &["c"])
            .registry("c", &["d", "b"])
            .registry("d", &[])
            .registry("e", &[])
            .graph();
        let from = graph.named("mecha-a").next().unwrap();
        assert_eq!(from.manifest, "a/Cargo.toml");
        assert_eq!(graph.way(from, |p| p.name == "d").unwrap(), ["mecha-a", "c", "d"]);
        assert_eq!(graph.way(from, |p| p.name == "e"), None);
        let d = graph.named("d").next().unwrap();
        assert_eq!(graph.dependents(d).map(|p| p.name.as_str()).collect::<Vec<_>>(), ["c"]);
    }
}
