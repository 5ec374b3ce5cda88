//! `mecha logs`: the files that hold what an app and its sidecar printed, also after their end.

use crate::args::LogsArgs;
use crate::error::{CliError, OK, Result};
use crate::home::Home;
use crate::output;
use crate::registry;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 * 1024;

pub(crate) async fn run(args: &LogsArgs) -> Result<u8> {
    let home = Home::locate()?;
    let id = args.app_id.as_ref().or(args.id.as_ref()).map(String::as_str).unwrap_or_default();
    let path = find(&home, id, args.sidecar)?;
    let failed = |error: std::io::Error| CliError::new("logs", format!("cannot read {}: {error}", path.display()));
    let mut file = File::open(&path).map_err(failed)?;
    if let Some(lines) = args.tail {
        file.seek(SeekFrom::Start(tail_start(&file, lines).map_err(failed)?)).map_err(failed)?;
    }
    let mut chunk = vec![0; CHUNK];
    loop {
        // Asked first, so that the last output of an app that ends just now is not missed.
        let alive = args.follow && registry::list(&home)?.iter().any(|record| record.app_id == id);
        loop {
            let read = file.read(&mut chunk).map_err(failed)?;
            if read == 0 {
                break;
            }
            output::write(&chunk[..read])?;
        }
        if !alive {
            return Ok(OK);
        }
        // A file that shrank under us began anew: go on at its start.
        let position = file.stream_position().map_err(failed)?;
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() < position => file = File::open(&path).map_err(failed)?,
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

fn find(home: &Home, id: &str, sidecar: bool) -> Result<PathBuf> {
    let running = registry::list(home)?;
    if let Some(record) = running.iter().find(|record| record.app_id == id) {
        let path = if sidecar { &record.sidecar_log } else { &record.app_log };
        return match path == Path::new("") {
            true => Err(CliError::new("logs", format!("{id} is a sidecar without an app"))
                .hint(format!("mecha logs {id} --sidecar"))),
            false => Ok(path.clone()),
        };
    }
    let kind = if sidecar { ".sidecar.log" } else { ".app.log" };
    let earlier = registry::own_logs(home, id)
        .into_iter()
        .filter(|(path, _)| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(kind)));
    let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    earlier.map(|(path, _)| path).max_by_key(|path| modified(path)).ok_or_else(|| registry::unknown(id, &running))
}

/// Where the last `lines` lines begin.
fn tail_start(file: &File, lines: usize) -> std::io::Result<u64> {
    let mut starts: VecDeque<u64> = VecDeque::new();
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let (mut at, mut fresh) = (0, true);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        for byte in buffer {
            if fresh {
                starts.push_back(at);
                if starts.len() > lines {
                    starts.pop_front();
                }
            }
            fresh = *byte == b'\n';
            at += 1;
        }
        let used = buffer.len();
        reader.consume(used);
    }
    Ok(starts.front().copied().unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_tail_begins_at_a_line() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one\ntwo\n\nfour").unwrap();
        for (lines, start) in [(0, 13), (1, 9), (2, 8), (3, 4), (9, 0)] {
            file.rewind().unwrap();
            assert_eq!(tail_start(&file, lines).unwrap(), start, "{lines} lines");
        }
    }
}
