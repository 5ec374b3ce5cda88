//! The part of a kubeconfig file that says where the API server is and who we are.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mecha_components_api::{Error, ErrorKind, Result};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::files::{Content, Files};

/// What the current context of a file says.
pub(crate) struct Kubeconfig {
    pub(crate) server: String,
    /// Certificates in PEM that the server's is checked against; the machine's when absent.
    pub(crate) authority: Option<Content>,
    pub(crate) token: Option<Content>,
    /// Chain and key in PEM.
    pub(crate) certificate: Option<(Content, Content)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Cluster {
    pub(crate) server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct User {
    #[serde(default, deserialize_with = "wiped")]
    token: Option<Zeroizing<String>>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    #[serde(default, deserialize_with = "wiped")]
    client_key_data: Option<Zeroizing<String>>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
    username: Option<serde::de::IgnoredAny>,
}

/// A text that is wiped when it is dropped.
fn wiped<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Zeroizing::new))
}

/// Reads a file, and the files that it names.
pub(crate) fn read(path: &Path, files: &mut Files) -> Result<Kubeconfig> {
    let text = files.read("kubeconfig", path)?;
    let wrong =
        |what: String| Error::new(ErrorKind::FailedPrecondition, format!("the kubeconfig {}: {what}", path.display()));
    let text = std::str::from_utf8(&text).map_err(|_| wrong("is no UTF-8 text".to_owned()))?;
    let (cluster, user) = current(text).map_err(wrong)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut either = |what: &str, data: Option<&str>, file: Option<&PathBuf>| match (data, file) {
        (Some(data), _) => match STANDARD.decode(data.trim()) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(_) => Err(wrong(format!("its {what} is no base64"))),
        },
        (None, Some(file)) => files.read(what, &folder.join(file)).map(Some),
        (None, None) => Ok(None),
    };
    let authority = either(
        "certificate authority",
        cluster.certificate_authority_data.as_deref(),
        cluster.certificate_authority.as_ref(),
    )?;
    let chain =
        either("client certificate", user.client_certificate_data.as_deref(), user.client_certificate.as_ref())?;
    let key = either("client key", user.client_key_data.as_ref().map(|k| k.as_str()), user.client_key.as_ref())?;
    // As clients of Kubernetes do: a file is read again, so it goes before a text.
    let token = match (&user.token_file, &user.token) {
        (Some(file), _) => Some(files.read("token file", &folder.join(file))?),
        (None, Some(token)) => Some(Zeroizing::new(token.as_bytes().to_vec())),
        (None, None) => None,
    };
    Ok(Kubeconfig { server: cluster.server, authority, token, certificate: chain.zip(key) })
}

/// The cluster and the user of the current context.
///
/// # Errors
/// What is wrong with the file, without what may be a credential.
pub(crate) fn current(text: &str) -> Result<(Cluster, User), String> {
    // The parser's message may quote what stands there.
    let file: File = serde_saphyr::from_str(text).map_err(|_| "is no configuration of a Kubernetes client")?;
    let name = &file.current_context;
    let context = file.contexts.into_iter().find(|c| c.name == *name);
    let context = context.ok_or_else(|| format!("has no context '{name}'; set current-context"))?.context;
    let cluster = file.clusters.into_iter().find(|c| c.name == context.cluster);
    let cluster = cluster.ok_or_else(|| format!("has no cluster '{}'", context.cluster))?.cluster;
    let user = file.users.into_iter().find(|u| u.name == context.user);
    let user = match user {
        Some(user) => user.user,
        None if context.user.is_empty() => User::default(),
        None => return Err(format!("has no user '{}'", context.user)),
    };
    if cluster.insecure_skip_tls_verify {
        return Err("asks to trust any certificate, which a store of secrets does not do; \
                    name the server's certificate-authority instead"
            .to_owned());
    }
    if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
        return Err(format!(
            "logs user '{}' in by a program, a provider or a password; a store takes a token, a tokenFile or a client \
             certificate",
            context.user
        ));
    }
    Ok((cluster, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (tempfile::TempDir, Result<Kubeconfig>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "from-file").unwrap();
        std::fs::write(folder.path().join("ca.crt"), "pem").unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        let read = read(&path, &mut Files::default());
        (folder, read)
    }

    const FILE: &str = "current-context: b\n\
        contexts: [{name: a, context: {cluster: x, user: x}}, {name: b, context: {cluster: c, user: u}}]\n\
        clusters: [{name: c, cluster: {server: 'https://h:6443', certificate-authority: ca.crt}}]\n\
        users: [{name: u, user: {tokenFile: token, token: in-text}}]\n";

    #[test]
    fn the_current_context_counts_and_files_lie_beside_it() {
        let (_folder, config) = parse(FILE);
        let config = config.unwrap();
        assert_eq!(config.server, "https://h:6443");
        assert_eq!(config.authority.unwrap().as_slice(), b"pem");
        assert_eq!(config.token.unwrap().as_slice(), b"from-file");
        assert!(config.certificate.is_none());
    }

    #[test]
    fn mistakes_name_the_place_and_show_no_credential() {
        for (from, to, why) in [
            ("current-context: b", "current-context: z", "no context 'z'"),
            ("name: c,", "name: d,", "no cluster 'c'"),
            ("name: u,", "name: v,", "no user 'u'"),
            ("certificate-authority: ca.crt", "insecure-skip-tls-verify: true", "trust any certificate"),
            ("certificate-authority: ca.crt", "certificate-authority-data: '***'", "no base64"),
            ("tokenFile: token", "exec: {command: aws}", "by a program"),
            ("tokenFile: token", "tokenFile: nowhere", "nowhere cannot be read"),
            ("users: [", "users: {", "is no configuration"),
        ] {
            let (_folder, config) = parse(&FILE.replacen(from, to, 1));
            let error = config.err().unwrap();
            assert!(error.to_string().contains(why) && !error.to_string().contains("in-text"), "{error}");
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        }
    }
}
