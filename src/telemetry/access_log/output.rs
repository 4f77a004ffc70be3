//! Where lines go: a stream of the process, or a file that is rotated.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::settings::{AccessLogSettings, AccessLogTarget};

/// Where lines go.
#[derive(Debug)]
pub(super) enum Output {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file.
    File(LogFile),
}

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// Bytes at which it is rotated; 0 = never.
    rotate_size: u64,
    keep: usize,
    /// The last write ended in the middle of a line.
    torn: bool,
}

impl Output {
    /// Opens it. Files are relative to the folder of `config`, APISIX's to its prefix.
    pub fn open(settings: &AccessLogSettings, config: &Path) -> io::Result<Self> {
        let folder = config.parent().unwrap_or(Path::new(""));
        let path = match &settings.target {
            AccessLogTarget::Stderr => return Ok(Output::Stderr),
            AccessLogTarget::Stdout => return Ok(Output::Stdout),
            AccessLogTarget::File(path) => folder.join(path),
            AccessLogTarget::ApisixFile(path) if folder.ends_with("conf") => {
                folder.parent().unwrap_or(folder).join(path)
            }
            AccessLogTarget::ApisixFile(path) => folder.join(path),
        };
        let place =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(place)?;
        }
        let (file, size) = append_to(&path).map_err(place)?;
        Ok(Output::File(LogFile {
            path,
            file,
            size,
            rotate_size: settings.rotate_size,
            keep: settings.rotate_keep.max(1),
            torn: false,
        }))
    }

    /// Writes whole lines.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Output::Stderr => io::stderr().lock().write_all(lines),
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Output::File(file) => file.write(lines),
        }
    }

    /// Opens the file again under its name. When that fails, the old one stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        match self {
            Output::Stderr | Output::Stdout => Ok(()),
            Output::File(file) => file.reopen(),
        }
    }
}

impl LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.rotate_size > 0
            && self.size > 0
            && self.size + lines.len() as u64 > self.rotate_size
            && let Err(error) = self.rotate()
        {
            log::error!("access log {}: {error}", self.path.display());
        }
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) if count > 0 => {
                    self.size += count as u64;
                    self.torn = rest[count - 1] != b'\n';
                    rest = &rest[count..];
                }
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = append_to(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// `access.log` becomes `access.log.1`, that becomes `access.log.2`, and so on; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        // During an upgrade two processes write; the other one may have rotated already.
        let there = fs::metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            let numbered = |number: usize| {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            };
            for number in (1..self.keep).rev() {
                match fs::rename(numbered(number), numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, numbered(1))?;
        }
        self.reopen()
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    // Client ids are nobody else's business.
    let file = options.append(true).create(true).mode(0o640).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}
