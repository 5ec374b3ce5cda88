//! Doors for the fuzz targets. No API; nothing else may call it.

/// The server that a kubeconfig file names.
///
/// # Errors
/// What is wrong with the file.
pub fn kubeconfig(text: &str) -> Result<String, String> {
    crate::kubeconfig::current(text).map(|(cluster, _)| cluster.server)
}
