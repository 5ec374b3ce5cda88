use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket's file, removed with the value if it still is the one we made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: a newer process may have put its own file there.
    id: Option<(u64, u64)>,
}

/// `dapr-<app-id>-<name>.socket` in `dir`; `name` is `http` or `grpc`.
pub fn socket_path(dir: &Path, app_id: &str, name: &str) -> PathBuf {
    dir.join(format!("dapr-{app_id}-{name}.socket"))
}

/// Binds, taking over a socket nobody listens on any more.
pub(super) fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
            }
            match UnixStream::connect(path) {
                Ok(_) => return Err(error),
                Err(stale) if stale.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                    UnixListener::bind(path)?
                }
                Err(_) => return Err(error),
            }
        }
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok((listener, SocketFile::at(path)))
}

fn id(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl SocketFile {
    /// The file that is at `path` now.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), id: id(path) }
    }

    /// Leaves the file to somebody else.
    pub fn leave(mut self) {
        self.id = None;
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && id(&self.path) == self.id {
            let _ = fs::remove_file(&self.path);
        }
    }
}
